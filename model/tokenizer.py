"""The checkpoint's own tokenizer (`tokenizer.json`), kept from reading control tokens in what users write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from model.checkpoint import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"


class TextTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Tokenizer, control_ids: Iterable[int] = ()) -> None:
        # Special tokens inside text are spelled out: a user who types "<|im_end|>" has typed ten
        # characters, not ended a turn.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.im_start_id = self._require(IM_START)
        self.im_end_id = self._require(IM_END)
        self._control_ids = frozenset((self.im_start_id, self.im_end_id, *control_ids))

    @classmethod
    def from_folder(cls, folder: Path, control_ids: Iterable[int] = ()) -> TextTokenizer:
        """Load `tokenizer.json`.

        Args:
            folder: a checkpoint.
            control_ids: ids that text must never produce (media markers and the like).

        Raises:
            CheckpointError: it is missing, unreadable, or has no ChatML tokens.
        """
        path = folder / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(path)), control_ids)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception for a missing or broken file
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Text to token ids; never a control token, whatever the text contains.

        Raises:
            ValueError: the tokenizer maps some of the text to a control token nevertheless.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if forbidden := self._control_ids.intersection(ids):
            names = sorted(str(self._tokenizer.id_to_token(i)) for i in forbidden)
            raise ValueError(f"text would be read as control tokens {names}; remove them")
        return ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """Token ids to text, without control tokens."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def stream(self) -> TextStream:
        return TextStream(self._tokenizer)

    def _require(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"the tokenizer has no {token}; this prompt format needs it")
        return int(token_id)


class TextStream:
    """Token ids of one reply to text deltas; characters split over tokens wait until they are whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""
