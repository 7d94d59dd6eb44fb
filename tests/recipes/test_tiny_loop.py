"""The training loop: stopping and resuming changes nothing, the best weights are kept, rules end a run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recipes.tiny import loop

if TYPE_CHECKING:
    import numpy as np


class Line:
    """Fit y = 2 x with noise drawn from the step's own generator."""

    shipped: tuple[str, ...] = ("line",)
    lr = 0.1

    def __init__(self, scores: list[float] | None = None) -> None:
        torch.manual_seed(0)
        self.line = nn.Linear(1, 1)
        self.parts: dict[str, nn.Module] = {"line": self.line}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "line": torch.optim.AdamW(self.line.parameters(), 0.1)
        }
        self.scores = scores

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        x = torch.from_numpy(rng.standard_normal((8, 1))).float()
        loss = (self.line(x) - 2 * x).square().mean()
        self.optimizers["line"].zero_grad()
        loss.backward()
        self.optimizers["line"].step()
        return {"loss": loss.item()}

    def validate(self) -> dict[str, float]:
        return {"score": self.scores.pop(0) if self.scores else abs(float(self.line.weight) - 2)}


def limits(steps: int, patience: int = 99) -> loop.Budget:
    return loop.Budget(steps, 1e9, patience, report_every=2, validate_every=3)


def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    straight, first, second = Line(), Line(), Line()
    loop.train(straight, tmp_path / "straight", limits(12))
    loop.train(first, tmp_path / "stopped", limits(6))
    loop.train(second, tmp_path / "stopped", limits(12))
    assert torch.equal(straight.line.weight, second.line.weight)
    a = loop.load_average(tmp_path / "straight", "line")
    b = loop.load_average(tmp_path / "stopped", "line")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_best_average_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    stage = Line(scores=[3.0, 1.0, 2.0, 2.0, 0.5])
    loop.train(stage, tmp_path, limits(15, patience=2))
    report = (tmp_path / "log.jsonl").read_text()
    assert '"step": 12' in report and '"step": 15' not in report
    best = loop.load_average(tmp_path, "line")
    newest = loop.load_average(tmp_path, "line", best=False)
    assert not torch.equal(best["weight"], newest["weight"])


def test_the_rate_falls_to_nearly_nothing_over_the_steps_of_this_call(tmp_path: Path) -> None:
    rates = []

    class Watched(Line):
        def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
            rates.append(self.lr)
            return super().train_step(step, rng)

    loop.train(Watched(), tmp_path, limits(4))
    loop.train(Watched(), tmp_path, dataclasses.replace(limits(14), anneal=True))
    assert rates[:5] == [0.1] * 5  # not asked for; then the first step of the second call
    assert all(b < a for a, b in zip(rates[4:], rates[5:], strict=False))
    assert rates[-1] < 0.01


def test_a_request_to_stop_saves_first(tmp_path: Path) -> None:
    class Stopped(Line):
        def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
            if step == 4:
                signal.raise_signal(signal.SIGTERM)
            return super().train_step(step, rng)

    loop.train(Stopped(), tmp_path, limits(12))
    assert torch.load(tmp_path / "state.pt")["progress"]["step"] == 5


def test_a_new_run_may_start_from_shipped_weights(tmp_path: Path) -> None:
    shipped = {"a.prefix.weight": torch.tensor([[5.0]]), "a.prefix.bias": torch.tensor([1.0])}
    save_file(shipped, tmp_path / "shipped.safetensors")
    stage = Line()
    loop.start_from(stage, [tmp_path / "shipped.safetensors"])
    assert stage.line.weight.item() == 5.0
    assert stage.line.bias.item() == 1.0
    with pytest.raises(ValueError, match="one file for each of line"):
        loop.start_from(stage, [tmp_path / "shipped.safetensors"] * 2)


def test_two_members_take_the_step_of_their_mean_gradient() -> None:
    member = Path(__file__).with_name("team_member.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(member)], check=True, env={**os.environ, "PYTHONPATH": "."})
