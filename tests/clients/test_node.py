"""Clients in Node: `@openai/agents-realtime` and the `openai` npm package, over TLS with our own certificate."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.tls import self_signed
from tests.clients import scripted
from tests.clients.material import KEY, turn
from tests.e2e.house import House

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
RATE = 24_000
LIMIT_S = 90

if NODE is None:
    pytest.skip("needs Node 20 or newer; see https://nodejs.org", allow_module_level=True)
if not (FOLDER / "node_modules").is_dir():
    pytest.skip("npm install --prefix tests/clients/node", allow_module_level=True)

Line = dict[str, Any]


class Program:
    """A run of one of the programs in `node/`."""

    def __init__(self, server: House, certificate: Path, sound: Path, script: str, *words: str):
        assert NODE is not None
        address = f"127.0.0.1:{server.port}/v1"
        scene, *rest = words
        url = f"https://{address}" if script == "sdk.mjs" else f"wss://{address}/realtime"
        done = subprocess.run(
            [NODE, "--experimental-websocket", script, scene, url, KEY, str(sound), *rest],
            cwd=FOLDER,
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(certificate)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        self.lines: list[Line] = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-3000:]}"
        assert not self.of("error"), self.of("error")

    def of(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]

    def events(self) -> list[str]:
        return [line["type"] for line in self.of("event")]


class Node:
    """A server that Node's clients accept, and what they say to it."""

    def __init__(self, server: House, certificate: Path, sound: Path) -> None:
        self.server, self.certificate, self.sound = server, certificate, sound

    def run(self, script: str, *words: str) -> Program:
        return Program(self.server, self.certificate, self.sound, script, *words)


@pytest.fixture(scope="module")
def node(scripted_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    now = datetime.datetime.now(datetime.UTC)
    certificate, key = self_signed(folder / "tls", ["localhost", "127.0.0.1"], now)
    sound = folder / "turn.pcm"
    sound.write_bytes(turn(RATE))
    made = House(
        ["--dtype", "fp32", "--num-lanes", "8", "--context-tokens", "4096"],
        model=scripted_dir,
        api_keys=KEY,
        tls_cert=certificate,
        tls_key=key,
    )
    try:
        yield Node(made.wait_ready(), certificate, sound)
    finally:
        made.close()


def said(history: list[Line], role: str) -> list[str]:
    """What a role said, as an agent's history has it."""
    return [
        part.get("transcript") or part.get("text") or ""
        for item in history
        if item["type"] == "message" and item["role"] == role
        for part in item["content"]
    ]


def test_an_agent_hears_and_answers(node: Node) -> None:
    program = node.run("agent.mjs", "spoken")
    [last] = program.of("history")
    assert said(last["history"], "assistant") == [scripted.HEARD.text]
    assert said(last["history"], "user") == [scripted.WRITTEN_DOWN.text]
    assert last["numSoundBytes"] >= 2 * 480
    kinds = [line["kind"] for line in program.lines]
    order = ["agent_start", "audio_start", "audio_stopped", "agent_end"]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    assert "conversation.item.retrieved" in program.events()


def test_an_agent_is_interrupted_and_remembers_what_was_heard(node: Node) -> None:
    program = node.run("agent.mjs", "interrupted")
    assert program.of("audio_interrupted")
    [last] = program.of("history")
    counted, heard = said(last["history"], "assistant")
    assert heard == scripted.HEARD.text
    assert scripted.COUNTED.text.startswith(counted) and 0 < len(counted)
    events = program.of("event")
    [truncated] = [e["event"] for e in events if e["type"] == "conversation.item.truncated"]
    assert 1000 <= truncated["audio_end_ms"] <= 8000
    [cancelled] = [
        e["event"]["response"]
        for e in events
        if e["type"] == "response.done" and e["event"]["response"]["status"] == "cancelled"
    ]
    whole = cancelled["output"][0]["content"][0]["transcript"]
    assert len(counted) < len(whole)


def test_an_agents_tool_is_called_by_voice(node: Node) -> None:
    program = node.run("agent.mjs", "tool")
    assert [line["place"] for line in program.of("tool")] == ["Oslo"]
    assert [line["result"] for line in program.of("agent_tool_end")] == ["12:00"]
    [last] = program.of("history")
    [call] = [item for item in last["history"] if item["type"] == "function_call"]
    assert (call["name"], call["output"], call["status"]) == (scripted.TOOL, "12:00", "completed")
    assert said(last["history"], "assistant") == [scripted.ANSWERED.text]


@pytest.mark.parametrize("scene", ["ws", "websocket", "beta-ws", "beta-websocket"])
def test_a_spoken_turn_with_the_openai_package(node: Node, scene: str) -> None:
    program = node.run("sdk.mjs", scene)
    [done] = program.of("done")
    [item] = done["response"]["output"]
    assert item["content"][0]["transcript"] == scripted.HEARD.text
    codes = done["response"]["usage"]["output_token_details"]["audio_tokens"]
    assert done["numSoundBytes"] == 2 * 480 * codes > 0
    name = "response.audio.delta" if "beta" in scene else "response.output_audio.delta"
    assert name in program.events()
