"""The chat format (ChatML with media markers), as data.

    <|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n{parts}<|im_end|>\\n<|im_start|>assistant\\n

Text between control tokens is tokenised in one go, as the reference does, so a word is never split where a part begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from model.tokenizer import TextTokenizer

Role = Literal["system", "user", "assistant"]

SPEECH_SYSTEM_PROMPT = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving "
    "auditory and visual inputs, as well as generating text and speech."
)
"""The published checkpoints speak well only under exactly this system prompt, say their authors."""


@dataclass(slots=True)
class PromptWriter:
    """Writes the textual frame of a prompt; the token ids it returns are ready to be prefilled.

    Text is held back until a control token or media follows, because tokens may span parts.
    """

    tokenizer: TextTokenizer
    _text: list[str] = field(default_factory=list)

    def copy(self) -> PromptWriter:
        """A writer that continues from here, for going back to this place later."""
        return PromptWriter(self.tokenizer, list(self._text))

    def open_message(self, role: Role) -> list[int]:
        ids = [*self.take_text(), self.tokenizer.im_start_id]
        self._text.append(f"{role}\n")
        return ids

    def text(self, text: str) -> None:
        self._text.append(text)

    def close_message(self) -> list[int]:
        ids = [*self.take_text(), self.tokenizer.im_end_id]
        self._text.append("\n")
        return ids

    def system(self, text: str) -> list[int]:
        """Token ids of a whole system message; none for an empty text."""
        if not text:
            return []
        opening = self.open_message("system")
        self.text(text)
        return [*opening, *self.close_message()]

    def take_text(self) -> list[int]:
        """Token ids of the text held back; call it before anything that is not text."""
        if not self._text:
            return []
        text, self._text = "".join(self._text), []
        return self.tokenizer.encode(text)
