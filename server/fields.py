"""Readers of JSON values that strangers wrote.

Each returns the value or raises a `ClientError` that names where it stood (`where`) and never what it was.
"""

from __future__ import annotations

import math
from typing import NoReturn, TypeVar

import msgspec
import pybase64

from streaming.errors import ClientError

ChoiceT = TypeVar("ChoiceT", bound=str)

LARGEST_WHOLE = 2**53
"""Beyond it JavaScript cannot count."""


def refuse(where: str, expected: str) -> NoReturn:
    """Raise `invalid_value` for the field at `where`."""
    raise ClientError(
        "invalid_value", f"Invalid value for '{where}': expected {expected}.", param=where
    )


def require(members: dict[str, object], name: str, where: str) -> object:
    """Return a member that must be there.

    Raises:
        ClientError: it is absent or null.
    """
    if (value := members.get(name)) is not None:
        return value
    raise ClientError(
        "missing_required_parameter",
        f"Missing required parameter: '{where}.{name}'.",
        param=f"{where}.{name}",
    )


def read_object(value: object, where: str) -> dict[str, object]:
    """Return a JSON object."""
    if isinstance(value, dict):
        return value
    refuse(where, "an object")


def read_list(value: object, where: str, most: int) -> list[object]:
    """Return a JSON array of at most `most` elements."""
    if not isinstance(value, list):
        refuse(where, "an array")
    if len(value) > most:
        refuse(where, f"at most {most} elements")
    return value


def read_text(value: object, where: str, most_bytes: int) -> str:
    """Return a string that takes at most `most_bytes` when it is written as JSON: so much may come back in an event."""
    if not isinstance(value, str):
        refuse(where, "a string")
    # A character takes at most six bytes, so most texts need no second look.
    if 6 * len(value) > most_bytes and text_bytes(value) > most_bytes:
        refuse(where, f"at most {most_bytes} bytes of text")
    return value


def text_bytes(text: str) -> int:
    """Return how many bytes a text takes in JSON."""
    return len(msgspec.json.encode(text)) - 2


def read_name(value: object, where: str, most: int) -> str:
    """Return a string of 1 to `most` characters."""
    if not isinstance(value, str):
        refuse(where, "a string")
    if not 1 <= len(value) <= most:
        refuse(where, f"a string of 1 to {most} characters")
    return value


def read_choice(value: object, where: str, choices: tuple[ChoiceT, ...]) -> ChoiceT:
    """Return one of `choices`."""
    for choice in choices:
        if value == choice:
            return choice
    refuse(where, "one of " + ", ".join(f"'{choice}'" for choice in choices))


def read_flag(value: object, where: str) -> bool:
    """Return a boolean."""
    if isinstance(value, bool):
        return value
    refuse(where, "a boolean")


def read_number(value: object, where: str, lowest: float, highest: float) -> float:
    """Return a number, moved into its range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(where, "a number")
    if isinstance(value, float) and math.isnan(value):
        refuse(where, "a number")
    return float(min(max(value, lowest), highest))


def read_whole(value: object, where: str, lowest: int = 0, highest: int = LARGEST_WHOLE) -> int:
    """Return a whole number, moved into its range; a fraction is dropped, as clients compute times in floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(where, "an integer")
    if isinstance(value, float) and math.isnan(value):
        refuse(where, "an integer")
    return int(min(max(value, lowest), highest))


def read_base64(
    value: object, where: str, most_bytes: int, too_large: str = "invalid_value"
) -> bytes:
    """Return the bytes of a base64 string; bytes, from a binary message, are taken as they are.

    Args:
        too_large: code of the error if there are more than `most_bytes`.
    """
    if isinstance(value, str) and len(value) // 4 * 3 - 2 <= most_bytes:
        value = _decode_base64(value)
        if value is None:
            refuse(where, "base64")
    if not isinstance(value, str | bytes):
        refuse(where, "a base64 string")
    if isinstance(value, bytes) and len(value) <= most_bytes:
        return value
    raise ClientError(too_large, f"'{where}' may hold at most {most_bytes} bytes.", param=where)


def _decode_base64(text: str) -> bytes | None:
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return None
