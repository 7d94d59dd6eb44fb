"""One reply in the making: text tokens to rows to codes to windows of sound.

    Thinker ─token─▶ text out
            ─row──▶ SpeechFeed ─▶ Talker ─code─▶ window ─▶ codec ─▶ PCM out

It says what is to be computed next, as decode inputs and jobs; the conversation tells it what was.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from model.windows import Progress
from streaming.engine.alignment import Sound, SpeakingRate, heard_tokens, spoken_weight
from streaming.engine.codec_stage import WindowContent
from streaming.engine.sequence import DecodeInput, Job, Role, Segment
from streaming.engine.spoken_text import SpokenText
from streaming.errors import RequestFailed
from streaming.packets import AudioDelta, TextDelta, Usage

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import TalkerConfig
    from model.sampling import Sampling
    from model.windows import WindowPlanner
    from streaming.engine.prompt import Checkpoint, Prompt
    from streaming.engine.sequence import Pace, Sequence
    from streaming.engine.shared import Shared
    from streaming.packets import ReplyOptions, SamplingOptions

READING_MS = 50
"""How soon the next token of a reply without sound is due: 20 a second are read faster than spoken."""


class SpeechFeed:
    """Reply rows from Thinker to Talker, by slot: one is taken per codec token.

    Empty and open, it has nothing to take; only a closed feed continues, with the end row once and then pad rows.
    """

    def __init__(self, end_slot: int, pad_slot: int) -> None:
        self._slots: deque[int] = deque()
        self._end_slot: int | None = end_slot
        self._pad_slot = pad_slot
        self._is_closed = False

    def put(self, slot: int) -> None:
        assert not self._is_closed, "a row after the feed was closed"
        self._slots.append(slot)

    def close(self) -> None:
        self._is_closed = True

    def take(self) -> int | None:
        if self._slots:
            return self._slots.popleft()
        if not self._is_closed:
            return None
        slot, self._end_slot = self._end_slot, None
        return self._pad_slot if slot is None else slot


@dataclass(frozen=True, slots=True)
class Voice:
    """What makes a reply audible: the Talker, its config, the codec's window planner, and the voice's row."""

    talker: Sequence
    config: TalkerConfig
    planner: WindowPlanner
    samples_per_code: int
    row: Tensor


class SpokenReply:
    """A reply while it runs, and what is known of it for as long as the history can be cut inside it.

    Raises RequestFailed or ValueError from the constructor if it cannot be made as asked; the turn is then lost.
    """

    def __init__(
        self,
        turn_id: int,
        prompt: Prompt,
        options: ReplyOptions,
        default_voice: str | None,
        pace: Pace,
        shared: Shared,
    ) -> None:
        self.turn_id = turn_id
        self.pace = pace
        self._prompt = prompt
        self._thinker = prompt.thinker
        self._shared = shared
        self._voice = self._find_voice(options, default_voice)
        limits = shared.config
        self._max_text_tokens = min(
            options.max_text_tokens or limits.max_text_tokens, limits.max_text_tokens
        )
        self._max_codes = min(options.max_codes or limits.max_codes, limits.max_codes)
        self._stream = shared.omni.tokenizer.stream()
        self._spoken = SpokenText(options.silent_from)
        self._feed = SpeechFeed(shared.runner.end_slot, shared.runner.pad_slot)

        self.tokens: list[int] = []
        self.num_rows = 0
        """Text tokens that the Thinker has computed; the newest token is not among them."""
        self.codes: list[int] = []
        self.is_limited = False
        self.is_over = False
        self.heard_samples: int | None = None
        """What an earlier truncation left."""
        self._token_weights: list[float] = []
        self._num_fed = 0
        """Of the rows, how many went to the Talker."""
        self._num_windowed = 0
        self._progress = Progress()
        self.num_samples = 0
        self._is_text_done = False
        self._is_speech_done = self._is_sound_done = self._voice is None

        self.start: Checkpoint = prompt.open_reply()
        self._talker_positions = prompt.talker_start()
        self._input_usage = prompt.usage()
        self._begin(options)

    @property
    def lane(self) -> int:
        return self._thinker.lane

    @property
    def is_done(self) -> bool:
        return self._is_text_done and self._is_sound_done

    @property
    def computed_tokens(self) -> list[int]:
        return self.tokens[: self.num_rows]

    @property
    def uncomputed_tokens(self) -> list[int]:
        """A last token that was shown but, a limit having struck, never computed."""
        return self.tokens[self.num_rows : self.num_rows + 1] if self.is_limited else []

    @property
    def usage(self) -> Usage:
        used = self._input_usage
        return Usage(
            used.input_text_tokens,
            used.input_audio_tokens,
            used.input_image_tokens,
            used.cached_text_tokens,
            used.cached_audio_tokens,
            used.cached_image_tokens,
            output_text_tokens=len(self.tokens),
            output_audio_tokens=len(self.codes),
        )

    # ---- what was computed

    def prefilled(self, token: int) -> None:
        """The whole prompt is computed; `token` is the first of the reply."""
        self._thinker.wants_token = False
        if self._voice is not None:
            # The Talker now has every row of the prompt, computed or pending; the voice's comes behind them.
            position = np.full((3, 1), self._talker_positions[0])
            self._voice.talker.append(Segment(position, rows=self._voice.row))
        self._take_token(token)

    def thinker_decoded(self, token: int, now_ms: float) -> None:
        """The newest text token is computed and its row stored; `token` is the next."""
        self._prompt.add_computed(self.tokens[self.num_rows])
        self.num_rows += 1
        if self._is_sound_done:
            self.pace.listen(now_ms + READING_MS)  # text is read, not played: nothing runs dry
        self._take_token(token)

    def talker_decoded(self, code: int) -> None:
        """A row is spoken: `code` is its codec token, or ends the reply's sound."""
        assert self._voice is not None
        talker = self._voice.talker
        talker.num_drawn += 1
        if code in self._voice.config.stop_ids:
            self._is_speech_done = True
        else:
            self.codes.append(code)
            is_full = talker.num_computed >= self._shared.context_tokens
            self._is_speech_done = is_full or talker.num_drawn >= self._max_codes
            self.is_limited |= self._is_speech_done
        self._add_windows()
        self._feed_talker()

    def window_done(self, pcm: bytes, is_last: bool, now_ms: float) -> None:
        """Sound of the reply exists."""
        if pcm:
            session_id = self._thinker.session_id
            self._shared.emit(AudioDelta(session_id, self.turn_id, self.num_samples, pcm))
            self.num_samples += len(pcm) // 2
            self.pace.deliver(len(pcm) // 2, now_ms)
        if is_last:
            self._is_sound_done = True
            self.pace.listen(now_ms + READING_MS)  # no sound is left to run dry or be ahead

    # ---- the end, and what was heard

    def stop(self) -> None:
        """Stop computing and withdraw the Talker's own span; the text stays as far as it is computed."""
        scheduler = self._shared.scheduler
        scheduler.drop_jobs(self._thinker.session_id, Role.CODEC)  # media may still wait
        if self._thinker.num_computed < self.start.length:
            self._prompt.cut_to(self.start)  # not even its prompt is computed: keep that pending
            self._thinker.wants_token = False
        else:
            self._prompt.rewind_reply(self.start, self.computed_tokens)
        if self._prompt.talker is not None:
            scheduler.cut(self._prompt.talker, self.start.length)
        self.is_over = True

    def teach(self, rate: SpeakingRate) -> None:
        """Add to what is known of the speaking rate, if the reply was spoken to its end."""
        if self._voice is not None and not self.is_limited:
            rate.learn(self.num_samples, sum(self._token_weights[: self._spoken.num_certain]))

    def hear(self, heard_samples: int, rate: SpeakingRate) -> int:
        """Note how much was heard, never more than an earlier note left; return how many tokens that is.

        A token that was shown but not computed counts only if a limit ended the reply behind it.
        """
        limit = self.num_samples if self.heard_samples is None else self.heard_samples
        self.heard_samples = max(0, min(heard_samples, limit))
        num_heard = self.num_heard_tokens(rate)
        return num_heard if self.is_limited else min(num_heard, self.num_rows)

    def num_heard_tokens(self, rate: SpeakingRate) -> int:
        """Leading tokens that were certainly heard."""
        assert self.heard_samples is not None
        if self._voice is None:
            return len(self.tokens)
        # Without the rest of the text a reply's sound cannot be spread over it.
        is_whole = self._is_speech_done and self._is_text_done
        num_spoken, per_code = self._spoken.num_certain, self._voice.samples_per_code
        sound = Sound(self.heard_samples, len(self.codes) * per_code, is_whole, per_code)
        num_heard = heard_tokens(self._token_weights[:num_spoken], sound, rate)
        return len(self.tokens) if is_whole and num_heard == num_spoken else num_heard

    # ---- inside

    def _find_voice(self, options: ReplyOptions, default: str | None) -> Voice | None:
        if not options.speech:
            return None
        talker, omni = self._prompt.talker, self._shared.omni
        if talker is None:
            raise RequestFailed("no_speech", "this checkpoint has no Talker; ask for text alone")
        assert omni.config.talker is not None
        codec = omni.model.token2wav
        assert codec is not None
        name = options.voice or default
        row = self._shared.runner.voice_row(name)  # an unknown voice fails before anything changes
        self._shared.runner.begin_speech(self.lane, name, options.noise_seed)
        return Voice(talker, omni.config.talker, codec.planner, codec.config.samples_per_code, row)

    def _begin(self, options: ReplyOptions) -> None:
        thinker, own = self._thinker, self._shared.omni.generation
        sampling = _sampling(options.thinker, own.thinker)
        thinker.wants_token = True
        thinker.sampling, thinker.num_drawn = sampling, 0
        has_penalty = sampling.repetition_penalty != 1
        seen = set(self._prompt.ids)
        self._shared.runner.begin_text(self.lane, seen, has_penalty=has_penalty)
        if self._voice is not None:
            talker = self._voice.talker
            talker.sampling, talker.num_drawn = _sampling(options.talker, own.talker), 0

    def _take_token(self, token: int) -> None:
        self._thinker.num_drawn += 1
        if token in self._shared.omni.end_ids:
            self._is_text_done = True
        else:
            self._show(token)
            has_room = self._thinker.num_computed < self._shared.context_tokens
            self._is_text_done = len(self.tokens) >= self._max_text_tokens or not has_room
            self.is_limited |= self._is_text_done
        if not self._is_text_done:
            slot = self._shared.runner.row_slot(self.lane, self.num_rows)
            self._thinker.decode = DecodeInput(token, slot, self._prompt.take_position())
        self._feed_speech()
        self._feed_talker()

    def _show(self, token: int) -> None:
        text = self._stream.push(token)
        self._spoken.push(text)
        self.tokens.append(token)
        self._token_weights.append(spoken_weight(text))
        if text:
            self._shared.emit(TextDelta(self._thinker.session_id, self.turn_id, text))

    def _feed_speech(self) -> None:
        """Put every row into the feed that is computed and certain to be spoken; close it behind the last."""
        if self._is_text_done:
            self._spoken.close()
        while self._num_fed < min(self.num_rows, self._spoken.num_certain):
            self._feed.put(self._shared.runner.row_slot(self.lane, self._num_fed))
            self._num_fed += 1
        is_complete = self._spoken.is_over and self._num_fed == self._spoken.num_certain
        if self._is_text_done or is_complete:
            self._feed.close()
            if self._spoken.is_over and not self._num_fed:
                self._is_speech_done = self._is_sound_done = True  # not a word to say

    def _feed_talker(self) -> None:
        """Give the Talker its next row, if there is one and it wants one."""
        if self._voice is None or self._is_speech_done or self._voice.talker.decode is not None:
            return
        slot = self._feed.take()
        if slot is None:
            return
        talker = self._voice.talker
        _, first, second = self._talker_positions
        if talker.num_drawn:
            code, position = self.codes[-1], second + talker.num_drawn - 1
        else:
            code, position = self._voice.config.tts_codec_start_token_id, first
        talker.decode = DecodeInput(code, slot, position)

    def _add_windows(self) -> None:
        """Hand the codec every window that the codes complete, and after the last code the rest."""
        assert self._voice is not None
        window = self._voice.planner.next_window(self._progress, len(self.codes), False)
        if window is not None:
            self._add_window(is_last=False)
            self._progress = window.after
        if not self._is_speech_done:
            return
        if self.codes:
            self._add_window(is_last=True)
        else:
            self._is_sound_done = True

    def _add_window(self, *, is_last: bool) -> None:
        assert self._voice is not None
        codes = tuple(self.codes[self._num_windowed :])
        phase = self._voice.planner.phase(self._progress, self._num_windowed)
        self._num_windowed = len(self.codes)
        content = WindowContent(self.lane, codes, is_last, self)
        group = (phase, len(codes), is_last)
        job = Job(self._thinker.session_id, Role.CODEC, group, max(1, len(codes)), content)
        self._shared.scheduler.add_job(job)


def _sampling(options: SamplingOptions | None, default: Sampling) -> Sampling:
    """What the reply asks for, and where it asks for nothing what the checkpoint does."""
    given = {} if options is None else msgspec.structs.asdict(options)
    return replace(default, **{name: value for name, value in given.items() if value is not None})
