"""The worker's twin of a session: what its input becomes in the two caches, and how its reply comes to be.

    clip parts, text, images ─▶ segments of the Thinker (encoders fill in rows) ─▶ segments of the Talker, right behind
    commit ─▶ y1 ─▶ Thinker decode ─▶ reply rows ─▶ SpeechFeed ─▶ Talker decode ─▶ codes ─▶ windows ─▶ PCM

It decides in integers; what it wants computed it hands to the scheduler as segments, decode inputs and jobs. Row i of
the Thinker and row i of the Talker are the same row of the prompt, except while a reply runs: then the Talker's cache
ends in the reply's own span, which is withdrawn afterwards, and the reply enters as prompt rows (model-spec 6.4).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.audio_encoder import num_rows
from model.image import Grid, image_patches, pair_patches, video_grid
from model.prompt import PromptWriter
from model.rope import Timeline
from model.sampling import GREEDY, TALKER_SAMPLING, Sampling
from model.windows import Progress
from streaming.engine.alignment import SpeakingRate, heard_tokens
from streaming.engine.pictures import Pictures
from streaming.engine.runner import EncodeContent, WindowContent
from streaming.engine.sequence import DecodeInput, Job, Pace, Role, Segment, Sequence
from streaming.engine.spoken_text import SpokenText
from streaming.errors import RequestFailed
from streaming.media import ClipKind
from streaming.packets import (
    AppendChunk,
    AppendPair,
    AppendText,
    AudioDelta,
    CancelTurn,
    CommitTurn,
    DoneReason,
    HoldTurn,
    InputRefused,
    OpenClip,
    Reply,
    ReportPlayed,
    TextDelta,
    TruncateTurn,
    TurnDone,
    TurnTruncated,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.image import Patches
    from model.mel import LogMel, LogMelState
    from model.omni import Omni
    from model.tokenizer import TextStream
    from streaming.engine.config import EngineConfig
    from streaming.engine.pictures import Picture
    from streaming.engine.runner import Runner
    from streaming.engine.scheduler import Scheduler
    from streaming.media import FramePair
    from streaming.packets import ReplyOptions, SamplingOptions, SessionSettings

TurnCommand = (
    OpenClip
    | AppendChunk
    | AppendText
    | Pictures
    | CommitTurn
    | CancelTurn
    | HoldTurn
    | ReportPlayed
    | TruncateTurn
)
READING_MS = 50
"""How soon the next token of a reply without sound is due: 20 a second are read faster than spoken."""
MAX_WAITING_COMMANDS = 4096
"""Input of the next turn while a reply still runs: over an hour of sound with camera."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all conversations of a worker use."""

    omni: Omni
    config: EngineConfig
    context_tokens: int
    scheduler: Scheduler
    runner: Runner
    log_mel: LogMel
    emit: Callable[[Reply], None]


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


class TurnState(Enum):
    LISTENING = auto()
    REPLYING = auto()
    OVER = auto()


@dataclass(slots=True)
class Clip:
    """The clip being received."""

    kind: ClipKind
    mel: LogMelState
    num_chunks: int = 0
    num_pairs: int = 0
    grid: Grid | None = None
    held: list[tuple[int, Patches]] = field(default_factory=list)

    @property
    def is_video(self) -> bool:
        return self.kind is not ClipKind.SOUND

    @property
    def has_sound(self) -> bool:
        return self.kind is not ClipKind.VIDEO


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in the conversation to go back to."""

    length: int
    timeline: Timeline
    writer: PromptWriter
    open_role: str | None


@dataclass(slots=True)
class SpokenReply:
    """One reply, while it runs and for as long as the history can be cut inside it."""

    turn_id: int
    start: Checkpoint
    talker_positions: tuple[int, int, int]
    stream: TextStream
    feed: SpeechFeed
    usage: Usage
    max_text_tokens: int
    max_codes: int
    speech: bool
    spoken: SpokenText
    tokens: list[int] = field(default_factory=list)
    token_bytes: list[int] = field(default_factory=list)
    num_rows: int = 0
    """Text tokens that the Thinker has computed; the newest token is not among them."""
    num_fed: int = 0
    """Of those, how many went to the Talker."""
    codes: list[int] = field(default_factory=list)
    num_windowed: int = 0
    progress: Progress = field(default_factory=Progress)
    num_samples: int = 0
    is_text_done: bool = False
    is_speech_done: bool = False
    is_sound_done: bool = False
    has_end: bool = False
    is_limited: bool = False
    is_over: bool = False
    heard_samples: int | None = None
    """What an earlier truncation left."""

    @property
    def is_done(self) -> bool:
        return self.is_text_done and self.is_sound_done

    @property
    def num_codes(self) -> int:
        return len(self.codes)


class Conversation:
    """One session in the worker. `receive` takes its commands, the `…_done` methods what was computed for it.

    Raises RequestFailed from the constructor if the system prompt does not fit.
    """

    def __init__(
        self, session_id: str, number: int, lane: int, settings: SessionSettings, shared: Shared
    ) -> None:
        config = shared.omni.config.thinker
        self.session_id = session_id
        self.lane = lane
        self.pace = Pace()
        self.turn_id = -1
        self.state = TurnState.OVER
        self._void_turn_id = -1
        """Cancelled before anything of it was taken in."""
        self.reply: SpokenReply | None = None
        """The newest reply, until the next turn begins."""
        self._shared = shared
        self._config = config
        self._settings = settings
        self.thinker = self._sequence(2 * number, Role.THINKER)
        has_speech = shared.omni.config.has_speech
        self.talker = self._sequence(2 * number + 1, Role.TALKER) if has_speech else None
        self._timeline = Timeline.for_config(config)
        self._writer = PromptWriter(shared.omni.tokenizer)
        self._open_role: str | None = None
        self._prompt_ids: list[int] = []
        """One id per row of the Thinker, placeholders included."""
        self._num_cached = 0
        self._clip: Clip | None = None
        self._rate = SpeakingRate()
        self._replies: list[SpokenReply] = []
        self._turn_segments: list[tuple[Segment, list[int]]] = []
        """What the current turn has put into the prompt, and one id per row of it."""
        self._voice_row: Tensor | None = None
        self._waiting: deque[TurnCommand] = deque()
        self._planner = shared.omni.model.token2wav.planner if shared.omni.model.token2wav else None
        self._write_system(settings.system_prompt)
        self._start = self._checkpoint()

    @property
    def sequences(self) -> list[Sequence]:
        return [self.thinker] if self.talker is None else [self.thinker, self.talker]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return tuple(self._prompt_ids)

    def receive(self, command: TurnCommand, now_ms: float) -> None:
        """Take one command. Faults end the turn (`TurnDone` FAILED) or leave out one piece (`InputRefused`)."""
        if isinstance(command, TruncateTurn):
            self._truncate_earlier(command, now_ms)
            return
        if command.turn_id < self.turn_id or self.turn_id < command.turn_id <= self._void_turn_id:
            return  # stale
        if command.turn_id == self.turn_id:
            self._receive_current(command, now_ms)
        elif isinstance(command, CancelTurn):
            self._cancel_unseen(command)
        elif isinstance(command, HoldTurn | ReportPlayed):
            return  # of a reply that does not run
        elif self.state is TurnState.REPLYING:
            self._hold(command)
        else:
            self._begin_turn(command.turn_id)
            self._receive_current(command, now_ms)

    def fail_turn(self, code: str, message: str) -> None:
        """Give up the current turn; its input is forgotten, or of its reply what is not computed yet."""
        turn_id = self.turn_id
        usage = self.reply.usage if self.reply and self.state is TurnState.REPLYING else Usage()
        if self.state is TurnState.REPLYING:
            self._stop_reply()
        else:
            self._forget_turn()
        self._finish(TurnDone(self.session_id, turn_id, DoneReason.FAILED, usage, code, message))

    # ---- what was computed

    def thinker_prefilled(self, segment: Segment | None, token: int | None, now_ms: float) -> None:
        """Rows of the prompt are computed; `segment` holds what the Talker is fed for them."""
        if self.talker is not None and segment is not None:
            self.talker.append(segment)
        if token is not None:
            self.thinker.wants_token = False
            self._begin_speech()
            self._take_text_token(token, now_ms)

    def thinker_decoded(self, token: int, now_ms: float) -> None:
        """The newest text token is computed and its row stored; `token` is the next."""
        reply = self._running()
        self._prompt_ids.append(reply.tokens[reply.num_rows])
        reply.num_rows += 1
        if reply.is_sound_done:
            self.pace.listen(now_ms + READING_MS)  # text is read, not played: nothing runs dry
        self._take_text_token(token, now_ms)

    def talker_decoded(self, code: int, now_ms: float) -> None:
        """A row is spoken: `code` is its codec token, or ends the reply's sound."""
        reply, talker = self._running(), self.talker
        assert talker is not None
        assert self._shared.omni.config.talker is not None
        talker.num_drawn += 1
        if code in self._shared.omni.config.talker.stop_ids:
            reply.is_speech_done = True
        else:
            reply.codes.append(code)
            is_full = talker.num_computed >= self._shared.context_tokens
            reply.is_speech_done = is_full or talker.num_drawn >= reply.max_codes
            reply.is_limited |= reply.is_speech_done
        self._add_windows(reply)
        self._feed_talker(reply)
        self._finish_if_done(now_ms)

    def window_done(self, pcm: bytes, is_last: bool, now_ms: float) -> None:
        """Sound of the reply exists."""
        reply = self._running()
        if pcm:
            self._emit(AudioDelta(self.session_id, self.turn_id, reply.num_samples, pcm))
            reply.num_samples += len(pcm) // 2
            self.pace.deliver(len(pcm) // 2, now_ms)
        if is_last:
            reply.is_sound_done = True
            self.pace.listen(now_ms + READING_MS)  # no sound is left to run dry or be ahead
            self._finish_if_done(now_ms)

    # ---- commands

    def _receive_current(self, command: TurnCommand, now_ms: float) -> None:
        if isinstance(command, CancelTurn):
            self._cancel(command, now_ms)
            return
        if isinstance(command, HoldTurn | ReportPlayed):
            self._steer(command, now_ms)
            return
        if self.state is not TurnState.LISTENING:
            return  # stale: the turn is committed or over
        try:
            self._receive_input(command, now_ms)
        except RequestFailed as fault:
            self.fail_turn(fault.code, fault.message)
        except ValueError as fault:  # what `model` raises about media, text, voices
            self.fail_turn("invalid_input", str(fault))

    def _receive_input(self, command: TurnCommand, now_ms: float) -> None:
        self.pace.listen(now_ms + 1000 * self._config.seconds_per_chunk)
        match command:
            case OpenClip():
                self._open_clip(command.start.kind)
            case Pictures(AppendPair(pair=pair)):
                self._append_pair(pair, command)
            case Pictures():
                self._append_image(command)
            case AppendChunk():
                self._append_chunk(command)
            case AppendText():
                self._append_text(command)
            case CommitTurn():
                self._commit(command.options, now_ms)

    def _steer(self, command: HoldTurn | ReportPlayed, now_ms: float) -> None:
        if self.state is not TurnState.REPLYING:
            return
        if isinstance(command, HoldTurn):
            self.pace.is_held = command.is_held
        else:
            self.pace.report(command.played_samples, now_ms)

    def _hold(self, command: TurnCommand) -> None:
        if len(self._waiting) >= MAX_WAITING_COMMANDS:
            self._waiting.clear()
            self.fail_turn(
                "input_overflow", f"{MAX_WAITING_COMMANDS} packets wait for a reply to end"
            )
            return
        self._waiting.append(command)

    def _cancel_unseen(self, command: CancelTurn) -> None:
        """Cancel a turn of which nothing has been taken in yet."""
        self._waiting = deque(c for c in self._waiting if c.turn_id != command.turn_id)
        self._void_turn_id = command.turn_id
        if self.state is TurnState.LISTENING:
            self._forget_turn()
            self.state = TurnState.OVER
        done = DoneReason.CANCELLED
        self._emit(TurnDone(self.session_id, command.turn_id, done, Usage()))

    def _begin_turn(self, turn_id: int) -> None:
        if self.state is TurnState.LISTENING:  # abandoned without a word: nothing of it stays
            self._forget_turn()
        self.turn_id = turn_id
        self.state = TurnState.LISTENING
        if self.reply is not None:
            self._join_reply(self.reply)
        self._turn_segments = []
        self._start = self._checkpoint()

    def _open_clip(self, kind: ClipKind) -> None:
        if self._clip is not None:
            raise RequestFailed("clip_open", "a clip is open; close it with its last chunk first")
        self._open_message("user")
        self._clip = Clip(kind, self._shared.log_mel.init_state(1))
        tokens, config = self._writer.take_text(), self._config
        if not self._clip.is_video:
            self._add_tokens([*tokens, config.audio_start_token_id])
            return
        self._add_tokens(tokens)
        has_sound = self._clip.has_sound
        self._require_room(1 + has_sound)
        markers = [config.vision_start_token_id, config.audio_start_token_id][: 1 + has_sound]
        self._add_tokens(markers, self._timeline.open_segment(with_audio=has_sound))

    def _append_pair(self, pair: FramePair, pictures: Pictures) -> None:
        clip = self._current_clip()
        if not clip.is_video:
            raise RequestFailed("no_video", "a frame pair came in a clip of sound alone")
        if pair.index < clip.num_pairs or (clip.has_sound and pair.chunk_index != clip.num_chunks):
            raise RequestFailed(
                "out_of_order", f"frame pair {pair.index} came after chunk {clip.num_chunks}"
            )
        try:
            first, second = _one_or_two(pictures)
            clip.grid = clip.grid or video_grid(first, self._shared.omni.images)
            patches = pair_patches(first, second, grid=clip.grid, settings=self._shared.omni.images)
        except ValueError as fault:
            self._refuse("invalid_image", f"frame pair {pair.index}: {fault}")
            return
        clip.num_pairs = pair.index + 1
        self._add_picture(patches, pair.index, self._config.video_token_index)

    def _append_chunk(self, command: AppendChunk) -> None:
        clip, chunk = self._current_clip(), command.chunk
        expected = clip.num_chunks if clip.has_sound else chunk.index
        if chunk.index != expected or len(chunk.pcm) % 2:
            raise RequestFailed(
                "out_of_order",
                f"chunk {chunk.index} of {len(chunk.pcm)} bytes, expected {expected}",
            )
        clip.num_chunks += 1
        if clip.has_sound:
            levels = np.frombuffer(chunk.pcm, np.int16).astype(np.float32) / 32768
            mel = self._shared.log_mel.step(torch.from_numpy(levels)[None], clip.mel, (0,))[0]
            self._add_sound(mel)
            if chunk.is_last:
                self._add_sound(self._shared.log_mel.flush(clip.mel, (0,))[0])
        if chunk.is_last:
            self._close_clip(clip)

    def _append_text(self, command: AppendText) -> None:
        if self._clip is not None:
            raise RequestFailed("clip_open", "text came inside a clip")
        self._open_message(command.role)
        self._writer.text(command.text)

    def _append_image(self, pictures: Pictures) -> None:
        if self._clip is not None:
            raise RequestFailed("clip_open", "an image came inside a clip")
        try:
            patches = image_patches(_one_or_two(pictures)[0], self._shared.omni.images)
        except ValueError as fault:
            self._refuse("invalid_image", str(fault))
            return
        self._open_message("user")
        self._add_tokens(self._writer.take_text())
        self._require_room(2)
        self._add_tokens(
            [self._config.vision_start_token_id], self._timeline.open_segment(with_audio=False)
        )
        self._add_picture(patches, 0, self._config.image_token_index)
        self._add_tokens([self._config.vision_end_token_id], self._timeline.close_segment())

    def _commit(self, options: ReplyOptions, now_ms: float) -> None:
        if self._clip is not None:
            raise RequestFailed("clip_open", "the turn was committed inside a clip")
        speech = options.speech and self.talker is not None
        if options.speech and not speech:
            raise RequestFailed("no_speech", "this checkpoint has no Talker; ask for text alone")
        voice = options.voice or self._settings.voice
        thinker_sampling = _sampling(options.thinker, GREEDY)
        talker_sampling = _sampling(options.talker, TALKER_SAMPLING)
        runner = self._shared.runner
        if speech:
            voice_row = runner.voice_row(voice)  # an unknown voice fails before anything changes
            runner.begin_speech(self.lane, voice, options.noise_seed)
        if not self._turn_segments and self._open_role != "user":
            self._open_message("user")
        self._close_message()
        self._open_message("assistant")
        self._add_tokens(self._writer.take_text())
        self._open_role = None  # what the reply leaves open is closed when it joins the prompt
        limits = self._shared.config
        self.reply = SpokenReply(
            turn_id=self.turn_id,
            start=self._checkpoint(),
            talker_positions=self._timeline.talker_start(),
            stream=self._shared.omni.tokenizer.stream(),
            feed=SpeechFeed(runner.end_slot, runner.pad_slot),
            usage=self._input_usage(),
            max_text_tokens=min(
                options.max_text_tokens or limits.max_text_tokens, limits.max_text_tokens
            ),
            max_codes=min(options.max_codes or limits.max_codes, limits.max_codes),
            speech=speech,
            spoken=SpokenText(options.silent_from),
            is_speech_done=not speech,
            is_sound_done=not speech,
        )
        self._replies.append(self.reply)
        self.state = TurnState.REPLYING
        self._turn_segments = []
        self.thinker.wants_token = True
        self.thinker.sampling, self.thinker.num_drawn = thinker_sampling, 0
        has_penalty = thinker_sampling.repetition_penalty != 1
        runner.begin_text(self.lane, set(self._prompt_ids), has_penalty=has_penalty)
        if speech:
            assert self.talker is not None
            self.talker.sampling, self.talker.num_drawn = talker_sampling, 0
            self._voice_row = voice_row
        self.pace.wait(now_ms, speech=speech)

    # ---- reply

    def _begin_speech(self) -> None:
        """Put the voice row behind the prompt. The Talker now has every row of it, computed or pending."""
        reply, talker = self._running(), self.talker
        if not reply.speech:
            return
        assert talker is not None
        position = np.full((3, 1), reply.talker_positions[0])
        talker.append(Segment(position, rows=self._voice_row))

    def _take_text_token(self, token: int, now_ms: float) -> None:
        reply = self._running()
        self.thinker.num_drawn += 1
        if token in self._shared.omni.end_ids:
            reply.has_end = reply.is_text_done = True
        else:
            self._show(reply, token)
            has_room = self.thinker.num_computed < self._shared.context_tokens
            reply.is_text_done = len(reply.tokens) >= reply.max_text_tokens or not has_room
            reply.is_limited |= reply.is_text_done
        if not reply.is_text_done:
            slot = self._shared.runner.row_slot(self.lane, reply.num_rows)
            position = self._timeline.next_position
            self._timeline.text(1)
            self.thinker.decode = DecodeInput(token, slot, position)
        self._feed_speech(reply)
        self._feed_talker(reply)
        self._finish_if_done(now_ms)

    def _show(self, reply: SpokenReply, token: int) -> None:
        text = reply.stream.push(token)
        reply.spoken.push(text)
        reply.tokens.append(token)
        reply.token_bytes.append(len(text.encode()))
        if text:
            self._emit(TextDelta(self.session_id, self.turn_id, text))

    def _feed_speech(self, reply: SpokenReply) -> None:
        """Put every row into the feed that is computed and certain to be spoken; close it behind the last."""
        if reply.is_text_done:
            reply.spoken.close()
        while reply.num_fed < min(reply.num_rows, reply.spoken.num_certain):
            reply.feed.put(self._shared.runner.row_slot(self.lane, reply.num_fed))
            reply.num_fed += 1
        is_complete = reply.num_fed == reply.spoken.num_certain
        if reply.is_text_done or (reply.spoken.is_over and is_complete):
            reply.feed.close()
            if reply.spoken.is_over and not reply.num_fed:
                reply.is_speech_done = reply.is_sound_done = True  # not a word to say

    def _feed_talker(self, reply: SpokenReply) -> None:
        """Give the Talker its next row, if there is one and it wants one."""
        talker = self.talker
        if reply.is_speech_done or talker is None or talker.decode is not None:
            return
        slot = reply.feed.take()
        if slot is None:
            return
        assert self._shared.omni.config.talker is not None
        _, first, second = reply.talker_positions
        if talker.num_drawn:
            code, position = reply.codes[-1], second + talker.num_drawn - 1
        else:
            code, position = self._shared.omni.config.talker.tts_codec_start_token_id, first
        talker.decode = DecodeInput(code, slot, position)

    def _add_windows(self, reply: SpokenReply) -> None:
        """Hand the codec every window that the codes complete, and after the last code the rest."""
        assert self._planner is not None
        num_codes = len(reply.codes)
        window = self._planner.next_window(reply.progress, num_codes, False)
        if window is not None:
            self._add_window(reply, is_last=False)
            reply.progress = window.after
        if not reply.is_speech_done:
            return
        if num_codes:
            self._add_window(reply, is_last=True)
        else:
            reply.is_sound_done = True

    def _add_window(self, reply: SpokenReply, *, is_last: bool) -> None:
        assert self._planner is not None
        codes = tuple(reply.codes[reply.num_windowed :])
        phase = self._planner.phase(reply.progress, reply.num_windowed)
        reply.num_windowed = len(reply.codes)
        content = WindowContent(self.lane, codes, is_last)
        group = (phase, len(codes), is_last)
        job = Job(self.session_id, Role.CODEC, group, max(1, len(codes)), content)
        self._shared.scheduler.add_job(job)

    def _finish_if_done(self, now_ms: float) -> None:
        reply = self._running()
        if not reply.is_done:
            return
        if reply.speech and not reply.is_limited:
            num_bytes = sum(reply.token_bytes[: reply.spoken.num_certain])
            self._rate.learn(reply.num_samples, num_bytes)
        self._stop_reply()
        reason = DoneReason.MAX_TOKENS if reply.is_limited else DoneReason.COMPLETED
        self._finish(TurnDone(self.session_id, self.turn_id, reason, self._usage(reply)))
        self._take_waiting(now_ms)

    def _stop_reply(self) -> None:
        """Stop computing the reply and withdraw the Talker's own span; the text stays as far as it is computed."""
        reply = self._running()
        self._shared.scheduler.drop_jobs(self.session_id, Role.CODEC)  # media may still wait
        if self.thinker.num_computed < reply.start.length:
            self._cut_to(reply.start)  # not even its prompt is computed: keep that pending
            self.thinker.wants_token = False
        else:
            self._rewind_text(reply, reply.num_rows)
        if self.talker is not None:
            self._shared.scheduler.cut(self.talker, reply.start.length)
        reply.is_over = True

    def _rewind_text(self, reply: SpokenReply, num_tokens: int) -> None:
        """Make the newest reply end after `num_tokens` computed tokens."""
        self._cut_to(reply.start)
        self._timeline.text(num_tokens)
        self._shared.scheduler.cut(self.thinker, reply.start.length + num_tokens)
        self._prompt_ids += reply.tokens[:num_tokens]
        reply.num_rows = num_tokens

    def _join_reply(self, reply: SpokenReply) -> None:
        """Make the reply a part of the prompt: the Thinker has it, to the Talker it now becomes rows."""
        num_rows = reply.num_rows
        if self.talker is not None and num_rows:
            rows = self._shared.runner.reply_rows(self.lane, num_rows)
            timeline = reply.start.timeline.snapshot()
            self.talker.append(Segment(timeline.text(num_rows).numpy(), rows=rows))
        self.reply = None
        # A last token that was shown but, a limit having struck, never computed.
        unspoken = reply.tokens[num_rows : num_rows + 1] if reply.is_limited else []
        self._add_tokens([*unspoken, *self._writer.close_message()], joins=True)
        self._num_cached = reply.start.length + num_rows

    def _cancel(self, command: CancelTurn, now_ms: float) -> None:
        if self.state is TurnState.LISTENING:
            self._forget_turn()
            reason, usage = DoneReason.CANCELLED, Usage()
            self._finish(TurnDone(self.session_id, self.turn_id, reason, usage))
        elif self.reply is not None and self.reply.turn_id == command.turn_id:
            is_running = self.state is TurnState.REPLYING
            if is_running:
                usage = self._usage(self.reply)
                self.reply.is_limited = False
                self._stop_reply()
            if command.heard_samples is not None:
                self._truncate(self.reply, command.heard_samples)
            if is_running:
                done = DoneReason.CANCELLED
                self._finish(TurnDone(self.session_id, self.turn_id, done, usage))
        self._take_waiting(now_ms)

    def _truncate(self, reply: SpokenReply, heard_samples: int) -> None:
        """Keep of the newest reply what was heard, and say what that is."""
        self._say_truncated(reply, heard_samples)
        kept = self._heard_tokens(reply)
        if kept <= reply.num_rows:
            reply.is_limited = False  # an unspoken last token is cut as well
            if kept < reply.num_rows:
                self._rewind_text(reply, kept)

    def _truncate_earlier(self, command: TruncateTurn, now_ms: float) -> None:
        reply = next((r for r in self._replies if r.turn_id == command.turn_id), None)
        if reply is None or not reply.is_over:
            return  # unknown, or it still runs: then CancelTurn is what cuts it
        if reply is self.reply:
            self._truncate(reply, command.heard_samples)
            return
        if self.state is TurnState.REPLYING:  # it answers a history that is no longer true
            self._cancel(CancelTurn(self.session_id, self.turn_id), now_ms)
        self._rebase(reply, command.heard_samples)

    def _rebase(self, reply: SpokenReply, heard_samples: int) -> None:
        """Cut the history inside an earlier reply and put the input of the current turn behind the cut.

        Encoded rows are kept; they are prefilled again, at positions moved by a constant.
        """
        self._say_truncated(reply, heard_samples)
        heard = self._heard_tokens(reply)
        kept = min(heard, reply.num_rows)
        unspoken = reply.tokens[kept:heard] if reply.is_limited else []
        segments, writer, role = self._turn_segments, self._writer, self._open_role
        is_listening = self.state is TurnState.LISTENING
        old, old_start = self._timeline, self._start.timeline.next_position
        length = reply.start.length + kept
        self._prompt_ids = self._prompt_ids[:length]
        for seq in self.sequences:
            self._shared.scheduler.cut(seq, length)
        self._timeline = reply.start.timeline.snapshot()
        self._timeline.text(kept)
        self._replies = self._replies[: self._replies.index(reply) + 1]
        reply.num_rows, reply.is_limited, self.reply = kept, bool(unspoken), None
        self._num_cached = length
        self._writer, self._turn_segments = PromptWriter(self._shared.omni.tokenizer), []
        self._add_tokens([*unspoken, *self._writer.close_message()], joins=True)
        self._start, self._open_role = self._checkpoint(), None
        if not is_listening:
            return
        moved = self._timeline.next_position - old_start
        for segment, ids in segments:
            segment.positions = segment.positions + moved
            self._append_segment(segment, ids)
        old_max = max([self._timeline.max_position, *(int(s.positions.max()) for s, _ in segments)])
        old.next_position += moved
        old.last_part_max += moved
        old.segment_start = None if old.segment_start is None else old.segment_start + moved
        old.max_position = old_max
        self._timeline, self._writer, self._open_role = old, writer, role

    def _say_truncated(self, reply: SpokenReply, heard_samples: int) -> None:
        limit = reply.num_samples if reply.heard_samples is None else reply.heard_samples
        reply.heard_samples = max(0, min(heard_samples, limit))
        num_kept = self._heard_tokens(reply)
        if num_kept > reply.num_rows and not reply.is_limited:  # shown, but not computed
            num_kept = reply.num_rows
        text = self._shared.omni.tokenizer.decode(reply.tokens[:num_kept])
        heard = reply.heard_samples
        self._emit(TurnTruncated(self.session_id, reply.turn_id, heard, text))

    def _heard_tokens(self, reply: SpokenReply) -> int:
        assert reply.heard_samples is not None
        if not reply.speech:
            return len(reply.tokens)
        num_spoken = reply.spoken.num_certain
        assert self._shared.omni.model.token2wav is not None
        per_code = self._shared.omni.model.token2wav.config.samples_per_code
        # Without the rest of the text a reply's sound cannot be spread over it.
        is_whole = reply.is_speech_done and reply.is_text_done
        num_heard = heard_tokens(
            reply.token_bytes[:num_spoken],
            reply.heard_samples,
            reply.num_codes * per_code if is_whole else None,
            samples_per_byte=self._rate.samples_per_byte,
            samples_per_code=per_code,
        )
        return len(reply.tokens) if is_whole and num_heard == num_spoken else num_heard

    def _finish(self, done: TurnDone) -> None:
        self.state = TurnState.OVER
        self._clip = None
        self._emit(done)

    def _take_waiting(self, now_ms: float) -> None:
        """Take in what came for the next turn while the reply ran."""
        while self._waiting and self.state is not TurnState.REPLYING:
            self.receive(self._waiting.popleft(), now_ms)

    # ---- prompt

    def _write_system(self, system: str | None) -> None:
        prompt = self._shared.omni.system_prompt if system is None else system
        if prompt:
            self._add_tokens(self._writer.open_message("system"))
            self._writer.text(prompt)
            self._add_tokens(self._writer.close_message())

    def _open_message(self, role: str) -> None:
        if self._open_role == role:
            return
        self._close_message()
        self._add_tokens(self._writer.open_message(role))  # type: ignore[arg-type]  # a str of `Role`
        self._open_role = role

    def _close_message(self) -> None:
        if self._open_role is not None:
            self._add_tokens(self._writer.close_message())
            self._open_role = None

    def _close_clip(self, clip: Clip) -> None:
        self._clip = None
        if not clip.is_video:
            self._add_tokens([self._config.audio_end_token_id])
            return
        markers = [self._config.audio_end_token_id, self._config.vision_end_token_id]
        self._require_room(2)
        self._add_tokens(markers[1 - clip.has_sound :], self._timeline.close_segment())

    def _current_clip(self) -> Clip:
        if self._clip is None:
            raise RequestFailed("no_clip", "media came outside a clip; open one first")
        return self._clip

    def _add_sound(self, mel: Tensor) -> None:
        """Add mel frames [T, M] of whole blocks, or of a clip's rest."""
        for block in torch.split(mel, self._config.audio.block_frames) if len(mel) else ():
            rows = num_rows(len(block))
            if not rows:
                continue
            self._require_room(rows)
            in_video = self._clip is not None and self._clip.is_video
            positions = self._timeline.audio(rows) if in_video else self._timeline.text(rows)
            segment = Segment(positions.numpy())
            self._append_segment(segment, [self._config.audio_token_index] * rows)
            content = EncodeContent(segment, block)
            self._add_job(Job(self.session_id, Role.AUDIO, (), len(block), content))

    def _add_picture(self, patches: Patches, index: int, placeholder_id: int) -> None:
        merge = self._config.vision.spatial_merge_size
        height, width = patches.grid_h // merge, patches.grid_w // merge
        self._require_room(height * width)
        segment = Segment(self._timeline.pair(index, height, width).numpy())
        self._append_segment(segment, [placeholder_id] * segment.length)
        content = EncodeContent(segment, patches)
        self._add_job(Job(self.session_id, Role.VISION, (), len(patches.values), content))

    def _add_job(self, job: Job) -> None:
        self._shared.scheduler.add_job(job)

    def _add_tokens(
        self, token_ids: list[int], positions: Tensor | None = None, *, joins: bool = False
    ) -> None:
        """Add text or control tokens; `joins`: they end a reply, and are not of the current turn."""
        if not token_ids:
            return
        self._require_room(len(token_ids))
        at = self._timeline.text(len(token_ids)) if positions is None else positions
        segment = Segment(at.numpy(), tuple(token_ids))
        self._append_segment(segment, token_ids)
        if joins:
            self._turn_segments.pop()

    def _append_segment(self, segment: Segment, token_ids: list[int]) -> None:
        self.thinker.append(segment)
        self._prompt_ids += token_ids
        self._turn_segments.append((segment, token_ids))

    def _require_room(self, num: int) -> None:
        wanted, limit = len(self._prompt_ids) + num, self._shared.context_tokens
        if wanted > limit:
            raise RequestFailed(
                "context_full",
                f"the conversation would be {wanted} tokens long; the limit is {limit}. "
                "Start a new session or send less media",
            )

    def _checkpoint(self) -> Checkpoint:
        length = len(self._prompt_ids)
        return Checkpoint(length, self._timeline.snapshot(), self._writer.copy(), self._open_role)

    def _cut_to(self, point: Checkpoint) -> None:
        self._shared.scheduler.cut(self.thinker, max(point.length, self.thinker.num_computed))
        self._timeline = point.timeline.snapshot()
        self._writer = point.writer.copy()
        self._open_role = point.open_role
        self._prompt_ids = self._prompt_ids[: point.length]

    def _forget_turn(self) -> None:
        """Take back the input of a turn that was not committed."""
        self._shared.scheduler.drop_jobs(self.session_id, Role.AUDIO, Role.VISION)
        self._clip = None
        self._cut_to(self._start)
        for seq in self.sequences:
            self._shared.scheduler.cut(seq, self._start.length)
        self._turn_segments = []

    def _input_usage(self) -> Usage:
        text, audio, image = self._count(0, len(self._prompt_ids))
        cached = self._count(0, self._num_cached)
        return Usage(text, audio, image, *cached)

    def _count(self, start: int, stop: int) -> tuple[int, int, int]:
        """Text, audio and picture tokens among some rows of the prompt."""
        ids = np.array(self._prompt_ids[start:stop], np.int64)
        config = self._config
        audio = int((ids == config.audio_token_index).sum())
        image = int(((ids == config.image_token_index) | (ids == config.video_token_index)).sum())
        return len(ids) - audio - image, audio, image

    def _usage(self, reply: SpokenReply) -> Usage:
        used = reply.usage
        return Usage(
            used.input_text_tokens,
            used.input_audio_tokens,
            used.input_image_tokens,
            used.cached_text_tokens,
            used.cached_audio_tokens,
            used.cached_image_tokens,
            output_text_tokens=len(reply.tokens),
            output_audio_tokens=reply.num_codes,
        )

    def _refuse(self, code: str, message: str) -> None:
        self._emit(InputRefused(self.session_id, self.turn_id, code, message))

    def _running(self) -> SpokenReply:
        assert self.reply is not None, "no reply runs"
        return self.reply

    def _emit(self, reply: Reply) -> None:
        self._shared.emit(reply)

    def _sequence(self, seq_id: int, role: Role) -> Sequence:
        return Sequence(seq_id, self.session_id, role, self.lane, self.pace)


def _one_or_two(pictures: Pictures) -> tuple[Picture, Picture | None]:
    """Raises ValueError if there are none."""
    if pictures.fault is not None or not pictures.pixels:
        raise ValueError(pictures.fault or "no picture")
    return pictures.pixels[0], pictures.pixels[1] if len(pictures.pixels) > 1 else None


def _sampling(options: SamplingOptions | None, default: Sampling) -> Sampling:
    if options is None:
        return default
    return Sampling(
        options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed
    )
