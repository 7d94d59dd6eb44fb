"""The fake worker behaves like the engine: the same commands, the same kinds of replies in the same order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch

from model.config import SolverConfig
from model.omni import Omni, load
from streaming.engine.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.media import ClipKind, ClipStart, MediaChunk
from streaming.packets import (
    AppendChunk,
    AppendText,
    AudioDelta,
    CancelTurn,
    CloseSession,
    CommitTurn,
    OpenClip,
    OpenSession,
    ReplyOptions,
    SamplingOptions,
    SessionSettings,
    TextDelta,
    TruncateTurn,
    TurnDone,
    TurnTruncated,
)
from tests.fakes import FakeWorker, Script, Strictness

if TYPE_CHECKING:
    from pathlib import Path

    from streaming.packets import Command, Reply

OPTIONS = ReplyOptions(
    thinker=SamplingOptions(temperature=0),
    talker=SamplingOptions(temperature=0),
    max_text_tokens=6,
    max_codes=60,
)
SETTINGS = SessionSettings("Be kind.")


class Real:
    """An engine on a random tiny checkpoint."""

    def __init__(self, omni: Omni) -> None:
        self.engine = Engine(omni, EngineConfig(num_lanes=2, context_tokens=512))
        self.now_ms = 0.0

    def submit(self, command: Command) -> None:
        self.engine.submit(command, self.now_ms)

    def take(self) -> list[Reply]:
        """What can be said without computing."""
        return self.engine.step(self.now_ms) if not self.engine.is_busy else []

    def run(self, *, until_text: bool = False) -> list[Reply]:
        replies: list[Reply] = []
        for _ in range(2_000):
            wake = self.engine.wake_ms(self.now_ms)
            if not self.engine.has_work(self.now_ms) and wake is None:
                break
            self.now_ms = max(self.now_ms + 10, wake or 0)
            replies += self.engine.step(self.now_ms)
            if until_text and any(isinstance(r, TextDelta) for r in replies):
                break
        return replies


class Fake:
    """The fake, driven alike."""

    def __init__(self) -> None:
        self.worker = FakeWorker(lambda _: Script(("a ", "b ", "c"), 28_800), num_lanes=2)

    def submit(self, command: Command) -> None:
        self.worker.submit(command)

    def run(self, *, until_text: bool = False) -> list[Reply]:
        replies = self.worker.take_replies()
        while running := self.worker.running():
            for session_id in running:
                self.worker.make(session_id, 1, 2_400)
            replies += self.worker.take_replies()
            if until_text and any(isinstance(r, TextDelta) for r in replies):
                break
        return replies


@dataclass
class Scene:
    """Commands, step by step; what is said is noted after each step."""

    name: str
    steps: list[Step] = field(default_factory=list)


@dataclass
class Step:
    commands: list[Command]
    until_text: bool = False


def say(turn_id: int, text: str = "Hi", session_id: str = "s") -> list[Command]:
    return [AppendText(session_id, turn_id, text), CommitTurn(session_id, turn_id, OPTIONS)]


def clip(turn_id: int, *, is_last: bool = True) -> list[Command]:
    chunk = MediaChunk(0, 0, bytes(6_400), is_last=True)
    opened: list[Command] = [OpenClip("s", turn_id, ClipStart(ClipKind.SOUND, 0))]
    return [*opened, AppendChunk("s", turn_id, chunk)] if is_last else opened


OPEN: list[Command] = [OpenSession("s", SETTINGS)]
SCENES = (
    Scene("a typed turn", [Step([*OPEN, *say(0)])]),
    Scene("a spoken turn", [Step([*OPEN, *clip(0), CommitTurn("s", 0, OPTIONS)])]),
    Scene("an empty turn", [Step([*OPEN, CommitTurn("s", 0, OPTIONS)])]),
    Scene(
        "history",
        [
            Step(
                [
                    *OPEN,
                    AppendText("s", 0, "Yes.", "assistant"),
                    AppendText("s", 0, "No", "system"),
                    *say(0),
                ]
            )
        ],
    ),
    Scene("two turns", [Step([*OPEN, *say(0)]), Step(say(1))]),
    Scene(
        "the next turn waits",
        [Step([*OPEN, *say(0)], True), Step(clip(1)), Step([CommitTurn("s", 1, OPTIONS)])],
    ),
    Scene("cancelled, heard", [Step([*OPEN, *say(0)], True), Step([CancelTurn("s", 0, 480)])]),
    Scene("cancelled", [Step([*OPEN, *say(0)], True), Step([CancelTurn("s", 0)]), Step(say(1))]),
    Scene("cancelled at once", [Step([*OPEN, *say(0), CancelTurn("s", 0, 0)]), Step(say(1))]),
    Scene(
        "cancelled, and the next turn already there",
        [
            Step([*OPEN, *say(0)], True),
            Step([*clip(1), CancelTurn("s", 0, 480), CommitTurn("s", 1, OPTIONS)]),
        ],
    ),
    Scene("cancelled too late", [Step([*OPEN, *say(0)]), Step([CancelTurn("s", 0, 480)])]),
    Scene(
        "cancelled when the next has begun",
        [Step([*OPEN, *say(0)]), Step([*clip(1, is_last=False), CancelTurn("s", 0, 480)])],
    ),
    Scene(
        "input taken back",
        [Step([*OPEN, *clip(0, is_last=False), CancelTurn("s", 0)]), Step(say(1))],
    ),
    Scene(
        "a turn nobody saw taken back",
        [Step([*OPEN, *say(0)]), Step([CancelTurn("s", 1)]), Step(say(2))],
    ),
    Scene("truncated", [Step([*OPEN, *say(0)]), Step([TruncateTurn("s", 0, 480)]), Step(say(1))]),
    Scene(
        "truncated twice",
        [
            Step([*OPEN, *say(0)]),
            Step([TruncateTurn("s", 0, 480)]),
            Step([TruncateTurn("s", 0, 960)]),
        ],
    ),
    Scene(
        "truncated beyond the end", [Step([*OPEN, *say(0)]), Step([TruncateTurn("s", 0, 10**9)])]
    ),
    Scene(
        "truncated while the user speaks",
        [
            Step([*OPEN, *say(0)]),
            Step(clip(1)),
            Step([TruncateTurn("s", 0, 480)]),
            Step([CommitTurn("s", 1, OPTIONS)]),
        ],
    ),
    Scene("truncated what never was", [Step([*OPEN, TruncateTurn("s", 7, 480)])]),
    Scene(
        "full",
        [
            Step([*OPEN, OpenSession("t", SETTINGS), OpenSession("u", SETTINGS)]),
            Step([CloseSession("t"), OpenSession("v", SETTINGS)]),
        ],
    ),
    Scene("after the end", [Step([*OPEN, *say(0)]), Step([CloseSession("s"), *say(1)])]),
)


@pytest.fixture(scope="module")
def omni(checkpoint_dir: Path) -> Omni:
    return load(checkpoint_dir, dtype=torch.float32, solver=SolverConfig(num_points=2))


def kinds(replies: list[Reply]) -> list[str]:
    """Kinds of replies, deltas left out but for whether there were any."""
    found = []
    for reply in replies:
        if isinstance(reply, TextDelta | AudioDelta):
            continue
        name = f"{type(reply).__name__} {reply.session_id}"
        if isinstance(reply, TurnDone):
            name += f" {reply.turn_id} {'over' if reply.reason in ('completed', 'max_tokens') else reply.reason}"
        if isinstance(reply, TurnTruncated):
            name += f" {reply.turn_id}"
        found.append(name)
    return found


def play(party: Real | Fake, scene: Scene) -> list[list[str]]:
    said = []
    for step in scene.steps:
        for command in step.commands:
            party.submit(command)
        said.append(kinds(party.run(until_text=step.until_text)))
    return said


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name.replace(" ", "-"))
def test_the_fake_says_what_the_engine_says(scene: Scene, omni: Omni) -> None:
    with torch.inference_mode():
        real = play(Real(omni), scene)
    assert play(Fake(), scene) == real


@pytest.mark.parametrize("speech", [True, False])
def test_a_truncation_never_gives_back_what_an_earlier_one_took(speech: bool) -> None:
    fake = Fake()
    options = ReplyOptions(speech=speech)
    for command in (*OPEN, AppendText("s", 0, "Hi"), CommitTurn("s", 0, options)):
        fake.submit(command)
    fake.run()
    fake.submit(TruncateTurn("s", 0, 9_600))
    fake.submit(TruncateTurn("s", 0, 19_200))
    first, second = fake.run()
    assert isinstance(first, TurnTruncated) and isinstance(second, TurnTruncated)
    assert (first.heard_samples, first.text) == (second.heard_samples, second.text)
    assert first.text == ("a " if speech else "a b c")


def test_the_fake_is_strict_where_the_engine_would_fail_a_turn() -> None:
    for commands in (
        [AppendText("nobody", 0, "Hi")],
        [*OPEN, *OPEN],
        [*OPEN, *clip(0, is_last=False), CommitTurn("s", 0)],
        [*OPEN, AppendChunk("s", 0, MediaChunk(0, 0, b"", True))],
    ):
        fake = Fake()
        with pytest.raises(Strictness):
            for command in commands:
                fake.submit(command)
