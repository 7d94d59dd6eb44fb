"""The frame of a chat as the running model writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.tokenizer import TextTokenizer


def opening(tokenizer: TextTokenizer, system: str = "") -> list[int]:
    """Tokens before what the user says."""
    start, end, encode = tokenizer.im_start_id, tokenizer.im_end_id, tokenizer.encode
    told = [start, *encode(f"system\n{system}"), end, *encode("\n")] if system else []
    return [*told, start, *encode("user\n")]


def closing(tokenizer: TextTokenizer) -> list[int]:
    """Tokens between what the user said and the reply."""
    start, end, encode = tokenizer.im_start_id, tokenizer.im_end_id, tokenizer.encode
    return [end, *encode("\n"), start, *encode("assistant\n")]


def asked(tokenizer: TextTokenizer, question: str, system: str = "") -> list[int]:
    """A typed question in its frame, up to the reply."""
    return [*opening(tokenizer, system), *tokenizer.encode(question), *closing(tokenizer)]
