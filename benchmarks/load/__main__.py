"""Command line of the load test: `parley bench`, or `python -m benchmarks.load` without a server at hand."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit, urlunsplit

import typer
from rich.console import Console

from benchmarks.load.caller import CallFault, Line
from benchmarks.load.clips import ClipFault
from benchmarks.load.compare import changes
from benchmarks.load.page import write_page
from benchmarks.load.records import RecordFault, Run, read_run, write_run
from benchmarks.load.run import Load, Target
from benchmarks.load.scenario import SCENARIOS_DIR, Scenario, ScenarioFault, load_scenario
from benchmarks.load.slo import Outcome, Slo, SloFault, Verdict, judge, load_slo, overall
from benchmarks.load.terminal import (
    LiveProgress,
    change_table,
    ratio_table,
    summary_table,
    verdict_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()

DEFAULT_URL = "ws://127.0.0.1:8000/v1/realtime"
DEFAULT_PATH = "/v1/realtime"
USAGE = 2


@app.command()
def main(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]URL", help=f"servers; several take turns in one run [{DEFAULT_URL}]"
        ),
    ] = None,
    scenario: Annotated[str, typer.Option(help="name or file; --list shows the names")] = "voice",
    callers: Annotated[str, typer.Option(help="numbers of callers, one level each")] = "1",
    duration: Annotated[float, typer.Option(min=0, help="seconds per level and server")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="slices in which servers take turns")] = 1,
    turns: Annotated[
        int | None, typer.Option(min=1, help="most turns per caller and round")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help="objectives, name or file: sets the exit status")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="find the most callers that keep the objectives")
    ] = False,
    most: Annotated[int, typer.Option(min=1, help="where the search ends")] = 256,
    out: Annotated[Path | None, typer.Option(help="folder for bench.jsonl and bench.html")] = None,
    against: Annotated[
        Path | None, typer.Option(help="earlier bench.jsonl to compare with")
    ] = None,
    read: Annotated[
        Path | None, typer.Option(help="measure nothing: report on this bench.jsonl")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="PARLEY_KEY", help="of the servers")] = None,
    model: Annotated[str | None, typer.Option(help="model to ask the server for")] = None,
    notes: Annotated[str, typer.Option(help="to be written into the report")] = "",
    seed: Annotated[int, typer.Option(help="of what is said and when")] = 0,
    no_warm_up: Annotated[
        bool, typer.Option("--no-warm-up", help="measure the first turn too")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="list the scenarios and end")] = False,
) -> None:
    """Call a realtime voice server as users do, in real time, and tell how long they wait.

    Exit status: 0 objectives kept (or none given), 1 broken, 2 wrong usage, 3 unproven: nothing measured, or the load
    generator was the bottleneck.
    """
    try:
        if list_:
            _list_scenarios()
            return
        objectives = None if slo is None else load_slo(slo)
        if search and objectives is None:
            raise ValueError("--search needs --slo: what is to be kept?")
        if read is not None:
            run = read_run(read)
        else:
            run = _measure(
                load_scenario(scenario), _targets(urls or [DEFAULT_URL], api_key, model),
                levels=_numbers(callers), duration_s=duration, rounds=rounds, max_turns=turns,
                objectives=objectives if search else None, most=most, notes=notes, seed=seed,
                warms_up=not no_warm_up, out=out,
            )  # fmt: skip
        outcome = _tell(run, objectives, against, out)
    except (ScenarioFault, SloFault, ClipFault, RecordFault, CallFault, ValueError) as fault:
        console.print(f"[red]error:[/] {fault}", highlight=False)
        raise typer.Exit(Outcome.UNPROVEN if isinstance(fault, CallFault) else USAGE) from None
    raise typer.Exit(outcome)


def _measure(
    scenario: Scenario,
    targets: list[Target],
    *,
    levels: list[int],
    duration_s: float,
    rounds: int,
    max_turns: int | None,
    objectives: Slo | None,
    most: int,
    notes: str,
    seed: int,
    warms_up: bool,
    out: Path | None,
) -> Run:
    run = Run(
        scenario=scenario.name,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        targets={target.name: target.line.url for target in targets},
        seed=seed,
        notes=notes,
    )

    async def measure() -> None:
        if warms_up:
            await load.warm_up(targets)
        # Nothing the collector could find is worth the pause it makes.
        gc.collect()
        gc.freeze()
        gc.disable()
        if objectives is not None:
            kept, tried = await load.search(targets[0], objectives, duration_s, most)
            console.print(
                f"most callers that keep {objectives.name}: [bold]{kept}[/] (tried {tried})"
            )
            return
        for num_callers in levels:
            await load.level(targets, num_callers, duration_s)

    with LiveProgress(console) as progress:
        load = Load.prepare(scenario, run, progress, rounds=rounds, max_turns=max_turns)
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(measure())
        finally:
            gc.enable()
            if out is not None and run.levels:
                out.mkdir(parents=True, exist_ok=True)
                write_run(run, out / "bench.jsonl")
    return run


def _tell(run: Run, objectives: Slo | None, against: Path | None, out: Path | None) -> Outcome:
    verdicts = _verdicts(run, objectives) if objectives is not None else {}
    earlier = None if against is None else read_run(against)
    console.print(summary_table(run))
    if len(run.targets) > 1:
        console.print(ratio_table(run))
    if earlier is not None:
        console.print(change_table(changes(earlier, run), earlier.started_at, run.started_at))
    if verdicts:
        console.print(verdict_table(verdicts))
    for (target, num_callers), verdict in verdicts.items():
        for reason in verdict.reasons:
            console.print(f"{target}, {num_callers} callers: {reason}", highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_page(
            run, out / "bench.html", objectives=objectives, verdicts=verdicts, earlier=earlier
        )
        console.print(f"wrote {out / 'bench.jsonl'} and {out / 'bench.html'}", highlight=False)
    if not run.turns:
        return Outcome.UNPROVEN
    return overall(list(verdicts.values())) if verdicts else Outcome.KEPT


def _verdicts(run: Run, objectives: Slo) -> dict[tuple[str, int], Verdict]:
    """The first target's: objectives are for the server under test, not for its peers."""
    first = next(iter(run.targets))
    found = {}
    for target, num_callers in run.steps:
        level = run.level(target, num_callers)
        if target == first and level is not None:
            turns = run.of(target, num_callers)
            found[target, num_callers] = judge(objectives, turns, level)
    return found


def _targets(urls: list[str], api_key: str | None, model: str | None) -> list[Target]:
    targets = []
    for given in urls:
        name, equals, url = given.partition("=")
        if not equals or "://" in name:
            name, url = "server", given
        targets.append(Target(name, Line(websocket_url(url), api_key, model)))
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise ValueError("several servers need names: parley bench ours=ws://… theirs=ws://…")
    return targets


def websocket_url(given: str) -> str:
    """Complete an address: `localhost:8000` and `http://host/` become the realtime path on ws. Raises ValueError."""
    parts = urlsplit(given if "://" in given else f"ws://{given}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"{given!r} is no address; expected something like {DEFAULT_URL}")
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def _numbers(given: str) -> list[int]:
    try:
        numbers = [int(word) for word in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"--callers is {given!r}; expected numbers such as 1,2,4,8")
    return list(dict.fromkeys(numbers))


def _list_scenarios() -> None:
    for path in sorted(SCENARIOS_DIR.glob("*.toml")):
        described = load_scenario(path.stem)
        console.print(f"[bold]{path.stem}[/]  {' '.join(described.description.split())}")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # on platforms it does not support
        return asyncio.new_event_loop
    return uvloop.new_event_loop


if __name__ == "__main__":
    app()
