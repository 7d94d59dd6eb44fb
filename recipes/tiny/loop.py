"""The training loop all stages share: seeded, resumable, logged, and stopped by a rule (or Ctrl-C, which saves).

A stage owns its networks, optimisers and data, and knows one step. Randomness of step s comes
from `(seed, s)` alone, so a run that was stopped and resumed draws the same batches as one that was not.

    <out>/state.pt      everything needed to go on
    <out>/best.pt       averaged weights with the best validation score
    <out>/log.jsonl     one line per report
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.omni import default_dtype
from recipes.tiny import storage
from recipes.tiny.team import Team

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

log = logging.getLogger("train")


class Stage(Protocol):
    """What one recipe brings: `parts` are trained, `shipped` names those whose averaged weights are kept."""

    parts: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    shipped: tuple[str, ...]
    lr: float  # the loop lowers it where `Budget.anneal` asks for that

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        """Make one optimiser step; return figures to report."""

    def validate(self) -> dict[str, float]:
        """Measure on kept-out data; `score` (lower is better) chooses the best weights."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When to report, save and stop; whichever limit comes first."""

    steps: int
    minutes: float
    patience: int  # validations in a row without a better score
    report_every: int = 50
    validate_every: int = 500
    seed: int = 1
    start_from: tuple[Path, ...] = ()
    anneal: bool = False  # let the rate fall to zero as this call's budget is used up
    average_over: int = 1000  # steps that the averaged weights remember


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, batch: int) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of this run; run again to resume"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("~/.cache/parley/tiny/speech").expanduser()
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--patience", type=int, default=20)
    parser.add_argument("--validate-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--start-from",
        type=Path,
        nargs="+",
        default=(),
        help="shipped weights for a new run's first step: a file for each part",
    )
    parser.add_argument(
        "--anneal",
        action="store_true",
        help="let the rate fall to zero over --minutes (or --steps)",
    )
    parser.add_argument("--average-over", type=int, default=1000, help="steps")


def budget(args: argparse.Namespace) -> Budget:
    return Budget(
        args.steps,
        args.minutes,
        args.patience,
        validate_every=args.validate_every,
        seed=args.seed,
        start_from=tuple(args.start_from),
        anneal=args.anneal,
        average_over=args.average_over,
    )


def train(stage: Stage, out: Path, limits: Budget) -> None:
    """Run `stage` until a limit is reached, resuming from `out` if it holds a state."""
    team = Team.join()
    level = logging.INFO if team.is_first else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger().setLevel(level)
    out.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32: ample for training
    if limits.start_from:
        start_from(stage, limits.start_from)
    progress: dict[str, Any] = {"step": 0, "best": float("inf"), "stale": 0}
    averages = {
        name: {k: v.clone() for k, v in stage.parts[name].state_dict().items()}
        for name in stage.shipped
    }
    if (out / "state.pt").exists():
        progress, averages = _load(stage, out / "state.pt")
        log.info("resumed step=%d best=%.4f", progress["step"], progress["best"])
    asked_to_stop: list[int] = []
    former = {
        number: signal.signal(number, lambda received, _: asked_to_stop.append(received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    team.average_before_steps(stage.optimizers.values())
    began, seen = time.monotonic(), dict[str, list[float]]()
    first_step, full_lr = progress["step"], stage.lr
    while progress["step"] < limits.steps:
        step = progress["step"]
        if limits.anneal:
            used = (
                (time.monotonic() - began) / 60 / limits.minutes,
                (step - first_step) / (limits.steps - first_step),
            )
            stage.lr = full_lr * half_cosine(max(used))
        figures = stage.train_step(step, np.random.default_rng(team.seed(limits.seed, step)))
        _average(stage, averages, step, 1 - 1 / limits.average_over)
        for name, value in figures.items():
            seen.setdefault(name, []).append(value)  # not every step has every figure
        progress["step"] = step + 1
        if progress["step"] % limits.report_every == 0 and team.is_first:
            _report(
                out,
                progress["step"],
                {name: float(np.mean(values)) for name, values in seen.items()},
                time.monotonic() - began,
            )
            seen = {}
        spent = bool(asked_to_stop) or (time.monotonic() - began) / 60 > limits.minutes
        last = team.agree(stop=spent) or progress["step"] == limits.steps
        if last or progress["step"] % limits.validate_every == 0:
            if team.is_first:
                _validate(stage, out, progress, averages)
                _save(stage, out / "state.pt", progress, averages)
            last = team.agree(stop=last or progress["stale"] >= limits.patience)
        if last:
            break
    for number, handler in former.items():
        signal.signal(number, handler)
    team.leave()
    log.info("stopped step=%d best=%.4f", progress["step"], progress["best"])


def start_from(stage: Stage, paths: Sequence[Path]) -> None:
    """Fill the stage's shipped parts from files that `ship.py` wrote, whatever prefix names have there.

    Raises:
        ValueError: there is not one file for each part.
    """
    if len(paths) != len(stage.shipped):
        raise ValueError(f"--start-from takes one file for each of {', '.join(stage.shipped)}")
    for name, path in zip(stage.shipped, paths, strict=True):
        wanted, tensors = stage.parts[name].state_dict(), storage.read(path)
        first = next(iter(wanted))
        prefix = next(key for key in tensors if key.endswith(first)).removesuffix(first)
        stage.parts[name].load_state_dict({key: tensors[prefix + key] for key in wanted})


def load_average(out: Path, part: str, *, best: bool = True) -> dict[str, torch.Tensor]:
    """Return the averaged weights of a shipped part: the best ones, or the newest."""
    if best:
        weights: dict[str, torch.Tensor] = torch.load(out / "best.pt", map_location="cpu")[part]
        return weights
    newest: dict[str, torch.Tensor] = torch.load(out / "state.pt", map_location="cpu")["averages"][
        part
    ]
    return newest


@contextlib.contextmanager
def half_precision(device: str) -> Iterator[None]:
    """Let matrix products run in bfloat16 where the machine multiplies it. Weights and their steps stay exact.

    A CPU that has it is twice as fast with it; one that has not is four times as slow. On a CPU attention is spelled
    out, for the backward pass of the fused kernel costs more at our short lengths.
    """
    where = torch.device(device)
    dtype = default_dtype(where)
    with contextlib.ExitStack() as stack:
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(where.type, dtype))
        if where.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def warm_up(
    optimizer: torch.optim.Optimizer, step: int, lr: float, warmup_steps: int = 200
) -> None:
    """Set the rate for this step: a linear start, constant after. A group may have a `share` of it."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("share", 1.0) * lr * min(1.0, (step + 1) / warmup_steps)


def half_cosine(used: float) -> float:
    """Share of the full rate when `used` (0 … 1) of the budget is gone; never quite zero."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, used))) / 2


def _average(
    stage: Stage, averages: dict[str, dict[str, torch.Tensor]], step: int, memory: float
) -> None:
    # A short memory at first, or the random start would linger for thousands of steps.
    decay = min(memory, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, average in averages.items():
            for key, value in stage.parts[name].state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - decay)
                else:
                    average[key].copy_(value)


def _validate(stage: Stage, out: Path, progress: dict[str, Any], averages: dict[str, Any]) -> None:
    """Validate the averaged weights, then put the trained ones back."""
    trained = {
        name: {k: v.clone() for k, v in stage.parts[name].state_dict().items()} for name in averages
    }
    for name, weights in averages.items():
        stage.parts[name].load_state_dict(weights)
        stage.parts[name].eval()
    with torch.no_grad():
        figures = stage.validate()
    if figures["score"] < progress["best"]:
        progress["best"], progress["stale"] = figures["score"], 0
        torch.save(averages, out / "best.pt")
    else:
        progress["stale"] += 1
    for name, weights in trained.items():
        stage.parts[name].load_state_dict(weights)
        stage.parts[name].train()
    _report(out, progress["step"], {f"valid_{k}": v for k, v in figures.items()}, 0.0)


def _report(out: Path, step: int, figures: dict[str, float], seconds: float) -> None:
    line = {
        "step": step,
        **{k: round(v, 5) for k, v in figures.items()},
        "seconds": round(seconds, 1),
    }
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info(" ".join(f"{k}={v:g}" for k, v in line.items()))


def _save(stage: Stage, path: Path, progress: dict[str, Any], averages: dict[str, Any]) -> None:
    state = {
        "progress": progress,
        "averages": averages,
        "parts": {k: v.state_dict() for k, v in stage.parts.items()},
        "optimizers": {k: v.state_dict() for k, v in stage.optimizers.items()},
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def _load(stage: Stage, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    device = next(next(iter(stage.parts.values())).parameters()).device
    state = torch.load(path, map_location=device)
    for name, weights in state["parts"].items():
        stage.parts[name].load_state_dict(weights)
    for name, optimizer in stage.optimizers.items():
        if name in state["optimizers"]:
            optimizer.load_state_dict(state["optimizers"][name])
    return state["progress"], state["averages"]
