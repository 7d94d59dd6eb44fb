"""A worker without a model: it speaks the packets and answers every turn with the same words and the same sound.

    python benchmarks/stand_in_worker.py SOCKET [--fault exit|silent|stuck|late|odd] [--sound-seconds 1.0] [--lanes 64]

What the gateway costs can be measured with it, and how it takes a worker's faults, without waiting for one to load.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import sys
import threading
import time
from array import array
from collections import deque
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streaming.packets import (
    PROTOCOL,
    AudioDelta,
    CancelTurn,
    Capacity,
    CloseSession,
    Command,
    CommitTurn,
    DoneReason,
    Hello,
    HoldTurn,
    OpenSession,
    Ready,
    SessionOpened,
    TextDelta,
    TruncateTurn,
    TurnDone,
    TurnTruncated,
    Usage,
    WorkerStatus,
    decode_command,
)
from streaming.transport import ThreadedLink, dial

WORDS = ("Good", " day", ".")
DELTA_SAMPLES = 1920  # 80 ms
PERIOD_SAMPLES = 4001  # shares no factor with a delta: what is lost, doubled or late shows
HEARTBEAT_S = 1.0


# One period of each, int16.
SAW = array("h", range(PERIOD_SAMPLES)).tobytes()
HUM = array("h", (round(6000 * math.sin(math.tau * n / 80)) for n in range(80))).tobytes()  # 300 Hz
SOUNDS = {"saw": SAW, "hum": HUM}


def sound_of(start_sample: int, num_samples: int, period: bytes = SAW) -> bytes:
    """A piece of the one sound that every reply has: a sawtooth, or a hum for those who listen at real speakers."""
    period_samples = len(period) // 2
    first = start_sample % period_samples
    num_periods = (first + num_samples) // period_samples + 1
    return (period * num_periods)[2 * first : 2 * (first + num_samples)]


@dataclass(slots=True)
class Reply:
    """One that is being spoken."""

    session_id: str
    turn_id: int
    start_sample: int = 0
    is_held: bool = False


class StandIn:
    """Commands in, replies out; sound as fast as it can or, paced, as fast as it is heard."""

    def __init__(
        self,
        link_of: list[ThreadedLink[Command]],
        sound_samples: int,
        pace: float,
        words: tuple[str, ...] = WORDS,
        *,
        period: bytes = SAW,
        is_odd: bool = False,
    ) -> None:
        """`is_odd`: from the second reply of a session on, sound comes in bytes that are no samples."""
        self._link_of = link_of
        self._sound_samples = sound_samples
        self._pace = pace
        self._words = words
        self._period = period
        self._is_odd = is_odd
        self._inbox: deque[Command] = deque()
        self._changed = threading.Condition()
        self._replies: dict[tuple[str, int], Reply] = {}
        self.sessions: set[str] = set()
        self.num_steps = 0
        self.has_ended = False

    def receive(self, command: Command) -> None:
        with self._changed:
            self._inbox.append(command)
            self._changed.notify()

    def ended(self, _: object) -> None:
        with self._changed:
            self.has_ended = True
            self._changed.notify()

    @property
    def is_busy(self) -> bool:
        return bool(self._replies)

    def run(self) -> None:
        while True:
            with self._changed:
                runnable = any(not r.is_held for r in self._replies.values())
                if not (self._inbox or runnable or self.has_ended):
                    self._changed.wait()
                if self.has_ended:
                    return
                commands = list(self._inbox)
                self._inbox.clear()
            for command in commands:
                self._take(command)
            for reply in [r for r in self._replies.values() if not r.is_held]:
                self._speak(reply)
            if self._replies and self._pace:
                time.sleep(DELTA_SAMPLES / 24_000 / self._pace)
            self.num_steps += 1

    def _send(self, packet: object) -> None:
        self._link_of[0].send(packet)  # type: ignore[arg-type]  # each is a Reply

    def _take(self, command: Command) -> None:
        match command:
            case OpenSession():
                self.sessions.add(command.session_id)
                self._send(SessionOpened(command.session_id))
            case CloseSession():
                self.sessions.discard(command.session_id)
                for key in [k for k in self._replies if k[0] == command.session_id]:
                    del self._replies[key]
            case CommitTurn():
                for word in self._words:
                    self._send(TextDelta(command.session_id, command.turn_id, word))
                reply = Reply(command.session_id, command.turn_id)
                if command.options.speech:
                    self._replies[command.session_id, command.turn_id] = reply
                else:
                    self._done(reply, DoneReason.COMPLETED)
            case HoldTurn():
                if reply := self._replies.get((command.session_id, command.turn_id)):
                    reply.is_held = command.is_held
            case CancelTurn():
                self._cancel(command)
            case TruncateTurn():
                heard = command.heard_samples
                self._send(TurnTruncated(command.session_id, command.turn_id, heard, "Good"))

    def _cancel(self, command: CancelTurn) -> None:
        reply = self._replies.pop((command.session_id, command.turn_id), None)
        if command.heard_samples is not None:
            heard = command.heard_samples
            self._send(TurnTruncated(command.session_id, command.turn_id, heard, "Good"))
        reply = reply or Reply(command.session_id, command.turn_id)
        self._done(reply, DoneReason.CANCELLED)

    def _speak(self, reply: Reply) -> None:
        num_samples = min(DELTA_SAMPLES, self._sound_samples - reply.start_sample)
        pcm = sound_of(reply.start_sample, num_samples, self._period)
        if self._is_odd and reply.turn_id:
            pcm += b"\0"
        if num_samples:
            self._send(AudioDelta(reply.session_id, reply.turn_id, reply.start_sample, pcm))
        reply.start_sample += num_samples
        if reply.start_sample >= self._sound_samples:
            self._replies.pop((reply.session_id, reply.turn_id), None)
            self._done(reply, DoneReason.COMPLETED)

    def _done(self, reply: Reply, reason: DoneReason) -> None:
        usage = Usage(input_text_tokens=20, output_text_tokens=3, output_audio_tokens=50)
        self._send(TurnDone(reply.session_id, reply.turn_id, reason, usage))


def beat(worker: StandIn, link: ThreadedLink[Command], fault: str) -> None:
    """Say once a second that we live, unless the fault is that we do not.

    stuck: work waits, no step ends; late: while there are sessions, a reply is a minute late.
    """
    while fault != "silent":
        time.sleep(HEARTBEAT_S)
        steps = 1 if fault == "stuck" else worker.num_steps
        link.send(
            WorkerStatus(
                steps,
                0,
                fault == "stuck" or worker.is_busy,
                len(worker.sessions),
                1000,
                100_000_000,
                60_000 if fault == "late" and worker.sessions else 0,
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--model", default="stand-in")
    parser.add_argument(
        "--fault", choices=("", "exit", "silent", "stuck", "late", "odd"), default=""
    )
    parser.add_argument("--words", default=",".join(WORDS), help="of every reply, with commas")
    parser.add_argument("--sound", choices=SOUNDS, default="saw")
    parser.add_argument("--sound-seconds", type=float, default=1.0)
    parser.add_argument("--pace", type=float, default=0.0, help="times real time; 0: at once")
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    args = parser.parse_args()
    if args.fault == "exit":
        return os.EX_SOFTWARE
    link_of: list[ThreadedLink[Command]] = []
    faulthandler.enable()  # it is asked for its stacks before it is ended
    worker = StandIn(
        link_of,
        round(24_000 * args.sound_seconds),
        args.pace,
        tuple(args.words.split(",")),
        period=SOUNDS[args.sound],
        is_odd=args.fault == "odd",
    )
    link = ThreadedLink(dial(args.socket), decode_command, worker.receive, worker.ended)
    link_of.append(link)
    link.start()
    link.send(Hello(PROTOCOL, "0", args.model))
    time.sleep(args.load_seconds)
    link.send(Ready(Capacity(args.lanes, 10_000, 16, 32_768, ("Chelsie", "Ethan"))))
    threading.Thread(target=beat, args=(worker, link, args.fault), daemon=True).start()
    worker.run()
    link.close()
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
