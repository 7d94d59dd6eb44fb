"""How much of a reply's text was heard, given how much of its sound was.

The model gives no alignment: text runs into the Talker at one token per code, far ahead of the voice, so the
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

SAMPLES_PER_BYTE = 1680
"""Ordinary English speech at 24 kHz: about 14 characters a second."""
MARGIN_SAMPLES = 7200
"""300 ms: about one word, and what a player reports too early."""


@dataclass(slots=True)
class SpeakingRate:
    """Samples of sound per byte of text, learned from replies that were spoken to their end."""

    num_samples: int = 0
    num_bytes: int = 0

    def learn(self, num_samples: int, num_bytes: int) -> None:
        self.num_samples += num_samples
        self.num_bytes += num_bytes

    @property
    def samples_per_byte(self) -> float:
        return self.num_samples / self.num_bytes if self.num_bytes else SAMPLES_PER_BYTE


def heard_tokens(
    token_bytes: Sequence[int],
    heard_samples: int,
    total_samples: int | None,
    *,
    samples_per_byte: float,
    samples_per_code: int,
) -> int:
    """How many leading text tokens were certainly heard.

    Args:
        token_bytes: UTF-8 bytes of each token of the reply.
        heard_samples: how much of the reply's sound was played.
        total_samples: of the whole reply; None if the Talker had not finished.
        samples_per_byte: rate to assume then.
        samples_per_code: of the codec.
    """
    if total_samples is not None and heard_samples >= total_samples:
        return len(token_bytes)
    if total_samples is not None:
        samples_per_byte = total_samples / max(1, sum(token_bytes))
    heard_bytes = max(0, heard_samples - MARGIN_SAMPLES) / max(samples_per_byte, 1e-9)
    end = 0
    for index, size in enumerate(token_bytes):
        end += size
        # Row t of the Talker is text token t + 2: nothing later can have been spoken.
        if end > heard_bytes or index >= heard_samples // samples_per_code + 1:
            return index
    return len(token_bytes)
