"""`docs/protocol.md` says what the code does."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest

from server.dialect import Dialect
from server.events import CHUNK_TYPES, ClientEvent, parse_text
from server.render import FLAT_NAMES, NAMES
from server.settings_parsing import FORMATS, RESPONSE_READERS, SESSION_READERS
from tests.server.examples import CLIENT_EXAMPLES, DOCUMENT, SERVER_EXAMPLES, fill

TEXT = DOCUMENT.read_text(encoding="utf-8")


def messages(name: str) -> list[dict[str, object]]:
    """The objects of an example block; a line that begins with a brace begins one."""
    _, _, rest = TEXT.partition(f"<!-- examples: {name} -->\n```json\n")
    block, _, _ = rest.partition("\n```")
    return [json.loads(message) for message in re.split(r"\n(?=\{)", block)]


def settings_table() -> dict[str, str]:
    """Rows by everything that stands in quotes in their first two columns."""
    rows: dict[str, str] = {}
    for row in re.findall(
        r"^\| `.*", TEXT.partition("## Settings")[2].partition("## Client")[0], re.M
    ):
        nested, flat = row.split("|")[1:3]
        rows |= dict.fromkeys(re.findall(r"`([^`]+)`", nested + flat), nested + flat)
    return rows


def test_the_examples_are_what_the_code_renders() -> None:
    assert TEXT == fill(TEXT), "run python -m tests.server.examples"


def test_every_client_event_is_shown_and_is_one() -> None:
    shown = messages("client")
    assert {message["type"] for message in shown} == set(CLIENT_EXAMPLES)
    assert len(shown) == len(get_args(ClientEvent))
    for message in shown:
        parse_text(json.dumps(message))


def test_every_server_event_is_shown() -> None:
    shown = [message["type"] for message in messages("server")]
    names = [NAMES[type(event)] for event in SERVER_EXAMPLES]
    assert shown == names and set(shown) == set(NAMES.values())
    assert {message["type"] for message in messages("beta")} <= {*FLAT_NAMES.values(), *shown}


def test_the_settings_table_has_every_setting() -> None:
    table = settings_table()
    for path in SESSION_READERS:
        # Video is merged as a whole; the audio paths are written out.
        assert ".".join(path) in table, path
    for path in RESPONSE_READERS:
        assert "°" in table[".".join(path)], path
    assert set(table) <= {".".join(path) for path in SESSION_READERS}


@pytest.mark.parametrize("word", [*FORMATS, *CHUNK_TYPES, *Dialect])
def test_values_are_named(word: str) -> None:
    assert f"`{word}`" in TEXT or f'"{word}"' in TEXT
