"""Dialogue: one caller's conversation as seen from the caller's end; server events in, turn records and answers out.

    speech ends   turn decided   response   first text   first audio byte   first audible sample        last byte
    ────┼──────────────┼────────────┼───────────┼───────────────┼───────────────────┼───────────────────────┼──▶
        0        decided_ms   response_ms  first_text_ms  first_audio_ms       audible_ms               last_audio_ms

No socket and no clock: times are arguments, in seconds on one clock. Every figure in milliseconds counts from the
moment the last sample of the caller's speech was spoken, as the caller would count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.playout import Playout
from benchmarks.load.records import Packet, TurnRecord

Event = dict[str, Any]

BETA_NAMES = {
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.text.delta": "response.output_text.delta",
}
LEAD_S = 1.0
"""Speed is measured until the reply is so far ahead of the ear: beyond, a server may rightly hold it back."""
BURST_S = 0.05


@dataclass(frozen=True, slots=True)
class Utterance:
    """What the caller says, and when its first and last sample are spoken."""

    clip: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class Reply:
    """One response of the server."""

    response_id: str
    created_s: float
    playout: Playout
    item_id: str | None = None
    first_text_s: float | None = None
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Time and samples of each packet."""
    text: str = ""
    status: str | None = None
    reason: str | None = None
    done_s: float | None = None
    silenced_s: float | None = None
    """When the caller's player was emptied."""
    num_stale: int = 0
    """Packets that came after it."""

    def is_in_ear(self, now_s: float) -> bool:
        end = self.playout.end_s
        return self.silenced_s is None and (
            self.done_s is None or (end is not None and end > now_s)
        )

    def is_over(self, now_s: float) -> bool:
        """Nothing more will come, and nothing is still to be heard."""
        return self.done_s is not None and not self.is_in_ear(now_s)


@dataclass(slots=True)
class Turn:
    """One utterance and what came of it."""

    index: int
    spoken: Utterance
    decided_s: float | None = None
    num_early_decisions: int = 0
    """Times that the server took a pause for the end."""
    replies: list[Reply] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    interrupted_s: float | None = None
    interrupted_by: str = ""

    @property
    def reply(self) -> Reply | None:
        """The one that answers: earlier ones were given up because the caller spoke on."""
        return self.replies[-1] if self.replies else None


class Dialogue:
    """Every turn of one call.

    Order: `begin_turn` when an utterance is given to the microphone, `receive` for each event as it comes; the events
    it returns are to be sent. `is_answered` says when the caller may go on.
    """

    def __init__(self, prebuffer_s: float, output_rate: int = 24_000) -> None:
        self.turns: list[Turn] = []
        self.errors: list[str] = []
        self._prebuffer_s = prebuffer_s
        self._output_rate = output_rate
        self._replies: dict[str, tuple[Turn, Reply]] = {}
        self._is_heard_speaking = False

    @property
    def turn(self) -> Turn:
        return self.turns[-1]

    def begin_turn(self, spoken: Utterance) -> Turn:
        """The caller starts to speak; a reply still in the ear is thereby interrupted."""
        for turn, reply in self._replies.values():
            if reply.is_in_ear(spoken.start_s) and turn.interrupted_s is None:
                turn.interrupted_s, turn.interrupted_by = spoken.start_s, "voice"
        self.turns.append(Turn(len(self.turns), spoken))
        self._is_heard_speaking = False
        return self.turn

    def decide(self, now_s: float) -> None:
        """The turn is over: the server said so, or the caller committed it."""
        turn = self.turn
        turn.decided_s = now_s
        turn.num_early_decisions += now_s < turn.spoken.end_s

    def press_stop(self, now_s: float, why: str = "cancel") -> list[Event]:
        """The caller wants silence at once; returns what to send."""
        turn, reply = self.turn, self.turn.reply
        assert reply is not None
        turn.interrupted_s, turn.interrupted_by = now_s, why
        cancel = [] if reply.done_s is not None else [{"type": "response.cancel"}]
        return cancel + self._silence(reply, now_s)

    def receive(self, now_s: float, event: Event, pcm: bytes = b"") -> list[Event]:
        """Take a server event, with the sound of an audio delta decoded; return what a client answers."""
        kind = str(event["type"])
        kind = BETA_NAMES.get(kind, kind)
        match kind:
            case "input_audio_buffer.speech_started":
                self._is_heard_speaking = True
                return self._silence_all(now_s)
            case "input_audio_buffer.speech_stopped":
                self._is_heard_speaking = False
                if self.turns:
                    self.decide(now_s)
            case "error":
                error = event["error"]
                self.fail(f"{error.get('code') or error.get('type')}: {error.get('message')}")
            case "response.created" if self.turns:
                response_id = event["response"]["id"]
                playout = Playout(self._prebuffer_s, self._output_rate)
                reply = Reply(response_id, now_s, playout)
                self._replies[response_id] = (self.turn, reply)
                self.turn.replies.append(reply)
            case _:
                response_id = str(event.get("response_id") or event.get("response", {}).get("id"))
                if response_id in self._replies:
                    self._take(now_s, kind, event, pcm, self._replies[response_id][1])
        return []

    def fail(self, words: str) -> None:
        """Note an error with the turn it struck."""
        (self.turn.errors if self.turns else self.errors).append(words)

    def is_answered(self, now_s: float) -> bool:
        """The utterance is spoken, its reply is complete and heard to the end (or silenced)."""
        reply = self.turn.reply
        return (
            now_s >= self.turn.spoken.end_s
            and not self._is_heard_speaking
            and reply is not None
            and reply.status != "cancelled"
            and reply.is_over(now_s)
        ) or (self.turn.interrupted_s is not None and reply is not None and reply.is_over(now_s))

    def audible_s(self) -> float | None:
        """When the current reply could first be heard, if it can."""
        reply = self.turn.reply
        return None if reply is None else reply.playout.first_audible_s

    def heard(self, now_s: float) -> Event | None:
        """A `playback.ack` of what is in the ear now, if anything is."""
        reply = self.turn.reply if self.turns else None
        if reply is None or reply.item_id is None or not reply.is_in_ear(now_s):
            return None
        heard_ms = self._heard_ms(reply, now_s)
        return {"type": "playback.ack", "item_id": reply.item_id, "audio_end_ms": heard_ms}

    def _take(self, now_s: float, kind: str, event: Event, pcm: bytes, reply: Reply) -> None:
        match kind:
            case "response.output_item.added":
                reply.item_id = event["item"].get("id")
            case "response.output_audio.delta":
                if reply.silenced_s is not None:
                    reply.num_stale += 1
                    return
                reply.arrivals.append((now_s, len(pcm) // 2))
                reply.playout.push(now_s, pcm)
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                reply.first_text_s = now_s if reply.first_text_s is None else reply.first_text_s
                reply.text += event["delta"]
            case "response.done":
                response = event["response"]
                reply.status, reply.done_s = response["status"], now_s
                details = response.get("status_details") or {}
                error = details.get("error") or {}
                reply.reason = error.get("code") or details.get("reason")
                reply.playout.finish(now_s)

    def _silence_all(self, now_s: float) -> list[Event]:
        answers: list[Event] = []
        for _, reply in self._replies.values():
            if reply.is_in_ear(now_s):
                answers += self._silence(reply, now_s)
        return answers

    def _silence(self, reply: Reply, now_s: float) -> list[Event]:
        """Empty the player and tell the server how much was heard, as every client of this protocol does."""
        reply.silenced_s = now_s
        if reply.item_id is None or not reply.arrivals:
            return []
        heard_ms = self._heard_ms(reply, now_s)
        return [
            {
                "type": "conversation.item.truncate",
                "item_id": reply.item_id,
                "content_index": 0,
                "audio_end_ms": heard_ms,
            }
        ]

    def _heard_ms(self, reply: Reply, now_s: float) -> int:
        return round(reply.playout.heard_samples(now_s) / self._output_rate * 1000)


def speed(created_s: float, arrivals: list[tuple[float, int]], rate: int) -> float | None:
    """Seconds of sound per second, from the response's creation to its last packet, or to a lead of `LEAD_S`.

    Packets that come together were made together: they count as a whole. None without sound.
    """
    received, first_s = 0, arrivals[0][0] if arrivals else 0.0
    elapsed_s = 0.0
    for i, (now_s, samples) in enumerate(arrivals):
        received += samples
        elapsed_s = now_s - created_s
        is_burst = i + 1 < len(arrivals) and arrivals[i + 1][0] - now_s < BURST_S
        if not is_burst and received / rate - (now_s - first_s) > LEAD_S:
            break
    return None if elapsed_s <= 0 or not received else received / rate / elapsed_s


def record(turn: Turn, *, rate: int) -> TurnRecord:
    """The turn as figures; to be made when nothing of it will come any more."""
    zero, reply = turn.spoken.end_s, turn.reply

    def after(at_s: float | None) -> float | None:
        return None if at_s is None else round(1000 * (at_s - zero), 2)

    made = TurnRecord(
        index=turn.index,
        clip=turn.spoken.clip,
        speech_s=round(turn.spoken.end_s - turn.spoken.start_s, 3),
        decided_ms=after(turn.decided_s),
        num_early_decisions=turn.num_early_decisions,
        errors=list(turn.errors),
        status="no reply",
    )
    if reply is None:
        return made
    playout = reply.playout
    made.status = reply.status or "timeout"
    made.reason = reply.reason
    made.response_ms = after(reply.created_s)
    made.first_text_ms = after(reply.first_text_s)
    made.audible_ms = after(playout.first_audible_s)
    made.done_ms = after(reply.done_s)
    made.text = reply.text
    made.audio_s = round(playout.num_samples / rate, 3)
    made.underruns_ms = [round(1000 * hole.duration_s, 2) for hole in _heard_holes(reply)]
    made.speed = speed(reply.created_s, reply.arrivals, rate)
    if reply.arrivals:
        made.first_audio_ms = after(reply.arrivals[0][0])
        made.last_audio_ms = after(reply.arrivals[-1][0])
        made.packets = [Packet(after(t) or 0.0, n) for t, n in reply.arrivals]
    if turn.interrupted_s is not None:
        made.interrupted_by = turn.interrupted_by
        if reply.silenced_s is not None:
            made.silence_ms = round(1000 * (reply.silenced_s - turn.interrupted_s), 2)
            made.heard_s = round(playout.heard_samples(reply.silenced_s) / rate, 3)
            made.num_stale_packets = reply.num_stale
            if reply.done_s is not None and reply.status == "cancelled":
                made.cancelled_ms = round(1000 * (reply.done_s - reply.silenced_s), 2)
    return made


def _heard_holes(reply: Reply) -> list[Any]:
    """Holes that the caller was there to hear: none after the player was emptied."""
    until = reply.silenced_s
    return [h for h in reply.playout.underruns if until is None or h.start_s < until]
