"""docs/clients.md names the versions that the tests ran with."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_versions_in_the_document_are_the_tested_ones() -> None:
    text = (ROOT / "docs" / "clients.md").read_text()
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    expected = {name: pins[name] for name in ("openai", "dashscope", "websockets")}
    node = json.loads((Path(__file__).parent / "node" / "package.json").read_text())["dependencies"]
    expected |= {"openai for Node": node["openai"], "agents": node["@openai/agents-realtime"]}
    for name in ("livekit", "pipecat"):
        pinned = (Path(__file__).parent / name / "requirements.txt").read_text()
        expected[name] = re.findall(r"==(\S+)", pinned)[0]
    missing = {name: version for name, version in expected.items() if f" {version} " not in table}
    assert not missing
