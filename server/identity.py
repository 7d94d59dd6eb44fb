"""Who a connection is to its client, and where ids come from."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from typing import Literal

IdKind = Literal["event", "sess", "conv", "item", "resp", "call"]

_LETTERS = string.ascii_letters + string.digits
_ID_LETTERS = 20
"""With the longest prefix 26 characters; clients replace call ids of more than 32."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What stays the same for the life of a session."""

    session_id: str
    conversation_id: str
    model: str
    """Name that the session shows."""
    expires_at: int
    """Unix seconds."""


def new_id(kind: IdKind) -> str:
    """Return an id nobody can guess, such as `item_` and twenty letters or digits."""
    return f"{kind}_{''.join(secrets.choice(_LETTERS) for _ in range(_ID_LETTERS))}"
