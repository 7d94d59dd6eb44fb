"""Tools: how the model is told of them, and how its calls are found in the text it writes.

The model calls a tool in its text, as it was trained to:

    Let me look. <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

`CallSplitter` cuts such text, in pieces of any size, into words and calls. The worker is told to speak nothing from
`CALL_BEGIN` on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.settings import Tool, ToolChoice

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
MAX_CALL_CHARS = 64 * 1024

# Word for word what the model was trained with.
_SECTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
_REQUIRED = "\n\nAnswer with at least one function call."
_NAMED = '\n\nAnswer with a call of the function "{name}".'


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that the model wrote."""

    name: str
    arguments: str
    """JSON."""


def write_prompt(instructions: str | None, tools: Sequence[Tool], choice: ToolChoice) -> str | None:
    """Return the system prompt; None: the model's own.

    With choice "none" the model is not told of its tools.
    """
    if not tools or choice == "none":
        return instructions
    signatures = "\n".join(_signature(tool) for tool in tools)
    section = _SECTION.format(signatures=signatures) + _demand(choice)
    return f"{instructions}\n\n{section}" if instructions else section


def write_call(name: str, arguments: str) -> str:
    """Return the text with which the model made a call."""
    try:
        given: Any = json.loads(arguments or "{}")  # Any: whatever JSON the client wrote
    except ValueError:
        given = arguments
    body = json.dumps({"name": name, "arguments": given}, ensure_ascii=False)
    return f"{CALL_BEGIN}\n{body}\n{CALL_END}"


def write_output(output: str) -> str:
    """Return the text in which the model reads a tool's answer."""
    return f"<tool_response>\n{output}\n</tool_response>"


class CallSplitter:
    """Text in pieces of any size to words and calls, in order.

    White space at the beginning, before a call and at the end belongs to nothing and is left out.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_in_call = False

    def push(self, text: str) -> list[str | Call]:
        """Take more text; return what is certain."""
        self._held += text
        found: list[str | Call] = []
        while self._advance(found):
            pass
        return found

    def flush(self) -> list[str | Call]:
        """Return the rest; a call that was cut off is lost unless its JSON is complete."""
        rest, self._held = self._held, ""
        if self._is_in_call:
            self._is_in_call = False
            return _calls(rest)
        rest = rest.rstrip()
        return [rest] if rest else []

    def _advance(self, found: list[str | Call]) -> bool:
        """Move on by one run of words or one call; False if more text is needed for that."""
        if self._is_in_call:
            body, end, rest = self._held.partition(CALL_END)
            if not end and len(body) <= MAX_CALL_CHARS:
                return False
            found += _calls(body)
            self._held, self._is_in_call = rest, False
            return True
        words, begin, rest = self._held.partition(CALL_BEGIN)
        if begin:
            if words := words.rstrip():
                found.append(words)
            self._held, self._is_in_call = rest.lstrip(), True
            return True
        certain = len(words) - _num_uncertain(words)
        if certain:
            found.append(words[:certain])
        self._held = words[certain:]
        return False


def _num_uncertain(words: str) -> int:
    """Characters at the end that may become a marker, and the white space before it or at the end."""
    longest = min(len(words), len(CALL_BEGIN) - 1)
    marker = next((n for n in range(longest, 0, -1) if CALL_BEGIN.startswith(words[-n:])), 0)
    return len(words) - len(words[: len(words) - marker].rstrip())


def _calls(body: str) -> list[str | Call]:
    try:
        call = json.loads(body)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    if not isinstance(name, str) or not name:
        return []
    # Some models write the arguments as a string that holds JSON.
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return [Call(name, written)]


def _signature(tool: Tool) -> str:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def _demand(choice: ToolChoice) -> str:
    if choice == "required":
        return _REQUIRED
    return "" if isinstance(choice, str) else _NAMED.format(name=choice.name)
