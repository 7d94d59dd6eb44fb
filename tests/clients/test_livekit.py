"""LiveKit Agents: `livekit-plugins-openai`'s RealtimeModel in an AgentSession."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients import scripted
from tests.clients.programs import agents, framework

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.programs import Programs, Report
    from tests.e2e.house import House

SCENES = ("greeting", "spoken", "seen", "interrupted", "tool")

if not framework("livekit").exists():
    pytest.skip("make clients", allow_module_level=True)


@pytest.fixture(scope="module")
def programs(server: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    folder, url = tmp_path_factory.mktemp("livekit"), f"http://127.0.0.1:{server.port}/v1"
    with agents("livekit", SCENES, url, folder) as started:
        yield started


def replies(report: Report) -> list[str]:
    return [item["text"] for item in report.of("item") if item["role"] == "assistant"]


def test_an_agent_greets_before_anything_was_said(programs: Programs) -> None:
    report = programs.report("greeting")
    assert replies(report) == [scripted.OTHERWISE.text]
    assert report.of("done")[0]["num_samples"] >= 480


def test_a_spoken_turn_and_a_written_one(programs: Programs) -> None:
    report = programs.report("spoken")
    assert replies(report) == [scripted.HEARD.text, scripted.OTHERWISE.text]
    [written] = [line["text"] for line in report.of("transcript") if line["is_final"]]
    assert written == scripted.WRITTEN_DOWN.text
    assert [line["state"] for line in report.of("user")] == ["speaking", "listening"]


def test_a_spoken_turn_before_a_camera(programs: Programs) -> None:
    assert replies(programs.report("seen")) == [scripted.BOTH.text]


def test_barging_in_leaves_what_was_heard(programs: Programs) -> None:
    report = programs.report("interrupted")
    counted, heard = replies(report)
    assert scripted.COUNTED.text.startswith(counted.strip())
    assert 0 < len(counted) < len(scripted.COUNTED.text)
    assert heard == scripted.HEARD.text
    cut = [item["interrupted"] for item in report.of("item") if item["role"] == "assistant"]
    assert cut == [True, False]


def test_a_tool_is_called_by_voice(programs: Programs) -> None:
    report = programs.report("tool")
    assert [line["place"] for line in report.of("tool")] == ["Oslo"]
    assert replies(report)[-1] == scripted.ANSWERED.text
