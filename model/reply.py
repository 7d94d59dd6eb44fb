"""How a reply comes to be: Thinker, Talker and codec side by side.

    Thinker   y1 ── y2 ── y3 ── … ── yn
                 ╲     ╲     ╲
    Talker      code0 code1 code2 …                one row in, one codec token out
                          ╲
    codec                  PCM of the first window, long before the text is complete

The Talker's row t is h(y_{t+1}) + e(y_{t+1}): it exists after the Thinker's forward pass over that token. The last text
token is never forwarded; an end row stands in its place once, then pad rows for as long as the Talker speaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.sampling import Sampling, SamplingBatch, sample
from model.talker import suppressed_codes
from model.thinker import talker_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.codec.decoder import CodecDecoder
    from model.omni import Omni
    from model.prefill import Prompt


@dataclass(frozen=True, slots=True)
class TextDelta:
    """One text token of the reply; `text` may be empty while a character is incomplete."""

    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class CodeDelta:
    """One codec token of the reply."""

    code: int


@dataclass(frozen=True, slots=True)
class AudioDelta:
    """Sound of the reply: float32 [samples] in [-1, 1] at 24 kHz, from `start_sample` on."""

    start_sample: int
    pcm: Tensor


ReplyDelta = TextDelta | CodeDelta | AudioDelta


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How one reply is made."""

    voice: str | None = None
    thinker: Sampling | None = None
    """None: as the checkpoint's `generation_config.json` says; also for the Talker."""
    talker: Sampling | None = None
    max_text_tokens: int = 1024
    max_codes: int = 4096
    speech: bool = True
    noise_seed: int = 0


class ReplyText:
    """The Thinker's side: one token per `advance`."""

    def __init__(self, prompt: Prompt, omni: Omni, options: ReplyOptions) -> None:
        self._prompt = prompt
        self._omni = omni
        self._options = options
        self._sampling = options.thinker or omni.generation.thinker
        self._stream = omni.tokenizer.stream()
        self._seen = prompt.seen.clone()
        self.rows: list[Tensor] = []
        """Reply rows h + e [1, H], one per forwarded token."""
        self.forwarded: list[int] = []
        self.num_tokens = 0
        self.token_id = self._draw(prompt.last_hidden)

    @property
    def has_ended(self) -> bool:
        """The current token is the end token."""
        return self.token_id in self._omni.end_ids

    @property
    def is_open(self) -> bool:
        """The current token will be forwarded, so another row comes."""
        return not self.has_ended and self.num_tokens < self._options.max_text_tokens

    def advance(self) -> Tensor:
        """Forward the current token, draw the next; return the row [1, H] for the Talker."""
        self._prompt.require_room(1)
        ids = torch.tensor([self.token_id], device=self._omni.device)
        embedded = self._omni.model.thinker.embed(ids)
        hidden = self._prompt.thinker.extend(embedded, self._prompt.timeline.text(1))
        self.rows.append(talker_rows(hidden, embedded))
        self.forwarded.append(self.token_id)
        self.token_id = self._draw(hidden)
        return self.rows[-1]

    def delta(self) -> Iterator[TextDelta]:
        """The current token, unless it is the end token."""
        if not self.has_ended:
            yield TextDelta(self.token_id, self._stream.push(self.token_id))

    def _draw(self, hidden: Tensor) -> int:
        settings = self._sampling
        batch = SamplingBatch.pack([settings], [self.num_tokens], self._omni.device)
        seen = self._seen if settings.repetition_penalty != 1 else None
        token = sample(self._omni.model.thinker.logits(hidden), batch, seen)
        self._seen[0, token] = True
        self.num_tokens += 1
        return int(token)


class ReplySpeech:
    """The Talker's side: one codec token per row."""

    def __init__(
        self, prompt: Prompt, omni: Omni, options: ReplyOptions, positions: tuple[int, int, int]
    ) -> None:
        """`positions` of voice, first and second reply row, fixed when the prompt ended (`Timeline.talker_start`)."""
        assert omni.model.talker is not None
        assert omni.config.talker is not None
        assert omni.config.token2wav is not None
        assert prompt.talker is not None
        self._talker, self._config = omni.model.talker, omni.config.talker
        self._prompt, self._sequence = prompt, prompt.talker
        self._omni, self._max_codes = omni, options.max_codes
        self._sampling = options.talker or omni.generation.talker
        self._positions = positions
        self._suppressed = suppressed_codes(self._config, omni.config.token2wav.dit).to(omni.device)
        self._seen = torch.zeros(1, self._config.decoder.vocab_size, dtype=torch.bool)
        self._seen = self._seen.to(omni.device)
        self._seen[0, list(self._talker.prompt_history())] = True
        self._prompt_len = self._sequence.length
        self.num_codes = 0
        self._last_code = self._config.tts_codec_start_token_id
        voice = omni.voice(options.voice)
        self._feed(
            self._text_row(voice.bos_token), self._config.tts_codec_pad_token_id, positions[0]
        )

    def speak(self, row: Tensor) -> int | None:
        """Feed one reply row [1, H]; the next codec token, or None when the Talker has stopped."""
        hidden = self._feed(row, self._last_code, self._position())
        batch = SamplingBatch.pack([self._sampling], [self.num_codes], self._omni.device)
        token = sample(self._talker.logits(hidden), batch, self._seen, self._suppressed)
        self._seen[0, token] = True
        self._last_code = int(token)
        self.num_codes += 1
        return None if self._last_code in self._config.stop_ids else self._last_code

    @property
    def is_exhausted(self) -> bool:
        """The limit of codes or the Talker's cache has been reached."""
        is_full = self._sequence.length >= self._prompt.capacity
        return is_full or self.num_codes >= self._max_codes

    def end_row(self) -> Tensor:
        """Follows the last text row, once."""
        return self._text_row(self._config.tts_text_end_token_id)

    def pad_row(self) -> Tensor:
        """Every row after that."""
        return self._text_row(self._config.tts_text_pad_token_id)

    def withdraw(self) -> None:
        """Take the reply's own span out of the Talker's cache: it is not part of the next prompt."""
        self._sequence.crop(self._prompt_len)

    def _position(self) -> int:
        _, first, second = self._positions
        return first if self.num_codes == 0 else second + self.num_codes - 1

    def _text_row(self, token_id: int) -> Tensor:
        return self._omni.model.thinker.embed(torch.tensor([token_id], device=self._omni.device))

    def _feed(self, row: Tensor, code: int, position: int) -> Tensor:
        codes = torch.tensor([code], device=self._omni.device)
        fed = row + self._talker.embed_codes(codes)
        return self._sequence.extend(fed, torch.full((3, 1), position))


class ReplySound:
    """The codec's side: codec tokens in, sound out as windows complete."""

    def __init__(self, omni: Omni, options: ReplyOptions) -> None:
        assert omni.model.token2wav is not None
        self._codec: CodecDecoder = omni.model.token2wav
        self._state = self._codec.init_state(1)
        condition = self._codec.condition(omni.voice(options.voice))
        self._codec.assign(self._state, 0, condition, options.noise_seed)
        self._num_samples = 0

    def push(self, code: int) -> Iterator[AudioDelta]:
        yield from self._delta(self._codec.step(torch.tensor([[code]]), self._state, (0,)))

    def flush(self) -> Iterator[AudioDelta]:
        yield from self._delta(self._codec.flush(self._state, (0,)))

    def _delta(self, pcm: Tensor) -> Iterator[AudioDelta]:
        if pcm.shape[1]:
            yield AudioDelta(self._num_samples, pcm[0])
            self._num_samples += pcm.shape[1]


class Reply:
    """One reply to a prompt that has just been prefilled. Run it once, then let it join the prompt."""

    def __init__(self, prompt: Prompt, omni: Omni, options: ReplyOptions) -> None:
        """Raises CheckpointError for an unknown voice and ValueError for speech the checkpoint cannot make."""
        if options.speech and not omni.config.has_speech:
            raise ValueError("this checkpoint has no Talker; ask for a reply without speech")
        self._prompt, self._omni, self._options = prompt, omni, options
        self._start = prompt.timeline.snapshot()
        positions = prompt.timeline.talker_start()
        self._speech = ReplySpeech(prompt, omni, options, positions) if options.speech else None
        self._text = ReplyText(prompt, omni, options)

    def run(self) -> Iterator[ReplyDelta]:
        """Yield every delta as soon as it exists."""
        yield from self._text.delta()
        if self._speech is not None:
            yield from self._speak(self._speech)
        while self._text.is_open:
            self._text.advance()
            yield from self._text.delta()

    @property
    def unspoken(self) -> list[int]:
        """The last text token if it was shown but, the limit having struck, never forwarded."""
        return [] if self._text.is_open or self._text.has_ended else [self._text.token_id]

    def join_prompt(self) -> None:
        """Make the forwarded part of the reply a part of the prompt.

        The Thinker has it in its cache already. To the Talker it was a stream; now it enters as prompt rows.
        """
        self._prompt.seen[0, self._text.forwarded] = True
        if self._prompt.talker is None:
            return
        if self._speech is not None:
            self._speech.withdraw()
        if self._text.rows:
            rows = torch.cat(self._text.rows)
            self._prompt.talker.extend(rows, self._start.text(len(rows)))

    def _speak(self, speech: ReplySpeech) -> Iterator[ReplyDelta]:
        sound = ReplySound(self._omni, self._options)
        for row, delta in self._rows(speech):
            yield from delta
            code = speech.speak(row)
            if code is None:
                break
            yield CodeDelta(code)
            yield from sound.push(code)
            if speech.is_exhausted:
                break
        yield from sound.flush()

    def _rows(self, speech: ReplySpeech) -> Iterator[tuple[Tensor, Iterator[TextDelta]]]:
        """Reply rows for the Talker without end, and the text that became known with each."""
        while self._text.is_open:
            row = self._text.advance()
            yield row, self._text.delta()
        yield speech.end_row(), iter(())
        while True:
            yield speech.pad_row(), iter(())
