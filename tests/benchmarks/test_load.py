"""The whole tool against a server that answers by script: real sockets, real speech, real time."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.load import __main__ as command
from benchmarks.load.caller import CallFault, Line
from benchmarks.load.lag import LagProbe
from benchmarks.load.page import write_page
from benchmarks.load.records import Run, read_run, write_run
from benchmarks.load.run import Load, Target
from benchmarks.load.scenario import read_scenario
from benchmarks.load.slo import read_slo
from benchmarks.peers.speaking import Sound, Text, run_server
from tests.benchmarks.making import STALLED, level, run, turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from pathlib import Path

    from benchmarks.load.records import TurnRecord

THINKING_S = 0.15
TONE = (8000 * np.sin(np.arange(24_000 // 5) * 0.1)).astype(np.int16).tobytes()  # 200 ms
BRISK = """
ramp_s = 0.2
reply_timeout_s = 5
[[callers]]
clips = ["short-hear-me"]
silence_duration_ms = 200
think_ms = [50, 50]
"""


class Parrot:
    """Says the same after the same time."""

    def __init__(self, num_pieces: int = 2) -> None:
        self.num_pieces = num_pieces

    def answer(self, pcm: bytes, history: list[dict[str, Any]]) -> Generator[Text | Sound]:
        time.sleep(THINKING_S)
        yield Text("Good day.")
        for _ in range(self.num_pieces):
            yield Sound(TONE)
            time.sleep(0.02)


class Silent:
    """Never tells anything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@contextlib.asynccontextmanager
async def listening(answerer: Parrot) -> AsyncIterator[Target]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run_server(answerer, "127.0.0.1", 0, port))
    try:
        url = f"ws://127.0.0.1:{await port}/v1/realtime"
        yield Target("peer", Line(url))
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def measure(text: str, num_callers: int, answerer: Parrot, max_turns: int, **options: Any) -> Run:
    async def calls() -> Run:
        async with listening(answerer) as target:
            made = run([], [], targets={"peer": target.line.url})
            scenario = read_scenario(text, "test.toml")
            load = Load.prepare(scenario, made, Silent(), max_turns=max_turns, **options)
            await load.level([target], num_callers, 60)
            return made

    return asyncio.run(calls())


@pytest.mark.slow
def test_two_callers_are_answered_and_every_stage_is_measured() -> None:
    made = measure(BRISK, 2, Parrot(), max_turns=2)
    assert len(made.turns) == 4
    assert {t.caller for t in made.turns} == {0, 1}
    for t in made.turns:
        assert (t.status, t.errors, t.text, t.audio_s) == ("completed", [], "Good day.", 0.4)
        assert t.decided_ms and t.first_text_ms and t.first_audio_ms and t.audible_ms
        # The silence that was asked for cannot be known sooner; the rest is our script's and the machine's time.
        assert 150 < t.decided_ms < t.first_text_ms <= t.first_audio_ms <= t.audible_ms
        assert t.first_audio_ms - t.decided_ms > 1000 * THINKING_S * 0.9
    generator = made.levels[0].generator
    assert generator.lag_max_ms > 0 and generator.cpu_share > 0
    assert made.levels[0].call_errors == []


@pytest.mark.slow
def test_binary_frames_pictures_and_the_button_work_too() -> None:
    text = BRISK.replace("ramp_s", 'transport = "binary"\nplayback_acks = true\nramp_s')
    text += 'turn_detection = "none"\nvideo_fps = 5\n'
    made = measure(text.replace("silence_duration_ms = 200\n", ""), 1, Parrot(), max_turns=1)
    (only,) = made.turns
    assert only.status == "completed" and only.errors == []
    assert (
        only.decided_ms is not None
    )  # by the button alone: this server was told not to listen for ends


@pytest.mark.slow
def test_who_interrupts_by_voice_is_timed_until_the_ear_is_silent() -> None:
    text = BRISK + "interrupt_share = 1\ninterrupt_after_ms = [100, 100]\n"
    made = measure(text, 1, Parrot(num_pieces=40), max_turns=2)
    interrupted = made.turns[0]
    assert interrupted.interrupted_by == "voice" and not interrupted.is_failed
    assert interrupted.silence_ms is not None and interrupted.silence_ms > 0
    assert interrupted.heard_s is not None and 0.05 < interrupted.heard_s < 8  # of the reply


@pytest.mark.slow
def test_who_has_heard_enough_presses_stop() -> None:
    text = BRISK + "listen_at_most_s = 0.3\nread_bytes_per_s = 200_000\n"
    made = measure(text, 1, Parrot(num_pieces=40), max_turns=1)
    (only,) = made.turns
    assert (only.status, only.interrupted_by, only.is_failed) == ("cancelled", "enough", False)


class Broken(Parrot):
    """Dies of the first turn."""

    def answer(self, pcm: bytes, history: list[dict[str, Any]]) -> Generator[Text | Sound]:
        raise RuntimeError("out of answers")


@pytest.mark.slow
def test_a_line_that_breaks_fails_the_turn_and_is_told() -> None:
    made = measure(BRISK, 1, Broken(), max_turns=1)
    (only,) = made.turns
    assert only.is_failed and "the server hung up" in only.errors[0]
    assert made.levels[0].call_errors == only.errors


@pytest.mark.slow
def test_the_search_calls_until_the_objectives_break() -> None:
    async def search(at_most: int) -> tuple[int, list[int]]:
        async with listening(Parrot()) as target:
            made = run([], [], targets={"peer": target.line.url})
            load = Load.prepare(read_scenario(BRISK, "test.toml"), made, Silent(), max_turns=1)
            return await load.search(target, read_slo(SLO.format(at_most), "goals.toml"), 60, 2)

    assert asyncio.run(search(5000)) == (2, [1, 2])
    assert asyncio.run(search(1)) == (0, [1])


def test_nobody_there_is_a_broken_call_and_no_turn() -> None:
    async def calls() -> Run:
        made = run([], [], targets={"nobody": "ws://127.0.0.1:1"})
        load = Load.prepare(read_scenario(BRISK, "test.toml"), made, Silent())
        target = Target("nobody", Line("ws://127.0.0.1:1/v1/realtime"))
        with pytest.raises(CallFault, match="nobody"):
            await load.warm_up([target])
        await load.level([target], 1, 0.1)
        return made

    made = asyncio.run(calls())
    assert made.turns == [] and "Connect" in made.levels[0].call_errors[0]


def test_a_stalled_loop_is_reported() -> None:
    async def stall() -> LagProbe:
        probe = LagProbe(time.perf_counter)
        probing = asyncio.create_task(probe.run())
        for _ in range(10):
            await asyncio.sleep(0.02)
        begun_s = time.perf_counter()
        time.sleep(0.3)  # noqa: ASYNC251  # the fault that must be found
        ended_s = time.perf_counter()
        await asyncio.sleep(0.02)
        probing.cancel()
        assert probe.worst_between(begun_s, ended_s) > 0.25
        return probe

    report = asyncio.run(stall()).report()
    assert report.lag_max_ms > 250
    assert any("event loop lagged" in words for words in report.complaints)


def test_late_sound_and_a_full_core_are_complaints() -> None:
    probe = LagProbe(time.perf_counter, late_s=[0.5] * 10)
    assert any("late" in words for words in probe.report().complaints)
    busy = replace(level().generator, cpu_share=0.95)
    assert any("95%" in words for words in busy.complaints)


# ---- the command


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command.app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


SLO = '[[objective]]\nfigure = "first_audio_ms"\nat = "p95"\nat_most = {}\n'


@pytest.mark.parametrize(
    ("limit", "stalled", "code"), [(800, False, 0), (600, False, 1), (600, True, 3), (800, True, 0)]
)
def test_the_exit_status_is_the_verdict(
    tmp_path: Path, limit: int, stalled: bool, code: int
) -> None:
    levels = [level(generator=STALLED)] if stalled else [level()]
    write_run(run([turn() for _ in range(5)], levels), tmp_path / "bench.jsonl")
    (tmp_path / "goals.toml").write_text(SLO.format(limit))
    status, output = invoke(
        "--read", str(tmp_path / "bench.jsonl"), "--slo", str(tmp_path / "goals.toml")
    )
    assert status == code, output
    assert ("lagged" in output) is (code == 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "voise"], "did you mean 'voice'"),
        (["--callers", "many"], "expected numbers"),
        (["ftp://x"], "no address"),
        (["ws://a", "ws://b"], "need names"),
        (["--search"], "needs --slo"),
        (["--slo", "none"], "no objectives 'none'"),
        (["--read", "/nowhere/bench.jsonl"], "No such file"),
    ],
)
def test_wrong_usage_is_told_and_exits_with_2(arguments: list[str], words: str) -> None:
    status, output = invoke(*arguments)
    assert status == 2 and words in " ".join(output.split())


def test_a_server_that_is_not_there_is_unproven(tmp_path: Path) -> None:
    status, output = invoke("ws://127.0.0.1:1")
    assert status == 3 and "Connect" in output


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "ws://localhost:8000/v1/realtime"),
        ("https://example.com/", "wss://example.com/v1/realtime"),
        ("ws://h:1/openai/realtime?api-version=1", "ws://h:1/openai/realtime?api-version=1"),
    ],
)
def test_addresses_are_completed(given: str, url: str) -> None:
    assert command.websocket_url(given) == url


def test_two_runs_are_compared(tmp_path: Path) -> None:
    before = [turn(first_audio_ms=700.0 + k) for k in range(30)]
    after = [turn(first_audio_ms=900.0 + k) for k in range(30)]
    for name, turns in (("a", before), ("b", after)):
        write_run(run(turns, [level()]), tmp_path / f"{name}.jsonl")
    status, output = invoke(
        "--read",
        str(tmp_path / "b.jsonl"),
        "--against",
        str(tmp_path / "a.jsonl"),
        "--out",
        str(tmp_path),
    )
    assert status == 0 and "worse" in output
    assert "worse" in (tmp_path / "bench.html").read_text()


# ---- the report


def test_the_report_needs_nothing_else_and_shows_what_people_said_as_text(tmp_path: Path) -> None:
    turns = [
        turn(text="<script>alert(1)</script>", num_callers=n) for n in (1, 2) for _ in range(3)
    ]
    turns.append(turn(num_callers=2, status="failed", errors=["<b>no</b>"], first_audio_ms=None))
    made = run(turns, [level(), level(num_callers=2, generator=STALLED)])
    slo = read_slo(SLO.format(600), "goals.toml")
    write_page(made, tmp_path / "x.html", objectives=slo, verdicts={}, earlier=None)
    page = (tmp_path / "x.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>no</b>" not in page
    assert not re.search(r"""(src|href)=|@import|url\(""", page)
    assert page.count("<svg") == page.count("</svg>") >= 5
    assert "bottleneck" in page and "nan" not in page.lower().replace("nance", "")


def test_a_report_of_nothing_but_failures_can_be_read(tmp_path: Path) -> None:
    dead: list[TurnRecord] = [
        turn(
            status="no reply",
            decided_ms=None,
            first_text_ms=None,
            first_audio_ms=None,
            audible_ms=None,
            packets=[],
        )
    ]
    write_page(
        run(dead, [level()]), tmp_path / "x.html", objectives=None, verdicts={}, earlier=None
    )
    assert "never" in (tmp_path / "x.html").read_text()


def test_records_of_a_real_run_can_be_read_again(tmp_path: Path) -> None:
    made = run([turn(audible_ms=None)], [level()])
    write_run(made, tmp_path / "r.jsonl")
    assert read_run(tmp_path / "r.jsonl") == made
