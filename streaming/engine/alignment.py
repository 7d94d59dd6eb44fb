"""How much of a reply's text was heard, given how much of its sound was.

The model gives no alignment: text runs into the Talker at one token per code (20 ms), far ahead of the voice, so the
code being played only bounds the text from above. Within that bound the text is taken to be spread evenly over the
sound, by UTF-8 bytes: a syllable costs about as many bytes in Latin script as in Chinese. The spread is known once the
Talker has finished; until then it is the rate of the conversation's earlier replies. What is *certainly* heard keeps a
margin below that estimate. The error is the variation of speaking rate within a reply, pauses above all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CODES_PER_BYTE = 3.5
"""Ordinary English speech: about 14 characters a second, at 50 codes a second."""
MARGIN_CODES = 15
"""300 ms: about one word, and what a player reports too early."""


@dataclass(slots=True)
class SpeakingRate:
    """Codec tokens per byte of text, learned from replies that were spoken to their end."""

    num_codes: int = 0
    num_bytes: int = 0

    def learn(self, num_codes: int, num_bytes: int) -> None:
        self.num_codes += num_codes
        self.num_bytes += num_bytes

    @property
    def codes_per_byte(self) -> float:
        return self.num_codes / self.num_bytes if self.num_bytes else CODES_PER_BYTE


def heard_tokens(
    token_bytes: Sequence[int], heard_codes: int, total_codes: int | None, codes_per_byte: float
) -> int:
    """How many leading text tokens were certainly heard.

    Args:
        token_bytes: UTF-8 bytes of each token of the reply.
        heard_codes: codec tokens whose sound was played.
        total_codes: of the whole reply; None if the Talker had not finished.
        codes_per_byte: rate to assume then.
    """
    if total_codes is not None and heard_codes >= total_codes:
        return len(token_bytes)
    if total_codes is not None:
        codes_per_byte = total_codes / max(1, sum(token_bytes))
    heard_bytes = max(0, heard_codes - MARGIN_CODES) / max(codes_per_byte, 1e-9)
    end = 0
    for index, size in enumerate(token_bytes):
        end += size
        # Row t of the Talker is text token t + 2: nothing later can have been spoken.
        if end > heard_bytes or index >= heard_codes + 1:
            return index
    return len(token_bytes)
