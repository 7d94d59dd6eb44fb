"""Tools in the prompt, and calls in the text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.settings import ForcedTool, Tool
from server.tools import MAX_CALL_CHARS, Call, CallSplitter, write_call, write_output, write_prompt

LOOK = Tool("look", "See what is there", {"type": "object", "properties": {}})


def split(*pieces: str) -> list[str | Call]:
    splitter = CallSplitter()
    found: list[str | Call] = []
    for piece in pieces:
        found += splitter.push(piece)
    return found + splitter.flush()


def joined(found: list[str | Call]) -> list[str | Call]:
    """Neighbouring words as one."""
    result: list[str | Call] = []
    for piece in found:
        if isinstance(piece, str) and result and isinstance(result[-1], str):
            result[-1] += piece
        else:
            result.append(piece)
    return result


@given(st.data())
def test_cutting_the_text_changes_nothing(data: st.DataObject) -> None:
    parts = st.sampled_from(
        [
            "Hm. ",
            "<",
            "<tool",
            "a < b ",
            "\n",
            write_call("look", '{"at": "é"}'),
            "</tool_call>",
            "x",
        ]
    )
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert joined(split(*pieces)) == joined(split(text))


def test_words_and_calls_come_apart() -> None:
    call = write_call("look", '{"at": [1, 2]}')
    assert split(f"Let me see.\n{call}\n{call} Done.") == [
        "Let me see.",
        Call("look", '{"at": [1, 2]}'),
        Call("look", '{"at": [1, 2]}'),
        " Done.",
    ]


def test_white_space_at_the_end_is_no_word() -> None:
    assert split("\n ") == []
    assert split("Yes.", " \n") == ["Yes."]


def test_what_may_become_a_call_is_held_back() -> None:
    splitter = CallSplitter()
    assert splitter.push("Yes <tool_ca") == ["Yes"]
    assert splitter.push("bin>") == [" <tool_cabin>"]


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", '{"name": 3}', '{"name": ""}', '{"arguments": {}}', "nonsense", "[" * 5_000],
)
def test_a_call_that_is_none_is_left_out(body: str) -> None:
    assert split(f"a <tool_call>{body}</tool_call>") == ["a"]


def test_a_call_cut_off_behind_its_json_still_counts() -> None:
    assert split('<tool_call>{"name": "look"}') == [Call("look", "{}")]
    assert split('<tool_call>{"name": "lo') == []


def test_arguments_written_as_a_string_are_the_json_they_hold() -> None:
    body = json.dumps({"name": "look", "arguments": '{"a": 1}'})
    assert split(f"<tool_call>{body}</tool_call>") == [Call("look", '{"a": 1}')]


def test_a_call_that_never_ends_does_not_grow_for_ever() -> None:
    splitter = CallSplitter()
    for _ in range(3):
        splitter.push("<tool_call>" + "x" * MAX_CALL_CHARS)
    assert len(splitter._held) <= MAX_CALL_CHARS + len("<tool_call>")


def test_the_prompt_names_the_tools_behind_the_instructions() -> None:
    prompt = write_prompt("Be kind.", (LOOK,), "auto")
    assert prompt is not None
    assert prompt.startswith("Be kind.\n\n# Tools\n")
    [signature] = [line for line in prompt.splitlines() if '"look"' in line]
    assert json.loads(signature) == {
        "type": "function",
        "function": {
            "name": "look",
            "description": "See what is there",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    assert prompt.endswith("</tool_call>")


def test_choices_are_said_in_the_prompt() -> None:
    required = write_prompt("", (LOOK,), "required") or ""
    forced = write_prompt("", (LOOK,), ForcedTool("look")) or ""
    assert required.startswith("# Tools")
    assert "at least one function call" in required
    assert forced.endswith('"look".')


@pytest.mark.parametrize("instructions", ["Be kind.", "", None])
def test_without_tools_to_call_the_prompt_is_the_instructions(instructions: str | None) -> None:
    assert write_prompt(instructions, (), "auto") == instructions
    assert write_prompt(instructions, (LOOK,), "none") == instructions


def test_history_is_written_as_the_model_writes_it() -> None:
    assert split(write_call("look", '{"a": "ü"}')) == [Call("look", '{"a": "ü"}')]
    assert '"ü"' in write_call("look", '{"a": "ü"}')
    assert '"broken"' in write_call("look", "broken")
    assert write_output("42") == "<tool_response>\n42\n</tool_response>"
