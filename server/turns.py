"""Turns: when the user's turn begins and ends, and what becomes of it.

server detection   speech started ─▶ interrupt the reply … speech stopped ─▶ item ─▶ answer it
manual             append …                               commit         ─▶ item
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.context import Passage, Picture
from server.events import (
    ErrorEvent,
    InputCommitted,
    InputTimeout,
    ItemAdded,
    ItemDone,
    SpeechStarted,
    SpeechStopped,
    VideoCommitted,
)
from server.input import InputBuffer
from server.items import InputAudio, UserMessage, snapshot
from server.journal import Record
from streaming import vad
from streaming.errors import ClientError
from streaming.media import input_ms, input_samples

if TYPE_CHECKING:
    from server.context import Write
    from server.heard import Heard
    from server.input import Utterance
    from server.responses import Responses, Wiring
    from server.settings import Settings
    from server.transcriber import Transcriber
    from streaming.silero import SpeechProgress


class Turns:
    """The user's side of the conversation; owned by the session."""

    def __init__(
        self,
        wiring: Wiring,
        settings: Settings,
        responses: Responses,
        heard: Heard,
        transcriber: Transcriber,
    ) -> None:
        self.input = InputBuffer(settings.input_format.sound, settings.frames)
        self.reports_frames = False
        """The client has used our video events: tell it of frames."""
        self._wiring = wiring
        self._settings = settings
        self._responses = responses
        self._heard = heard
        self._transcriber = transcriber
        self._told: tuple[int, int] | None = None
        self._timed_out_id: str | None = None
        """The response after which the user's silence was noticed."""
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take new settings, from the next decision on."""
        self._settings = settings
        self.input.set_format(settings.input_format.sound)
        detection = settings.turn_detection
        self.input.set_detection(detection.to_vad() if detection is not None else None)
        self.input.rules = settings.frames

    # ---- what comes in

    def append(self, received: bytes, now_ms: int) -> None:
        """Take sound as the client encodes it."""
        self.append_pcm(self.input.read(received), now_ms)

    def append_pcm(self, pcm: bytes, now_ms: int) -> None:
        """Take sound at 16 kHz."""
        self.input.append(pcm)
        if self.input.is_listening:
            self._bound_unjudged()
        elif pcm:
            self._begin_manual()
            self.input.take_all()
            self._bound_manual()

    def receive_speech(self, progress: SpeechProgress, now_ms: int) -> None:
        """Take what the detector has heard."""
        if not self.input.is_listening:
            return
        for event in progress.events:
            at_sample = self.input.our_sample(event.at_sample)
            if isinstance(event, vad.SpeechStarted):
                self._begin_speech(at_sample, now_ms)
            else:
                self._end_speech(at_sample, now_ms)
        self.input.judge(self.input.our_sample(progress.until_sample))
        utterance = self.input.utterance
        if utterance is not None and utterance.num_samples >= self._max_samples:
            # A turn that is too long ends at the limit; what follows is the next one.
            self._end_speech(utterance.end_sample, now_ms)

    def commit(self, now_ms: int) -> None:
        """Make an item of everything that is pending.

        Raises:
            ClientError: there is neither enough sound nor a frame.
        """
        self.input.finish_reading()
        least_ms = self._wiring.limits.min_commit_ms
        if self.input.pending_ms >= least_ms:
            self._begin_manual()
            self._add(self.input.end_here(), now_ms)
        elif len(self.input.camera):
            self._add(self.input.end_frames(*self._new_names()), now_ms)
        else:
            raise ClientError(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. "
                f"Expected at least {least_ms}ms of audio, "
                f"but buffer only has {self.input.pending_ms:.2f}ms of audio.",
            )

    # ---- what the worker is to know meanwhile

    def write_live(self) -> Write | None:
        """Return what writes what the worker is to know while the user speaks; None if nothing is new."""
        utterance = self.input.utterance
        if utterance is None:
            self._told = None
            return None
        now = utterance.serial, len(utterance.pieces)
        if self._told == now:
            return None
        self._told = now
        live = Passage(("item", utterance.serial, 0), utterance.pieces, is_growing=True)
        return lambda session_id: [*self._wiring.journal.passages(session_id), live]

    def tell_again(self) -> None:
        """The worker has forgotten what the user says."""
        self._told = None

    # ---- silence

    def silence_ms(self) -> int | None:
        """When the user will have been silent for too long after a reply; None if nobody waits for that."""
        detection, reply = self._settings.turn_detection, self._responses.main
        if detection is None or detection.idle_timeout_ms is None or reply is None:
            return None
        if reply.is_active or self.input.utterance is not None or reply.id == self._timed_out_id:
            return None
        played_ms = self._responses.played_ms
        return None if played_ms is None else played_ms + detection.idle_timeout_ms

    def tick(self, now_ms: int) -> None:
        due = self.silence_ms()
        reply = self._responses.main
        if due is None or now_ms < due or reply is None:
            return
        self._timed_out_id = reply.id
        utterance = self.input.begin_kept(*self._new_names())
        start_ms, end_ms = input_ms(utterance.start_sample), self.input.clock_ms
        self._wiring.outbox.put(InputTimeout(start_ms, end_ms, utterance.item_id))
        self._add(self.input.end_here(), now_ms)
        self._responses.wants_automatic = True

    # ---- inside

    @property
    def _max_samples(self) -> int:
        return input_samples(self._wiring.limits.turn_ms)

    def _new_names(self) -> tuple[str, int]:
        return self._wiring.new_id("item"), self._wiring.journal.next_serial()

    def _begin_manual(self) -> None:
        if self.input.utterance is None:
            self.input.begin_kept(*self._new_names())

    def _begin_speech(self, at_sample: int, now_ms: int) -> None:
        if not self.input.can_begin(at_sample):
            return  # decided before the detector heard of a commit or clear
        utterance = self.input.begin(at_sample, *self._new_names())
        started = SpeechStarted(input_ms(utterance.start_sample), utterance.item_id)
        self._wiring.outbox.put(started)
        detection = self._settings.turn_detection
        if detection is not None and detection.interrupt_response:
            self._responses.wants_automatic = False
            if self._responses.cancel(None, "turn_detected", now_ms):
                self._heard.note_interrupted(now_ms)

    def _end_speech(self, at_sample: int, now_ms: int) -> None:
        if self.input.utterance is None:
            return
        utterance = self.input.end(at_sample)
        stopped = SpeechStopped(input_ms(utterance.end_sample), utterance.item_id)
        self._wiring.outbox.put(stopped)
        self._add(utterance, now_ms)
        detection = self._settings.turn_detection
        if detection is not None and detection.create_response:
            self._responses.wants_automatic = True

    def _add(self, utterance: Utterance, now_ms: int) -> None:
        """What the user said becomes an item."""
        journal, outbox = self._wiring.journal, self._wiring.outbox
        item = UserMessage(utterance.item_id, [InputAudio()] if utterance.has_sound else [])
        stills = [Picture(frame.jpeg) for frame in utterance.stills]
        record = Record(item, utterance.serial, [*utterance.pieces, *stills])
        previous_id = journal.add(record, journal.tail_id)
        outbox.put(InputCommitted(previous_id, item.id))
        if self.reports_frames:
            outbox.put(_frames_of(utterance))
        outbox.put(ItemAdded(previous_id, snapshot(item)))
        outbox.put(ItemDone(previous_id, snapshot(item)))
        if self._settings.transcription is not None:
            self._transcriber.add(record, now_ms)

    def _bound_manual(self) -> None:
        """Without a commit, nothing grows for ever: what is too old goes, and the buffer begins anew."""
        utterance = self.input.utterance
        if utterance is not None and utterance.num_samples >= self._max_samples:
            self.input.clear()
            self._say_too_large()

    def _bound_unjudged(self) -> None:
        if self.input.drop_unjudged(self._max_samples):
            self._say_too_large()

    def _say_too_large(self) -> None:
        self._wiring.outbox.put(
            ErrorEvent(
                "input_audio_buffer_too_large",
                f"More than {self._wiring.limits.turn_ms} ms of audio without a commit; it was dropped.",
            )
        )


def _frames_of(utterance: Utterance) -> VideoCommitted:
    return VideoCommitted(
        utterance.item_id,
        utterance.num_frames,
        utterance.num_thinned,
        input_ms(utterance.start_sample),
        input_ms(utterance.end_sample),
    )
