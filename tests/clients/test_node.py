"""Clients in Node: `@openai/agents-realtime` and the `openai` npm package, over TLS with our own certificate."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.tls import self_signed
from tests.clients import scripted
from tests.clients.material import KEY, turn
from tests.clients.programs import Programs
from tests.clients.serving import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.programs import Line, Report

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
RATE = 24_000

if NODE is None:
    pytest.skip("needs Node 20 or newer; see https://nodejs.org", allow_module_level=True)
if not (FOLDER / "node_modules").is_dir():
    pytest.skip("make clients", allow_module_level=True)

AGENT = ("spoken", "interrupted", "tool")
PACKAGE = ("ws", "websocket", "beta-ws", "beta-websocket")


@pytest.fixture(scope="module")
def programs(scripted_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    folder = tmp_path_factory.mktemp("node")
    now = datetime.datetime.now(datetime.UTC)
    certificate, key = self_signed(folder / "tls", ["localhost", "127.0.0.1"], now)
    sound = folder / "turn.pcm"
    sound.write_bytes(turn(RATE))
    server = serve(scripted_dir, tls_cert=certificate, tls_key=key)
    started = None
    try:
        server.wait_ready()
        place = f"127.0.0.1:{server.port}/v1"
        scenes = dict.fromkeys(AGENT, ("agent.mjs", f"wss://{place}/realtime"))
        scenes |= dict.fromkeys(PACKAGE, ("sdk.mjs", f"https://{place}"))
        assert NODE is not None
        started = Programs(
            {
                # Node 20 has a WebSocket like a browser's, but hides it.
                scene: [NODE, "--experimental-websocket", script, scene, url, KEY, str(sound)]
                for scene, (script, url) in scenes.items()
            },
            folder=FOLDER,
            environment={"NODE_EXTRA_CA_CERTS": str(certificate)},
        )
        yield started
    finally:
        if started is not None:
            started.close()
        server.close()


def said(history: list[Line], role: str) -> list[str]:
    """What a role said, as an agent's history has it."""
    return [
        part.get("transcript") or part.get("text") or ""
        for item in history
        if item["type"] == "message" and item["role"] == role
        for part in item["content"]
    ]


def types(report: Report) -> list[str]:
    """Of the server's events."""
    return [line["type"] for line in report.of("event")]


def test_an_agent_hears_and_answers(programs: Programs) -> None:
    report = programs.report("spoken")
    [last] = report.of("history")
    assert said(last["history"], "assistant") == [scripted.HEARD.text]
    assert said(last["history"], "user") == [scripted.WRITTEN_DOWN.text]
    assert last["numSoundBytes"] >= 2 * 480
    kinds = report.kinds()
    order = ["agent_start", "audio_start", "audio_stopped", "agent_end"]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    assert "conversation.item.retrieved" in types(report)


def test_an_agent_is_interrupted_and_remembers_what_was_heard(programs: Programs) -> None:
    report = programs.report("interrupted")
    assert report.of("audio_interrupted")
    [last] = report.of("history")
    counted, heard = said(last["history"], "assistant")
    assert heard == scripted.HEARD.text
    assert scripted.COUNTED.text.startswith(counted) and 0 < len(counted)
    events = report.of("event")
    [truncated] = [e["event"] for e in events if e["type"] == "conversation.item.truncated"]
    assert 1000 <= truncated["audio_end_ms"] <= 8000
    [cancelled] = [
        e["event"]["response"]
        for e in events
        if e["type"] == "response.done" and e["event"]["response"]["status"] == "cancelled"
    ]
    whole = cancelled["output"][0]["content"][0]["transcript"]
    assert len(counted) < len(whole)


def test_an_agents_tool_is_called_by_voice(programs: Programs) -> None:
    report = programs.report("tool")
    assert [line["place"] for line in report.of("tool")] == ["Oslo"]
    assert [line["result"] for line in report.of("agent_tool_end")] == ["12:00"]
    [last] = report.of("history")
    [call] = [item for item in last["history"] if item["type"] == "function_call"]
    assert (call["name"], call["output"], call["status"]) == (scripted.TOOL, "12:00", "completed")
    assert said(last["history"], "assistant") == [scripted.ANSWERED.text]


@pytest.mark.parametrize("scene", PACKAGE)
def test_a_spoken_turn_with_the_openai_package(programs: Programs, scene: str) -> None:
    report = programs.report(scene)
    [done] = report.of("done")
    [item] = done["response"]["output"]
    assert item["content"][0]["transcript"] == scripted.HEARD.text
    codes = done["response"]["usage"]["output_token_details"]["audio_tokens"]
    assert done["numSoundBytes"] == 2 * 480 * codes > 0
    name = "response.audio.delta" if "beta" in scene else "response.output_audio.delta"
    assert name in types(report)
