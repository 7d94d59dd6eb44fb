"""Pipecat: `OpenAIRealtimeLLMService` in a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients import scripted
from tests.clients.programs import agents, framework

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.programs import Programs, Report
    from tests.e2e.house import House

SCENES = ("spoken", "interrupted", "tool")

if not framework("pipecat").exists():
    pytest.skip("make clients", allow_module_level=True)


@pytest.fixture(scope="module")
def programs(server: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    folder, url = tmp_path_factory.mktemp("pipecat"), f"ws://127.0.0.1:{server.port}/v1/realtime"
    with agents("pipecat", SCENES, url, folder) as started:
        yield started


def said(report: Report, role: str) -> list[str]:
    """What a role said, as the pipeline remembers it."""
    [context] = report.of("context")
    return [
        line["content"]
        for line in context["messages"]
        if line["role"] == role and "content" in line
    ]


def written_down(report: Report) -> list[str]:
    """What the user said. The pipeline remembers it only if it was written down before the reply began."""
    return [line["text"] for line in report.of("transcript")]


def test_a_greeting_a_spoken_turn_and_one_before_a_camera(programs: Programs) -> None:
    report = programs.report("spoken")
    scenes = [scripted.OTHERWISE, scripted.HEARD, scripted.BOTH]
    assert said(report, "assistant") == [scene.text for scene in scenes]
    assert written_down(report) == [scripted.WRITTEN_DOWN.text] * 2
    assert report.of("done")[0]["num_samples"] >= 3 * 480


def test_barging_in_leaves_what_was_heard(programs: Programs) -> None:
    report = programs.report("interrupted")
    assert report.of("InterruptionFrame")
    counted, heard = said(report, "assistant")
    assert scripted.COUNTED.text.startswith(counted)
    assert 0 < len(counted) < len(scripted.COUNTED.text)
    assert heard == scripted.HEARD.text
    assert written_down(report) == [scripted.WRITTEN_DOWN.text]


def test_a_tool_is_called_by_voice(programs: Programs) -> None:
    report = programs.report("tool")
    assert [line["place"] for line in report.of("tool")] == ["Oslo"]
    assert said(report, "assistant")[-1] == scripted.ANSWERED.text
    assert said(report, "tool") == ['{"time": "12:00"}']
