"""One conversation on one model, without an engine: the readable form of how the parts play together.

Input is encoded and prefilled as it is given, the Talker right behind the Thinker. `reply` then yields text, codec
tokens and sound as they are made. The worker's engine does the same for many conversations at once and is tested
against this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.audio_encoder import AudioStream
from model.image import Frame, Grid, Patches, image_patches, pair_patches, video_grid
from model.interleave import Interleaver
from model.mel import LogMel
from model.prefill import Prompt
from model.prompt import PromptWriter
from model.reply import Reply, ReplyDelta, ReplyOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.omni import Omni


@dataclass(slots=True)
class OpenVideo:
    """A video on its way in: frames become pairs, sound becomes blocks, and each waits for its place."""

    interleaver: Interleaver[tuple[int, Patches], Tensor]
    sound: AudioStream | None
    grid: Grid | None = None
    waiting_frame: Frame | None = None
    num_pairs: int = 0


class Chat:
    """One conversation: give it input in pieces of any size, then take the reply as it is made.

    Per turn, any of `text`, `audio`, `image`, `open_video` … `close_video`, in any order and number, then `reply`.
    Methods that add input raise `PromptTooLong` when the context is full, and the `ValueError` of the medium when the
    input cannot be used; the piece that raised has not been added.
    """

    def __init__(
        self, omni: Omni, system: str | None = None, *, capacity: int | None = None
    ) -> None:
        """`system` None: the prompt the checkpoint was trained with, "": none; `capacity` None: its limit in tokens."""
        config = omni.config.thinker
        self.omni = omni
        self.prompt = Prompt(omni, capacity or config.decoder.max_position_embeddings)
        self._config = config
        self._writer = PromptWriter(omni.tokenizer)
        self._log_mel = LogMel(config.audio.num_mel_bins, config.audio.block_frames)
        self._rows_per_chunk = config.seconds_per_chunk * config.position_id_per_seconds
        self._audio: AudioStream | None = None
        self._video: OpenVideo | None = None
        self._last_reply: Reply | None = None
        self._is_turn_open = False
        self.prompt.add_tokens(
            self._writer.system(omni.system_prompt if system is None else system)
        )

    def text(self, text: str) -> None:
        """Add text to the user's turn. Strings that look like control tokens are only text."""
        self._open_turn()
        self._writer.text(text)

    def audio(self, samples: Tensor, *, is_last: bool) -> None:
        """Add samples [n] (float32 mono, 16 kHz) of a clip; complete 2-second blocks are prefilled at once."""
        self._open_turn()
        if self._audio is None:
            self._audio = self._audio_stream()
            self._add_marker(self._config.audio_start_token_id)
        self._add_audio_rows(self._audio.push(samples))
        if is_last:
            self._add_audio_rows(self._audio.flush())
            self._audio = None
            self._add_marker(self._config.audio_end_token_id)

    def image(self, frame: Frame) -> None:
        """Add a picture, uint8 [H, W, 3]."""
        patches = image_patches(frame, self.omni.images)
        self._open_turn()
        self._open_segment(with_sound=False)
        self._add_pair_rows(0, patches, self._config.image_token_index)
        self._close_segment(with_sound=False)

    def open_video(self, *, with_sound: bool) -> None:
        """Begin a video at 2 frames a second; feed it through `frame` and `sound`, in any order of the two."""
        pairs_per_chunk = self._rows_per_chunk // self.prompt.timeline.pair_time(1)
        sound = self._audio_stream() if with_sound else None
        self._open_turn()
        self._open_segment(with_sound=with_sound)
        self._video = OpenVideo(Interleaver(pairs_per_chunk), sound)

    def frame(self, frame: Frame) -> None:
        """Add the next frame, uint8 [H, W, 3]; a pair is prefilled as soon as the sound before it is."""
        video = self._current_video()
        grid = video_grid(frame, self.omni.images)
        video.grid = video.grid or grid
        if video.waiting_frame is None:
            video.waiting_frame = frame
        else:
            self._add_pair(video, video.waiting_frame, frame)

    def sound(self, samples: Tensor) -> None:
        """Add samples [n] (float32 mono, 16 kHz) of the open video."""
        video = self._current_video()
        if video.sound is None:
            raise ValueError("this video was opened without sound; open it with with_sound=True")
        self._add_sound_rows(video, video.sound.push(samples))

    def close_video(self) -> None:
        """End the video: a frame without a partner is doubled, a partial block of sound is encoded as it is."""
        video = self._current_video()
        if video.waiting_frame is not None:
            self._add_pair(video, video.waiting_frame, None)
        if video.sound is not None:
            self._add_sound_rows(video, video.sound.flush())
        self._add_items(video.interleaver.close())
        self._video = None
        self._close_segment(with_sound=video.sound is not None)

    def reply(self, options: ReplyOptions | None = None) -> Iterator[ReplyDelta]:
        """Answer the turn; yields `TextDelta`, `CodeDelta` and `AudioDelta` as soon as each exists.

        The history keeps what the Thinker has computed when the iterator ends or is closed.
        """
        if self._audio is not None or self._video is not None:
            raise ValueError("an audio clip or a video is still open; end it before the reply")
        self._open_turn()
        self.prompt.add_tokens(self._writer.close_message())
        opening = [*self._writer.open_message("assistant"), *self._writer.take_text()]
        self.prompt.add_tokens(opening)
        self._is_turn_open = False
        self._last_reply = Reply(self.prompt, self.omni, options or ReplyOptions())
        yield from self._last_reply.run()

    def _open_turn(self) -> None:
        if self._is_turn_open:
            return
        if self._last_reply is not None:
            self._last_reply.join_prompt()
            self.prompt.add_tokens([*self._last_reply.unspoken, *self._writer.close_message()])
            self._last_reply = None
        self.prompt.add_tokens(self._writer.open_message("user"))
        self._is_turn_open = True

    def _add_marker(self, token_id: int) -> None:
        self.prompt.add_tokens([*self._writer.take_text(), token_id])

    def _audio_stream(self) -> AudioStream:
        return AudioStream(self._log_mel, self.omni.model.thinker.audio_tower)

    def _add_audio_rows(self, rows: Tensor) -> None:
        positions = self.prompt.timeline.text(len(rows))
        self.prompt.add_rows(rows, positions, self._config.audio_token_index)

    def _open_segment(self, *, with_sound: bool) -> None:
        self.prompt.add_tokens(self._writer.take_text())
        markers = [self._config.vision_start_token_id, self._config.audio_start_token_id]
        positions = self.prompt.timeline.open_segment(with_audio=with_sound)
        self.prompt.add_tokens(markers[: 1 + with_sound], positions)

    def _close_segment(self, *, with_sound: bool) -> None:
        markers = [self._config.audio_end_token_id, self._config.vision_end_token_id]
        positions = self.prompt.timeline.close_segment()
        self.prompt.add_tokens(markers[1 - with_sound :], positions)

    def _current_video(self) -> OpenVideo:
        if self._video is None:
            raise ValueError("no video is open; call open_video first")
        return self._video

    def _add_pair(self, video: OpenVideo, first: Frame, second: Frame | None) -> None:
        patches = pair_patches(first, second, grid=video.grid, settings=self.omni.images)
        video.waiting_frame = None
        index, video.num_pairs = video.num_pairs, video.num_pairs + 1
        chunk = self.prompt.timeline.pair_time(index) // self._rows_per_chunk
        self._add_items(video.interleaver.add_pair(chunk, (index, patches)))

    def _add_sound_rows(self, video: OpenVideo, rows: Tensor) -> None:
        for block in torch.split(rows, self._rows_per_chunk) if len(rows) else ():
            self._add_items(video.interleaver.add_audio(block))

    def _add_items(self, items: Sequence[tuple[int, Patches] | Tensor]) -> None:
        for item in items:
            if isinstance(item, Tensor):
                positions = self.prompt.timeline.audio(len(item))
                self.prompt.add_rows(item, positions, self._config.audio_token_index)
            else:
                self._add_pair_rows(*item, self._config.video_token_index)

    def _add_pair_rows(self, index: int, patches: Patches, placeholder_id: int) -> None:
        [rows] = self.omni.model.thinker.visual.encode_pairs([patches])
        merge = self._config.vision.spatial_merge_size
        height, width = patches.grid_h // merge, patches.grid_w // merge
        positions = self.prompt.timeline.pair(index, height, width)
        self.prompt.add_rows(rows, positions, placeholder_id)
