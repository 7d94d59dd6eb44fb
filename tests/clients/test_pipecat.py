"""Pipecat: `OpenAIRealtimeLLMService` in a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients import scripted
from tests.clients.material import KEY, turn
from tests.clients.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.programs import Report
    from tests.e2e.house import House

FOLDER = Path(__file__).parent / "pipecat"
PYTHON = Path(__file__).parents[2] / "build" / "clients" / "pipecat" / "bin" / "python"
SCENES = ("spoken", "interrupted", "tool")
RATE = 24_000

if not PYTHON.exists():
    pytest.skip("make clients", allow_module_level=True)


@pytest.fixture(scope="module")
def programs(server: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    sound = tmp_path_factory.mktemp("pipecat") / "turn.pcm"
    sound.write_bytes(turn(RATE))
    url = f"ws://127.0.0.1:{server.port}/v1/realtime"
    started = Programs(
        {scene: [str(PYTHON), "program.py", scene, url, KEY, str(sound)] for scene in SCENES},
        folder=FOLDER,
    )
    try:
        yield started
    finally:
        started.close()


def conversation(report: Report) -> list[tuple[str, object]]:
    """What the pipeline remembers."""
    [context] = report.of("context")
    return [(line["role"], line.get("content")) for line in context["messages"]]


def test_a_greeting_a_spoken_turn_and_one_before_a_camera(programs: Programs) -> None:
    report = programs.report("spoken")
    assert conversation(report) == [
        ("user", "Good morning."),
        ("assistant", scripted.OTHERWISE.text),
        ("user", scripted.WRITTEN_DOWN.text),
        ("assistant", scripted.HEARD.text),
        ("user", scripted.WRITTEN_DOWN.text),
        ("assistant", scripted.BOTH.text),
    ]
    assert report.of("done")[0]["num_samples"] >= 3 * 480


def test_barging_in_leaves_what_was_heard(programs: Programs) -> None:
    report = programs.report("interrupted")
    assert report.of("InterruptionFrame")
    opening, counted, spoken, heard = conversation(report)
    assert opening == ("user", "Please count.")
    assert scripted.COUNTED.text.startswith(str(counted[1]))
    assert 0 < len(str(counted[1])) < len(scripted.COUNTED.text)
    assert spoken == ("user", scripted.WRITTEN_DOWN.text)
    assert heard == ("assistant", scripted.HEARD.text)


def test_a_tool_is_called_by_voice(programs: Programs) -> None:
    report = programs.report("tool")
    assert [line["place"] for line in report.of("tool")] == ["Oslo"]
    assert conversation(report)[-1] == ("assistant", scripted.ANSWERED.text)
    assert ("tool", '{"time": "12:00"}') in conversation(report)
