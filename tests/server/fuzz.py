"""Random conversations against the laws of the session, whatever client, worker, detector, decoder and network do.

    python -m tests.server.fuzz --sequences 100000        # prints the seed of the first that breaks a law
    python -m tests.server.fuzz --seed 4711 --show        # that one again, step by step

`Play` holds one conversation; every choice comes from a `random.Random`, so a seed is a conversation, and hypothesis
can shrink one (`test_session_fuzz.py`). `Laws` watches what the client is sent.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict, deque
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from server.dialect import Dialect
from server.events import (
    EventError,
    InputAudioAppend,
    InputAudioClear,
    InputAudioCommit,
    InputImageAppend,
    InputVideoAppend,
    InputVideoClear,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    OutputAudioClear,
    PlaybackAck,
    ResponseCancel,
    ResponseCreate,
    ResponseRequest,
    SessionFinish,
    SessionUpdate,
    TranscriptionSessionUpdate,
)
from server.items import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    InputImage,
    InputText,
    InputVideo,
    ItemReference,
    OutputText,
    SystemMessage,
    UserMessage,
)
from server.limits import Limits
from server.media.jobs import (
    CloseStream,
    Decoded,
    DecodedFrame,
    FaultCode,
    MediaFault,
    Stills,
    StreamData,
)
from server.render import Renderer
from server.session import Session
from server.settings import Settings
from server.tools import write_call
from streaming.errors import ClientError
from streaming.packets import InputRefused
from streaming.silero import SpeechProgress
from streaming.vad import SpeechListener, VadSettings
from tests.fakes import FakeConversation, FakeWorker, Script, knowledge
from tests.server.driving import IDENTITY, VOICES, brief
from tests.server.laws import Laws

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.context import Passage
    from server.events import ClientEvent
    from server.items import Item
    from server.media.jobs import MediaJob
    from streaming.packets import Reply

JPEG = bytes.fromhex("ffd8ffc0000b080010001001011100ffda0008010100003f00ffd9")
BIG_JPEG = bytes.fromhex("ffd8ffc0000b080800080001011100ffda0008010100003f00ffd9")
PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000010000000100802000000")
WEBM = bytes.fromhex("1a45dfa3")
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
LIMITS = Limits(turn_ms=4_000, session_ms=3_600_000, hold_bytes=60_000, max_held_events=30)
SCRIPTS = (
    Script(),
    Script(("One. ", "Two. ", "Three, ", "and ", "so ", "on, ", "for ", "ever."), 96_000),
    Script(("\n", " Hm"), 9_600),
    Script((write_call("look", "{}"),), 0),
    Script(
        (
            "Let me ",
            "see. ",
            "<tool",
            '_call>\n{"name": "look", ',
            '"arguments": {}}\n</tool_call>',
        ),
        24_000,
    ),
    Script((), 0),
    Script(("<b>",), 480),
    Script(("x" * 200, " ", "y" * 200), 240_000),
)
UPDATES: tuple[dict[str, object], ...] = (
    {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
    {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}},
    {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}}},
    {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}},
    {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}}},
    {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}}},
    {"type": "realtime", "audio": {"input": {"transcription": {"model": "any"}}}},
    {"type": "realtime", "audio": {"input": {"transcription": None}}},
    {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}},
    {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
    {"type": "realtime", "audio": {"output": {"format": {"type": "audio/pcma"}}}},
    {"type": "realtime", "audio": {"output": {"format": {"type": "audio/pcm", "rate": 16000}}}},
    {"type": "realtime", "audio": {"output": {"voice": "verse"}}},
    {"type": "realtime", "output_modalities": ["text"]},
    {"type": "realtime", "output_modalities": ["audio"]},
    {"type": "realtime", "instructions": "Be brief."},
    {"type": "realtime", "instructions": ""},
    {"type": "realtime", "tools": [TOOL]},
    {"type": "realtime", "tools": [], "tool_choice": "none"},
    {"type": "realtime", "tool_choice": "required"},
    {"type": "realtime", "video": {"input": {"fps": 1, "max_frames": 4}}},
    {"type": "realtime", "video": {"input": {"audio_track": "ignore"}}},
    {"modalities": ["text", "audio"], "voice": "alloy"},
    {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "no such"}}}},
    {"type": "realtime", "max_output_tokens": "many"},
)  # fmt: skip
OVERRIDES: tuple[dict[str, object], ...] = (
    {},
    {},
    {},
    {"instructions": "Say hello."},
    {"output_modalities": ["text"]},
    {"output_modalities": ["audio"]},
    {"tool_choice": "none"},
    {"tools": [TOOL]},
    {"temperature": 0.7},
    {"max_output_tokens": -3},
)


class Play:
    """One conversation, step by step."""

    def __init__(self, choice: random.Random, *, show: bool = False) -> None:
        self.choice = choice
        self.show = show
        self.now_ms = 0
        self.laws = Laws()
        self.worker: FakeWorker | None = self.new_worker()
        self.commands: deque[object] = deque()
        self.replies: deque[Reply] = deque()
        self.jobs: list[MediaJob] = []
        self.progress: deque[SpeechProgress] = deque()
        self.listener = SpeechListener(VadSettings(), use_gate=False)
        self.is_speech = False
        self.num_collected = 0
        self.counts: dict[str, int] = defaultdict(int)
        self.dialect = choice.choice(list(Dialect))
        self.session = Session(
            IDENTITY,
            Settings.default(self.dialect, VOICES, "Be kind."),
            self.dialect,
            self.worker.capacity if self.worker else None,
            LIMITS,
            self.new_id,
            voices=VOICES,
        )
        self.renders = choice.random() < 0.02

    def new_worker(self) -> FakeWorker:
        lanes = self.choice.choice((1, 2, 8))
        context = self.choice.choice((6, 1_000, 1_000))
        return FakeWorker(lambda _: self.choice.choice(SCRIPTS), lanes, context)

    def new_id(self, kind: str) -> str:
        self.counts[kind] += 1
        return f"{kind}_{self.counts[kind]}"

    # ---- steps

    def step(self) -> None:
        [(name, act, _)] = self.choice.choices(ACTIONS, cum_weights=WEIGHTS)
        self.note(name)
        act(self)
        self.collect()

    def note(self, what: str) -> None:
        if self.show:
            sys.stdout.write(f"{self.now_ms:6} {what}\n")

    def send(self, event: ClientEvent) -> None:
        if self.show:
            self.note(f"  > {type(event).__name__} {str(event)[:150]}")
        self.laws.receive(event)
        self.session.receive_event(event, self.now_ms)

    def collect(self) -> None:
        """Take the outputs that go to other parties; those for the client wait until it reads."""
        for heard in self.session.speech_to_hear():
            if isinstance(heard, bytes):
                self.listener.push(heard)
            elif isinstance(heard, int):
                self.listener.detector.stop(heard)
            else:
                self.listener.detector.settings = heard
        self.jobs += self.session.media_to_decode()
        self.commands += self.session.commands_to_send()
        self.num_collected += 1
        if self.num_collected % 4 == 0:
            self.laws.check_state(self.session)

    def carry_commands(self, most: int = 1_000_000) -> None:
        while self.commands and most:
            most -= 1
            command = self.commands.popleft()
            if self.worker is not None:
                if self.show:
                    self.note(f"  c {str(command)[:150]}")
                self.worker.submit(command)  # type: ignore[arg-type]  # it came from `commands_to_send`
                self.replies += self.worker.take_replies()

    def carry_replies(self, most: int = 1_000_000) -> None:
        while self.replies and most:
            most -= 1
            reply = self.replies.popleft()
            if self.show:
                self.note(f"  r {str(reply)[:150]}")
            self.session.receive_reply(reply, self.now_ms)
            self.collect()

    def read(self, most: int = 1_000_000) -> None:
        while most and (event := self.session.take_event()) is not None:
            most -= 1
            if self.show:
                self.note(f"  < {brief(event)}")
            self.laws.send(event)
            if self.renders:
                Renderer(self.session.dialect, IDENTITY).render(
                    event, self.session.settings.delivery
                )
        self.collect()

    def listen(self) -> None:
        """The detector judges what it has been given."""
        before = self.listener.until_sample
        while self.listener.next_window() is not None:
            self.listener.receive(0.95 if self.is_speech else 0.01, np.zeros((2, 128), np.float32))
        events = tuple(self.listener.take_events())
        if self.listener.until_sample > before:
            self.progress.append(SpeechProgress(self.listener.until_sample, events))

    # ---- the client

    def append(self) -> None:
        self.append_sound(self.choice.choice((0, 1, 640, 4_801, 9_600, 24_000, 50_001)))

    def append_sound(self, size: int) -> None:
        """Append sound that is never the same twice."""
        self.counts["sound"] += 1
        self.send(InputAudioAppend(audio=bytes([self.counts["sound"] % 256]) * size))

    def talk(self) -> None:
        """A whole spoken turn, with the detector keeping up."""
        self.is_speech = True
        self.append_sound(self.choice.choice((10_000, 24_000, 60_000)))
        self.collect()
        self.hear()
        self.is_speech = False
        self.append_sound(self.choice.choice((10_000, 60_000)))
        self.collect()
        self.hear()

    def hear(self) -> None:
        self.listen()
        while self.progress:
            progress = self.progress.popleft()
            if self.show:
                self.note(f"  v {progress}")
            self.session.receive_speech(progress, self.now_ms)
            self.collect()

    def item_id(self) -> str:
        """The id of an item, of one there never was, or of the newest of an assistant."""
        records = self.session._journal.records
        said = [r.item.id for r in records if isinstance(r.item, AssistantMessage)]
        ids = [r.item.id for r in records] + ["nobody"]
        return (
            self.choice.choice(said[-1:] * 3 or ids)
            if self.choice.random() < 0.6
            else self.choice.choice(ids)
        )

    def create_item(self) -> None:
        self.counts["c"] += 1
        item = self.new_item(f"c{self.counts['c']}")
        after = self.choice.choice((None, None, None, "root", "nobody", self.item_id()))
        if self.choice.random() < 0.1 and (taken := self.item_id()) != "nobody":
            item.id = taken
        self.send(ItemCreate(event_id=self.new_id("e"), item=item, previous_item_id=after))

    def new_item(self, item_id: str) -> Item:
        content = self.choice.choice(
            (
                [InputText("Look.")],
                [InputText("Look."), InputImage(JPEG)],
                [InputImage(JPEG)],
                [InputImage(PNG)],
                [InputImage(BIG_JPEG)],
                [InputImage(b"no picture")],
                [InputAudio(encoded=bytes(self.choice.choice((0, 3, 9_600, 48_000))))],
                [InputVideo(WEBM, "video/webm")],
                [],
            )
        )
        return self.choice.choice(
            (
                UserMessage(item_id, list(content)),
                UserMessage(item_id, list(content)),
                SystemMessage(item_id, [InputText("Be fast.")]),
                AssistantMessage(item_id, [OutputText("I did.")]),
                FunctionCall(item_id, "look", "call_9", "{}"),
                FunctionCallOutput(item_id, "call_9", "42"),
            )
        )

    def create_response(self) -> None:
        event_id = self.new_id("e")
        given = None
        if self.choice.random() < 0.2:
            given = (self.new_item("i1"), ItemReference(self.item_id()))
        request = ResponseRequest(
            self.choice.choice(("auto", "auto", "none")),
            given,
            {"event": event_id},
            self.choice.choice(OVERRIDES),
        )
        self.send(ResponseCreate(event_id=event_id, response=request))

    def cancel(self) -> None:
        response_id = self.choice.choice((None, None, f"resp_{self.counts['resp']}", "nobody"))
        self.send(ResponseCancel(event_id=self.new_id("e"), response_id=response_id))

    def truncate(self) -> None:
        end_ms = self.choice.choice((0, 20, 100, 500, 100_000))
        self.send(
            ItemTruncate(
                event_id=self.new_id("e"),
                item_id=self.item_id(),
                content_index=0,
                audio_end_ms=end_ms,
            )
        )

    def show_frame(self) -> None:
        image = self.choice.choice((JPEG, JPEG, JPEG, PNG, BIG_JPEG, b"no"))
        at = self.choice.choice((None, None, None, 0, self.now_ms))
        self.send(InputImageAppend(event_id=self.new_id("e"), image=image, timestamp_ms=at))

    def send_chunk(self) -> None:
        if self.choice.random() < 0.3:
            self.send(InputVideoAppend(event_id=self.new_id("e"), video=JPEG, format="image/jpeg"))
            return
        self.send(
            InputVideoAppend(
                event_id=self.new_id("e"),
                video=WEBM + bytes(30) if self.choice.random() < 0.3 else bytes(40),
                format=self.choice.choice(("video/webm", "video/webm", "video/mp4")),
                stream_id=self.choice.choice(("a", "a", "b", "c")),
                seq=self.choice.choice((None, None, 0, 1)),
                standalone=self.choice.random() < 0.2,
                last=self.choice.random() < 0.2,
            )
        )

    def finish(self) -> None:
        if self.choice.random() < 0.1:
            self.send(SessionFinish())

    def babble(self) -> None:
        fault = ClientError("invalid_json", "no JSON")
        self.session.receive_error(EventError(fault, None), self.now_ms)

    # ---- everybody else

    def make(self) -> None:
        if self.worker is not None and (running := self.worker.running()):
            session_id = self.choice.choice(running)
            if self.choice.random() < 0.3:
                self.worker.make_all(session_id)
            else:
                self.worker.make(
                    session_id,
                    self.choice.choice((0, 1, 2, 5)),
                    self.choice.choice((0, 240, 6_720, 20_000)),
                )
            self.replies += self.worker.take_replies()

    def work(self) -> None:
        """The worker gets everything, goes on, and is heard."""
        self.carry_commands()
        self.make()
        self.carry_replies()

    def hurt(self) -> None:
        if self.worker is None or not self.worker.sessions:
            return
        session_id = self.choice.choice(list(self.worker.sessions))
        if self.choice.random() < 0.5:
            self.worker.fail(session_id)
        else:
            code = self.choice.choice(("server_error", "context_full", "no_speech"))
            self.worker.fail_turn(session_id, code)
        self.replies += self.worker.take_replies()

    def refuse(self) -> None:
        if self.worker is not None and self.worker.sessions:
            session_id = self.choice.choice(list(self.worker.sessions))
            self.replies.append(InputRefused(session_id, 0, "invalid_image", "broken"))

    def kill(self) -> None:
        if self.worker is None:
            self.revive()
        elif self.choice.random() < 0.5:
            self.worker = None
            self.commands.clear()
            self.replies.clear()
            self.session.worker_lost(self.now_ms)

    def revive(self) -> None:
        if self.worker is None:
            self.worker = self.new_worker()
            self.session.worker_ready(self.worker.capacity, self.now_ms)

    def decode(self) -> None:
        if self.jobs:
            job = self.jobs.pop(0)
            for decoded in self.decoded(job):
                if self.show:
                    self.note(f"  d {str(decoded)[:150]}")
                self.session.receive_decoded(decoded, self.now_ms)
                self.collect()

    def decoded(self, job: MediaJob) -> list[Decoded]:
        if isinstance(job, CloseStream):
            return []
        if self.choice.random() < 0.2:
            fault = MediaFault(self.choice.choice(list(FaultCode)), "broken")
            return [Decoded(job.key, is_job_done=True, fault=fault)]
        if isinstance(job, Stills):
            return [Decoded(job.key, (DecodedFrame(0, JPEG),), is_job_done=True)]
        assert isinstance(job, StreamData)
        pcm = bytes(self.choice.choice((0, 0, 6_400, 32_000)))
        frames = tuple(
            DecodedFrame(at, JPEG) for at in range(0, self.choice.choice((0, 1, 2_000)), 500)
        )
        return [Decoded(job.key, frames, pcm), Decoded(job.key, is_job_done=True)]

    def wait(self) -> None:
        self.pass_time(self.choice.choice((1, 30, 260, 1_000, 6_000, 31_000)))

    def pass_time(self, duration_ms: int) -> None:
        end = self.now_ms + duration_ms
        while (wake := self.session.wake_ms) is not None and wake <= end:
            self.now_ms = max(wake, self.now_ms)
            for _ in range(3):  # what waited for this tick may itself be due
                self.session.tick(self.now_ms)
                self.collect()
            wake = self.session.wake_ms
            is_later = wake is None or wake > self.now_ms
            assert is_later, f"due, and yet tick leaves it so: {self.wakes()}"
        self.now_ms = end

    def wakes(self) -> list[int | None]:
        s = self.session
        parts = (s._lifetime, s._responses, s._heard, s._transcriber)
        return [self.now_ms, *(part.wake_ms() for part in parts), s._turns.silence_ms()]

    # ---- the end

    def settle(self) -> None:
        """Everybody does what is left to do."""
        self.revive()
        for _ in range(200):
            self.collect()
            self.carry_commands()
            self.carry_replies()
            self.carry_commands()
            while self.jobs:
                self.decode()
            worker = self.worker
            assert worker is not None
            for session_id in worker.running():
                worker.make_all(session_id)
            self.replies += worker.take_replies()
            self.read()
            session = self.session
            waits = self.replies or self.commands or worker.running() or self.jobs or session._held
            if not waits and session._heard.wake_ms() is None and session._responses.is_idle:
                return
            self.pass_time(600)
        raise AssertionError("the session does not come to rest")

    def conclude(self) -> None:
        """What must hold once everything has been answered."""
        self.settle()
        self.check_truth()
        self.laws.check_end(is_finished=self.session._lifetime.is_finishing)
        self.commands += self.session.end()
        self.carry_commands()
        assert self.worker is not None
        assert not self.worker.sessions, f"left open: {list(self.worker.sessions)}"

    def check_truth(self) -> None:
        """What the model is asked with is what the items say."""
        if self.session._lifetime.is_finishing:
            return
        self.worker = FakeWorker() if self.worker is None else self.worker
        self.session.receive_event(ResponseCreate(), self.now_ms)
        self.settle()
        reply = self.session._responses.main
        session_id = self.session._responses.context.session_id
        if reply is None or session_id is None or self.session._turns.input.utterance is not None:
            return
        known = knowledge(self.worker.sessions[session_id])
        told = flatten(self.session._journal.passages(None))
        assert plain(known) == plain(told), f"\nknown {plain(known)}\ntold  {plain(told)}"


def flatten(passages: list[Passage]) -> list[tuple[str, object]]:
    """What a model would know that is told all of it."""
    worker = FakeWorker()
    session = FakeConversation(None)
    session.turn_id = 0
    from server.context import Context

    context = Context(lambda: "s.1", worker.submit)
    context.tell(None, lambda _: passages)
    session = worker.sessions["s.1"]
    return knowledge(session)


def plain(known: list[tuple[str, object]]) -> list[tuple[str, object]]:
    """Neighbouring assistant texts as one, without white space."""
    found: list[tuple[str, object]] = []
    for kind, content in known:
        if kind != "assistant":
            found.append((kind, content))
            continue
        text = "".join(str(content).split())
        if found and found[-1][0] == "assistant":
            text = str(found.pop()[1]) + text
        if text:
            found.append(("assistant", text))
    return found


def _update(play: Play) -> None:
    play.send(SessionUpdate(event_id=play.new_id("e"), session=play.choice.choice(UPDATES)))


def _update_transcription(play: Play) -> None:
    session: dict[str, object] = {"input_audio_transcription": {}}
    play.send(TranscriptionSessionUpdate(event_id=play.new_id("e"), session=session))


ACTIONS: tuple[tuple[str, Callable[[Play], None], float], ...] = (
    ("append", Play.append, 6),
    ("talk", Play.talk, 5),
    ("speech", lambda p: setattr(p, "is_speech", not p.is_speech), 2),
    ("hear", Play.hear, 6),
    ("commit", lambda p: p.send(InputAudioCommit(event_id=p.new_id("e"))), 3),
    ("clear", lambda p: p.send(InputAudioClear(event_id=p.new_id("e"))), 1),
    ("frame", Play.show_frame, 2),
    ("chunk", Play.send_chunk, 2),
    ("video clear", lambda p: p.send(InputVideoClear(event_id=p.new_id("e"))), 0.5),
    ("update", _update, 5),
    ("transcription", _update_transcription, 0.5),
    ("create", Play.create_item, 6),
    ("retrieve", lambda p: p.send(ItemRetrieve(event_id=p.new_id("e"), item_id=p.item_id())), 1),
    ("delete", lambda p: p.send(ItemDelete(event_id=p.new_id("e"), item_id=p.item_id())), 2),
    ("truncate", Play.truncate, 4),
    ("ack", lambda p: p.send(PlaybackAck(item_id=p.item_id(), audio_end_ms=p.choice.choice((0, 150, 9_999)))), 2),
    ("respond", Play.create_response, 8),
    ("cancel", Play.cancel, 4),
    ("output clear", lambda p: p.send(OutputAudioClear()), 0.2),
    ("finish", Play.finish, 0.5),
    ("babble", Play.babble, 0.3),
    ("read", lambda p: p.read(p.choice.choice((1, 3, 10, 1_000))), 8),
    ("commands", lambda p: p.carry_commands(p.choice.choice((1, 5, 1_000))), 5),
    ("replies", lambda p: p.carry_replies(p.choice.choice((1, 3, 1_000))), 6),
    ("make", Play.make, 6),
    ("work", Play.work, 10),
    ("hurt", Play.hurt, 1),
    ("refuse", Play.refuse, 0.3),
    ("kill", Play.kill, 1),
    ("decode", Play.decode, 4),
    ("wait", Play.wait, 4),
)  # fmt: skip


WEIGHTS = list(accumulate(weight for *_, weight in ACTIONS))


def run(choice: random.Random, num_steps: int, *, show: bool = False) -> None:
    """Hold one conversation; raises AssertionError if a law is broken."""
    play = Play(choice, show=show)
    for _ in range(num_steps):
        play.step()
    play.conclude()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    begun = time.monotonic()
    seeds = range(arguments.first, arguments.first + arguments.sequences)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    for seed in seeds:
        if seed % 5_000 == 0:
            sys.stdout.write(f"seed {seed} after {time.monotonic() - begun:.0f} s\n")
            sys.stdout.flush()
        try:
            run(random.Random(seed), arguments.steps, show=arguments.show)
        except BaseException:
            sys.stdout.write(f"seed {seed} breaks a law\n")
            raise
    taken = time.monotonic() - begun
    sys.stdout.write(f"{len(seeds)} sequences of {arguments.steps} steps in {taken:.0f} s\n")


if __name__ == "__main__":
    main()
