"""The prompt of a conversation while it is being written: media and text in, segments of the Thinker out.

Rows are counted and placed on the timeline as soon as their number is known; encoders fill them in later, and what the
Thinker makes of them goes to the Talker, row for row. Every place where a turn or a reply begins can be gone back to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.audio_encoder import num_rows
from model.image import Grid, image_patches, pair_patches, video_grid
from model.prompt import PromptWriter
from model.rope import Timeline
from streaming.engine.runner import EncodeContent
from streaming.engine.sequence import Job, Role, Segment, Sequence
from streaming.errors import RequestFailed
from streaming.media import ClipKind
from streaming.packets import Usage

if TYPE_CHECKING:
    from torch import Tensor

    from model.image import Patches
    from model.mel import LogMelState
    from model.prompt import Role as ChatRole
    from streaming.engine.pictures import Picture, Pictures
    from streaming.engine.shared import Shared
    from streaming.media import FramePair, MediaChunk


class PictureRefused(ValueError):
    """A picture is broken, or of a size that the model cannot see; nothing of it was added."""


@dataclass(slots=True)
class Clip:
    """The clip being received."""

    kind: ClipKind
    mel: LogMelState
    num_chunks: int = 0
    num_pairs: int = 0
    grid: Grid | None = None

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
    open_role: ChatRole | None


@dataclass(frozen=True, slots=True)
class Written:
    """A segment and one id per row of it."""

    segment: Segment
    ids: list[int] = field(default_factory=list)


class Prompt:
    """Owns the two sequences of a conversation and everything that says where their next row goes.

    Raises:
        RequestFailed: from every method that writes: `context_full`, or media in an order that makes no sense.
        ValueError: text that would be read as control tokens.
    """

    def __init__(self, thinker: Sequence, talker: Sequence | None, shared: Shared) -> None:
        self.thinker = thinker
        self.talker = talker
        self.num_cached = 0
        """Leading rows that were computed for earlier replies."""
        self._shared = shared
        self._config = shared.omni.config.thinker
        self._timeline = Timeline.for_config(self._config)
        self._writer = PromptWriter(shared.omni.tokenizer)
        self._open_role: ChatRole | None = None
        self._ids: list[int] = []
        """One per row of the Thinker, placeholders included."""
        self._clip: Clip | None = None
        self._turn: list[Written] = []
        """What the current turn has put in."""
        self._start = self.checkpoint()

    @property
    def sequences(self) -> list[Sequence]:
        return [self.thinker] if self.talker is None else [self.thinker, self.talker]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids)

    @property
    def has_open_clip(self) -> bool:
        return self._clip is not None

    def talker_start(self) -> tuple[int, int, int]:
        """Positions of the voice row, the first and the second row of a reply's speech."""
        return self._timeline.talker_start()

    # ---- input

    def write_system(self, prompt: str) -> None:
        """Begin the conversation; an empty prompt writes nothing."""
        self._add_tokens(self._writer.system(prompt))
        self.begin_turn()

    def begin_turn(self) -> None:
        """From here on input belongs to a new turn."""
        self._turn = []
        self._start = self.checkpoint()

    def forget_turn(self) -> None:
        """Take back the input of a turn that was not committed."""
        session_id = self.thinker.session_id
        self._shared.scheduler.drop_jobs(session_id, Role.AUDIO, Role.VISION)
        self._clip = None
        self.cut_to(self._start)
        for seq in self.sequences:
            self._shared.scheduler.cut(seq, self._start.length)
        self._turn = []

    def open_clip(self, kind: ClipKind) -> None:
        self._require_no_clip("a clip is open; close it with its last chunk first")
        self._open_message("user")
        self._clip = clip = Clip(kind, self._shared.log_mel.init_state(1))
        tokens, config = self._writer.take_text(), self._config
        if not clip.is_video:
            self._add_tokens([*tokens, config.audio_start_token_id])
            return
        self._add_tokens(tokens)
        self._require_room(1 + clip.has_sound)
        markers = [config.vision_start_token_id, config.audio_start_token_id][: 1 + clip.has_sound]
        self._add_tokens(markers, self._timeline.open_segment(with_audio=clip.has_sound))

    def append_pair(self, pair: FramePair, pictures: Pictures) -> None:
        """Add the camera of one second of the clip. Raises PictureRefused."""
        clip = self._current_clip()
        if not clip.is_video:
            raise RequestFailed("no_video", "a frame pair came in a clip of sound alone")
        if pair.index < clip.num_pairs or (clip.has_sound and pair.chunk_index != clip.num_chunks):
            raise RequestFailed(
                "out_of_order", f"frame pair {pair.index} came after chunk {clip.num_chunks}"
            )
        first, *others = _require_pixels(pictures)
        images = self._shared.omni.images
        try:
            grid = clip.grid or video_grid(first, images)
            second = others[0] if others else None
            patches = pair_patches(first, second, grid=grid, settings=images)
        except ValueError as fault:
            raise PictureRefused(str(fault)) from None
        clip.grid, clip.num_pairs = grid, pair.index + 1
        self._add_picture(patches, pair.index, self._config.video_token_index)

    def append_chunk(self, chunk: MediaChunk) -> None:
        clip = self._current_clip()
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

    def append_text(self, role: ChatRole, text: str) -> None:
        self._require_no_clip("text came inside a clip")
        self._open_message(role)
        self._writer.text(text)

    def append_image(self, pictures: Pictures) -> None:
        """Raises PictureRefused."""
        self._require_no_clip("an image came inside a clip")
        first, *_ = _require_pixels(pictures)
        try:
            patches = image_patches(first, self._shared.omni.images)
        except ValueError as fault:
            raise PictureRefused(str(fault)) from None
        self._open_message("user")
        self._add_tokens(self._writer.take_text())
        self._require_room(2)
        self._add_tokens(
            [self._config.vision_start_token_id], self._timeline.open_segment(with_audio=False)
        )
        self._add_picture(patches, 0, self._config.image_token_index)
        self._add_tokens([self._config.vision_end_token_id], self._timeline.close_segment())

    # ---- replies

    def open_reply(self) -> Checkpoint:
        """Close the turn's input and open the assistant's message; return where its first token goes."""
        if not self._turn and self._open_role != "user":
            self._open_message("user")
        self._close_message()
        self._open_message("assistant")
        self._add_tokens(self._writer.take_text())
        self._open_role = None  # what the reply leaves open is closed when it joins the prompt
        self._turn = []
        return self.checkpoint()

    def take_position(self) -> int:
        """Where the next token of the reply goes."""
        position = self._timeline.next_position
        self._timeline.text(1)
        return position

    def add_computed(self, token: int) -> None:
        """A token of the reply is in the Thinker's cache."""
        self._ids.append(token)

    def rewind_reply(self, start: Checkpoint, tokens: list[int]) -> None:
        """Make the reply that began at `start` end after `tokens`, all of them computed."""
        self.cut_to(start)
        self._timeline.text(len(tokens))
        self._shared.scheduler.cut(self.thinker, start.length + len(tokens))
        self._ids += tokens

    def join_reply(
        self, start: Checkpoint, num_rows: int, rows: Tensor | None, unspoken: list[int]
    ) -> None:
        """Make the newest reply a part of the prompt: the Thinker has it, to the Talker it now becomes rows.

        `unspoken`: tokens that were shown but never computed.
        """
        if self.talker is not None and rows is not None:
            positions = start.timeline.snapshot().text(num_rows).numpy()
            self.talker.append(Segment(positions, rows=rows))
        self._close_joined(unspoken)
        self.num_cached = start.length + num_rows

    def rebase(
        self, start: Checkpoint, num_rows: int, unspoken: list[int], *, keep_turn: bool
    ) -> None:
        """Cut the history inside an earlier reply and put the input of the current turn behind the cut.

        Encoded rows are kept; they are prefilled again, at positions moved by a constant.
        """
        turn, writer, role = self._turn, self._writer, self._open_role
        old, old_start = self._timeline, self._start.timeline.next_position
        length = start.length + num_rows
        self._ids = self._ids[:length]
        for seq in self.sequences:
            self._shared.scheduler.cut(seq, length)
        self._timeline = start.timeline.snapshot()
        self._timeline.text(num_rows)
        self._writer, self._open_role = PromptWriter(self._shared.omni.tokenizer), None
        self._close_joined(unspoken)
        self.num_cached = length
        self.begin_turn()
        if not keep_turn:
            return
        moved = self._timeline.next_position - old_start
        for written in turn:
            written.segment.positions = written.segment.positions + moved
            self._append(written.segment, written.ids)
        _move(old, moved, self._timeline.max_position, [w.segment for w in turn])
        self._timeline, self._writer, self._open_role = old, writer, role

    # ---- places and counts

    def checkpoint(self) -> Checkpoint:
        timeline, writer = self._timeline.snapshot(), self._writer.copy()
        return Checkpoint(len(self._ids), timeline, writer, self._open_role)

    def cut_to(self, point: Checkpoint) -> None:
        """Forget what is pending behind a place; what is computed there stays until the sequences are cut."""
        length = max(point.length, self.thinker.num_computed)
        self._shared.scheduler.cut(self.thinker, length)
        self._timeline = point.timeline.snapshot()
        self._writer = point.writer.copy()
        self._open_role = point.open_role
        self._ids = self._ids[: point.length]

    def usage(self) -> Usage:
        """Input counts of a reply that begins here."""
        cached = self._count(0, self.num_cached)
        return Usage(*self._count(0, len(self._ids)), *cached)

    # ---- inside

    def _open_message(self, role: ChatRole) -> None:
        if self._open_role == role:
            return
        self._close_message()
        self._add_tokens(self._writer.open_message(role))
        self._open_role = role

    def _close_message(self) -> None:
        if self._open_role is not None:
            self._add_tokens(self._writer.close_message())
            self._open_role = None

    def _close_joined(self, unspoken: list[int]) -> None:
        """Close the assistant's message. These tokens end a reply; they are not of the current turn."""
        written = len(self._turn)
        self._add_tokens([*unspoken, *self._writer.close_message()])
        del self._turn[written:]

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

    def _require_no_clip(self, message: str) -> None:
        if self._clip is not None:
            raise RequestFailed("clip_open", message)

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
            self._append(segment, [self._config.audio_token_index] * rows)
            self._encode(Role.AUDIO, len(block), EncodeContent(segment, block))

    def _add_picture(self, patches: Patches, index: int, placeholder_id: int) -> None:
        merge = self._config.vision.spatial_merge_size
        height, width = patches.grid_h // merge, patches.grid_w // merge
        self._require_room(height * width)
        segment = Segment(self._timeline.pair(index, height, width).numpy())
        self._append(segment, [placeholder_id] * segment.length)
        self._encode(Role.VISION, len(patches.values), EncodeContent(segment, patches))

    def _encode(self, role: Role, size: int, content: EncodeContent) -> None:
        job = Job(self.thinker.session_id, role, (), size, content)
        self._shared.scheduler.add_job(job)

    def _add_tokens(self, token_ids: list[int], positions: Tensor | None = None) -> None:
        """Add text or control tokens."""
        if not token_ids:
            return
        self._require_room(len(token_ids))
        at = self._timeline.text(len(token_ids)) if positions is None else positions
        self._append(Segment(at.numpy(), tuple(token_ids)), token_ids)

    def _append(self, segment: Segment, ids: list[int]) -> None:
        self.thinker.append(segment)
        self._ids += ids
        self._turn.append(Written(segment, ids))

    def _require_room(self, num: int) -> None:
        wanted, limit = len(self._ids) + num, self._shared.context_tokens
        if wanted > limit:
            raise RequestFailed(
                "context_full",
                f"the conversation would be {wanted} tokens long; the limit is {limit}. "
                "Start a new session or send less media",
            )

    def _count(self, start: int, stop: int) -> tuple[int, int, int]:
        """Text, audio and picture tokens among some rows."""
        ids = np.array(self._ids[start:stop], np.int64)
        config = self._config
        audio = int((ids == config.audio_token_index).sum())
        image = int(((ids == config.image_token_index) | (ids == config.video_token_index)).sum())
        return len(ids) - audio - image, audio, image


def _require_pixels(pictures: Pictures) -> tuple[Picture, ...]:
    if pictures.fault is not None or not pictures.pixels:
        raise PictureRefused(pictures.fault or "no picture")
    return pictures.pixels


def _move(timeline: Timeline, moved: int, floor: int, segments: list[Segment]) -> None:
    """Shift a timeline whose segments were shifted; nothing of what stood before may lie above it."""
    timeline.next_position += moved
    timeline.last_part_max += moved
    if timeline.segment_start is not None:
        timeline.segment_start += moved
    timeline.max_position = max([floor, *(int(s.positions.max()) for s in segments)])
