"""Turn: one utterance and its reply; the state table and the object that walks it.

                   add_input             receive_text/audio
                    ┌────┐                  ┌────┐
                    ▼    │                  ▼    │
     begin ──▶ LISTENING ─── commit ──▶ COMMITTED ── first delta ──▶ REPLYING ── finish ──▶ DONE
                    │                       │                           │
                    └──────── cancel ───────┴───────────────────────────┘
                                            ▼
                                        CANCELLED      what the worker still says is taken and not delivered

An event that the table does not list for the state is somebody's fault: the client's if the event came from there, the
worker's otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from streaming.errors import ClientError, ParleyError, RequestFailed


class TurnState(StrEnum):
    LISTENING = "listening"
    COMMITTED = "committed"
    REPLYING = "replying"
    DONE = "done"
    CANCELLED = "cancelled"


class TurnEvent(Enum):
    """What may happen to a turn, and the code of the error if it must not happen now."""

    INPUT = "turn_committed"
    COMMIT = "turn_already_committed"
    CANCEL = "response_cancel_not_active"
    TRUNCATE = "nothing_to_truncate"
    DELTA = "unexpected_delta"
    FINISH = "unexpected_end"


CLIENT_EVENTS = frozenset({TurnEvent.INPUT, TurnEvent.COMMIT, TurnEvent.CANCEL, TurnEvent.TRUNCATE})

NEXT: dict[tuple[TurnState, TurnEvent], TurnState] = {
    (TurnState.LISTENING, TurnEvent.INPUT): TurnState.LISTENING,
    (TurnState.LISTENING, TurnEvent.COMMIT): TurnState.COMMITTED,
    (TurnState.LISTENING, TurnEvent.CANCEL): TurnState.CANCELLED,
    (TurnState.COMMITTED, TurnEvent.DELTA): TurnState.REPLYING,
    (TurnState.COMMITTED, TurnEvent.FINISH): TurnState.DONE,  # an empty or failed reply
    (TurnState.COMMITTED, TurnEvent.CANCEL): TurnState.CANCELLED,
    (TurnState.REPLYING, TurnEvent.DELTA): TurnState.REPLYING,
    (TurnState.REPLYING, TurnEvent.FINISH): TurnState.DONE,
    (TurnState.REPLYING, TurnEvent.CANCEL): TurnState.CANCELLED,
    (TurnState.REPLYING, TurnEvent.TRUNCATE): TurnState.REPLYING,
    (TurnState.DONE, TurnEvent.TRUNCATE): TurnState.DONE,
    # The worker learns of a cancel later than the turn; what it sent until then is stale.
    (TurnState.CANCELLED, TurnEvent.DELTA): TurnState.CANCELLED,
    (TurnState.CANCELLED, TurnEvent.FINISH): TurnState.CANCELLED,
    (TurnState.CANCELLED, TurnEvent.TRUNCATE): TurnState.CANCELLED,
}


@dataclass(slots=True)
class Turn:
    """Owned by the session. `turn_id` grows by one and is never reused in a session.

    Every method raises `ClientError` or `RequestFailed` if the table does not list it, and then has changed nothing.
    """

    turn_id: int
    start_sample: int
    """On the input clock."""
    state: TurnState = TurnState.LISTENING
    input_samples: int = 0
    reply_samples_sent: int = 0
    reply_samples_heard: int = 0
    """Played, as far as the client has reported."""
    reply_samples_kept: int | None = None
    """What a truncation left of the reply; None: all of it."""

    @property
    def is_over(self) -> bool:
        return self.state in (TurnState.DONE, TurnState.CANCELLED)

    def add_input(self, num_samples: int) -> None:
        self._walk(TurnEvent.INPUT)
        self.input_samples += num_samples

    def commit(self) -> None:
        self._walk(TurnEvent.COMMIT)

    def receive_text(self) -> bool:
        """Take a text delta; True if it is to be delivered."""
        self._walk(TurnEvent.DELTA)
        return self.state is TurnState.REPLYING

    def receive_audio(self, start_sample: int, num_samples: int) -> bool:
        """Take an audio delta; True if it is to be delivered.

        Raises:
            RequestFailed: it does not begin where the last one ended: sound was lost or repeated.
        """
        is_wanted = self.state is not TurnState.CANCELLED
        if is_wanted and start_sample != self.reply_samples_sent:
            raise RequestFailed(
                "audio_gap",
                f"turn {self.turn_id}: audio from sample {start_sample}, expected {self.reply_samples_sent}",
            )
        self._walk(TurnEvent.DELTA)
        if is_wanted:
            self.reply_samples_sent += num_samples
        return is_wanted

    def finish(self) -> bool:
        """Take the worker's last word; True if the turn was still wanted."""
        self._walk(TurnEvent.FINISH)
        return self.state is TurnState.DONE

    def cancel(self) -> None:
        self._walk(TurnEvent.CANCEL)

    def report_heard(self, num_samples: int) -> None:
        """Note how much of the reply was played: never back, never beyond what was sent. At any time, as clients do."""
        heard = max(self.reply_samples_heard, num_samples)
        self.reply_samples_heard = min(heard, self.reply_samples_sent)

    def truncate(self, num_samples: int) -> int:
        """Keep only so much of the reply; return what is kept: never more than was sent or kept before."""
        self._walk(TurnEvent.TRUNCATE)
        before = (
            self.reply_samples_sent if self.reply_samples_kept is None else self.reply_samples_kept
        )
        self.reply_samples_kept = min(before, max(0, num_samples))
        return self.reply_samples_kept

    def _walk(self, event: TurnEvent) -> None:
        state = NEXT.get((self.state, event))
        if state is None:
            raise self._fault(event)
        self.state = state

    def _fault(self, event: TurnEvent) -> ParleyError:
        message = f"turn {self.turn_id} is {self.state}"
        if event in CLIENT_EVENTS:
            return ClientError(event.value, message)
        return RequestFailed(event.value, message)
