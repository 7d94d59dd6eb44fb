"""Transcriber: what users said, written down by the same model in a worker session of its own.

It stands back behind replies: it begins when the reply to a turn can be heard, or when nothing is being answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.context import Passage, Words
from server.events import TranscriptionCompleted, TranscriptionDelta, TranscriptionFailed
from server.items import InputAudio, UserMessage
from streaming.media import INPUT_SAMPLE_RATE, ClipKind, ClipStart, MediaChunk
from streaming.packets import DoneReason, ReplyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from server.context import Context, Piece
    from server.journal import Record
    from server.responses import Wiring
    from streaming.packets import TextDelta, TurnDone

PROMPT = "You are a speech recognition model."
REQUEST = "Transcribe the English audio into text without any punctuation marks."
"""Both as the model was trained to transcribe."""
MIN_TOKENS, TOKENS_PER_SECOND = 16, 8
"""Nobody speaks faster; a small model that has lost its way would repeat itself up to its own limit."""
MAX_WAITING = 8


@dataclass(slots=True)
class _Job:
    item_id: str
    sound: list[Piece]
    seconds: float
    begin_ms: int
    give_up_ms: int
    text: str = ""
    num_retries: int = 0


class Transcriber:
    """One transcription at a time; owned by the session."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._context: Context = wiring.new_context()
        self._jobs: deque[_Job] = deque()
        """The first is the one that runs, if one does."""
        self._turn_id: int | None = None

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def add(self, record: Record, now_ms: int) -> None:
        """Have a user's item transcribed, if it has sound."""
        sound = list(_sound(record.pieces))
        num_samples = sum(p.num_samples for p in sound if isinstance(p, MediaChunk))
        if not num_samples:
            return
        limits = self._wiring.limits
        # Who commits a turn asks for a response a moment later; that one comes first.
        begin_ms, give_up_ms = now_ms + limits.transcribe_delay_ms, now_ms + limits.queue_ms
        seconds = num_samples / INPUT_SAMPLE_RATE
        self._jobs.append(_Job(record.item.id, sound, seconds, begin_ms, give_up_ms))
        if len(self._jobs) > MAX_WAITING:
            job = self._jobs[1]
            del self._jobs[1]
            self._fail(job, "rate_limit_exceeded", "Too many turns wait to be transcribed.")

    def pump(self, now_ms: int) -> None:
        """Begin the next one; call it when there is a worker and no reply that should come first."""
        if not self._jobs or self._turn_id is not None or now_ms < self._jobs[0].begin_ms:
            return
        request = Words("user", REQUEST)
        passage = Passage(("sound", self._jobs[0].item_id), [*self._jobs[0].sound, request])
        self._context.close()
        self._context.tell(PROMPT, lambda _: [passage])
        max_tokens = MIN_TOKENS + int(TOKENS_PER_SECOND * self._jobs[0].seconds)
        self._turn_id = self._context.commit(ReplyOptions(speech=False, max_text_tokens=max_tokens))

    def tick(self, now_ms: int) -> None:
        """Give up what is overdue."""
        while self._jobs and self._turn_id is None and now_ms >= self._jobs[0].give_up_ms:
            self._end("server_error", "No worker had a place for this transcription.")
        if self._jobs and now_ms >= self._jobs[0].begin_ms:
            # From now on it waits for others, who do not come with time.
            self._jobs[0].begin_ms = 0

    def wake_ms(self) -> int | None:
        if not self._jobs or self._turn_id is not None:
            return None
        job = self._jobs[0]
        return min(job.begin_ms or job.give_up_ms, job.give_up_ms)

    def receive_text(self, packet: TextDelta) -> None:
        if not self._is_ours(packet.session_id, packet.turn_id):
            return
        job = self._jobs[0]
        text = packet.text if job.text else packet.text.lstrip()
        if text:
            job.text += text
            self._wiring.outbox.put(TranscriptionDelta(job.item_id, 0, text))

    def receive_done(self, packet: TurnDone) -> None:
        if not self._is_ours(packet.session_id, packet.turn_id):
            return
        if packet.reason is DoneReason.FAILED:
            self._end("server_error", "The transcription could not be made.")
        else:
            self._complete()

    def receive_failure(self, session_id: str, code: str, now_ms: int) -> None:
        if session_id != self._context.session_id:
            return
        self._context.forget()
        if code == "worker_full" and not self._jobs[0].text:
            self._turn_id = None
            job = self._jobs[0]
            job.num_retries += 1
            job.begin_ms = now_ms + self._wiring.limits.retry_ms * 2**job.num_retries
        else:
            self._end("server_error", "The transcription could not be made.")

    def lose_worker(self) -> None:
        """What has not begun waits for the next worker."""
        self._context.forget()
        if self._turn_id is not None:
            self._end("server_error", "The worker that transcribed this was lost.")

    def close(self) -> None:
        self._context.close()
        self._jobs.clear()
        self._turn_id = None

    def _is_ours(self, session_id: str, turn_id: int) -> bool:
        return session_id == self._context.session_id and turn_id == self._turn_id

    def _complete(self) -> None:
        job = self._jobs.popleft()
        self._leave()
        transcript = job.text.strip()
        self._write(job.item_id, transcript)
        done = TranscriptionCompleted(job.item_id, 0, transcript, job.seconds)
        self._wiring.outbox.put(done)

    def _write(self, item_id: str, transcript: str) -> None:
        record = self._wiring.journal.get(item_id)
        if record is not None and isinstance(record.item, UserMessage):
            for part in record.item.content:
                if isinstance(part, InputAudio):
                    part.transcript = transcript

    def _end(self, code: str, message: str) -> None:
        job = self._jobs.popleft()
        self._leave()
        self._fail(job, code, message)

    def _leave(self) -> None:
        self._turn_id = None
        self._context.close()

    def _fail(self, job: _Job, code: str, message: str) -> None:
        self._wiring.outbox.put(TranscriptionFailed(job.item_id, 0, code, message))


def _sound(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """A clip without its pictures; nothing of a clip without sound."""
    for piece in pieces:
        if isinstance(piece, ClipStart):
            if piece.kind is ClipKind.VIDEO:
                return
            yield ClipStart(ClipKind.SOUND, piece.start_sample)
        elif isinstance(piece, MediaChunk):
            yield piece
