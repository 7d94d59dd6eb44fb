"""What a worker session is told: only what it misses, the turn anew, or everything anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from server.context import Awaited, Context, Passage, Picture, Words, reply_key
from streaming.media import ClipKind, ClipStart, MediaChunk
from streaming.packets import (
    AppendImage,
    AppendText,
    CancelTurn,
    CloseSession,
    CommitTurn,
    OpenSession,
    ReplyOptions,
    SessionSettings,
    TruncateTurn,
)
from tests.fakes import FakeWorker, Known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.context import Piece
    from streaming.packets import Command


class Told:
    """A context whose worker is a fake one."""

    def __init__(self) -> None:
        self.worker = FakeWorker()
        self.sent: list[Command] = []
        self.num_sessions = 0
        self.context = Context(self.new_id, self.send)

    def new_id(self) -> str:
        self.num_sessions += 1
        return f"s.{self.num_sessions}"

    def send(self, command: Command) -> None:
        self.sent.append(command)
        self.worker.submit(command)

    def tell(self, *passages: Passage, prompt: str | None = "p") -> bool:
        self.sent.clear()
        return self.context.tell(prompt, lambda _: passages)

    def answer(self) -> int:
        turn_id = self.context.commit(ReplyOptions())
        self.worker.make_all(self.session_id)
        self.context.end_reply(turn_id)
        self.context.show_reply(turn_id)
        return turn_id

    def reply(self, turn_id: int = 0) -> Passage:
        return Passage(reply_key(self.session_id, turn_id), ())

    @property
    def session_id(self) -> str:
        assert self.context.session_id is not None
        return self.context.session_id

    @property
    def knows(self) -> list[Known]:
        return self.worker.knows(self.session_id)

    @property
    def kinds(self) -> list[str]:
        return [type(command).__name__ for command in self.sent]


def words(text: str) -> Passage:
    return Passage(("item", text), [Words("user", text)])


def clip(num_chunks: int, *, is_over: bool = False, name: str = "clip") -> Passage:
    pieces: list[Piece] = [ClipStart(ClipKind.SOUND, 0)]
    last = num_chunks - 1 if is_over else -1
    pieces += [MediaChunk(i, 0, b"12", i == last) for i in range(num_chunks)]
    return Passage(("item", name), pieces, is_growing=not is_over)


def test_the_first_telling_opens_a_session() -> None:
    told = Told()
    assert told.tell(words("a"), words("b"))
    assert told.sent == [
        OpenSession("s.1", SessionSettings("p")),
        AppendText("s.1", 0, "a", "user"),
        AppendText("s.1", 0, "b", "user"),
    ]


def test_only_what_is_new_is_told() -> None:
    told = Told()
    told.tell(words("a"))
    told.tell(words("a"), words("b"))
    assert told.sent == [AppendText("s.1", 0, "b", "user")]
    told.tell(words("a"), words("b"))
    assert told.sent == []


def test_a_clip_is_told_as_it_grows() -> None:
    told = Told()
    told.tell(clip(0))
    assert told.kinds == ["OpenSession", "OpenClip"]
    told.tell(clip(2))
    assert told.kinds == ["AppendChunk", "AppendChunk"]
    told.tell(clip(3, is_over=True), words("b"))
    assert told.kinds == ["AppendChunk", "AppendText"]


def test_what_parts_within_the_turn_tells_the_turn_anew() -> None:
    told = Told()
    told.tell(words("a"), words("b"))
    told.tell(words("a"), words("c"))
    assert told.sent == [
        CancelTurn("s.1", 0),
        AppendText("s.1", 1, "a", "user"),
        AppendText("s.1", 1, "c", "user"),
    ]
    assert told.knows == [("user", "a"), ("user", "c")]


def test_a_turn_told_anew_leaves_earlier_replies_where_they_are() -> None:
    told = Told()
    told.tell(words("a"))
    told.answer()
    told.tell(words("a"), told.reply(), words("b"))
    told.tell(words("a"), told.reply(), words("c"))
    assert told.sent == [CancelTurn("s.1", 1), AppendText("s.1", 2, "c", "user")]


def test_what_parts_before_a_reply_tells_another_session_everything() -> None:
    told = Told()
    told.tell(words("a"))
    told.answer()
    told.tell(words("b"))
    assert told.kinds == ["CloseSession", "OpenSession", "AppendText"]
    assert told.knows == [("user", "b")]


def test_another_prompt_needs_another_session() -> None:
    told = Told()
    told.tell(words("a"))
    told.tell(words("a"), prompt=None)
    assert told.sent[:2] == [CloseSession("s.1"), OpenSession("s.2", SessionSettings(None))]


def test_nothing_disturbs_a_running_reply() -> None:
    told = Told()
    told.tell(words("a"))
    told.context.commit(ReplyOptions())
    assert not told.tell(words("b"))
    assert not told.tell(words("a"), prompt="q")
    assert told.sent == []
    assert told.tell(words("a"), words("b"))  # the next turn's input may come


def test_nothing_is_put_before_a_clip_that_is_being_spoken() -> None:
    told = Told()
    told.tell(clip(1))
    assert not told.tell(words("a"), clip(2))
    assert told.sent == []
    assert told.tell(words("a"), clip(3, is_over=True))
    assert [kind for kind, _ in told.knows] == ["user", "clip"]


def test_nothing_behind_an_awaited_picture_is_told() -> None:
    told = Told()
    awaiting = Passage(("item", "i"), [Words("user", "see"), Awaited("job", 9)])
    assert not told.tell(awaiting, words("b"))
    assert told.kinds == ["OpenSession", "AppendText"]
    here = Passage(("item", "i"), [Words("user", "see"), Picture(b"jpeg")])
    assert told.tell(here, words("b"))
    assert told.sent == [AppendImage("s.1", 0, b"jpeg"), AppendText("s.1", 0, "b", "user")]


def test_a_reply_that_no_item_shows_is_no_difference() -> None:
    told = Told()
    told.tell(words("a"))
    told.context.end_reply(told.context.commit(ReplyOptions()))
    told.tell(words("a"), words("b"))
    assert told.sent == [AppendText("s.1", 1, "b", "user")]


def test_a_shown_reply_that_is_gone_is_one() -> None:
    told = Told()
    told.tell(words("a"))
    told.answer()
    told.tell(words("a"), words("b"))
    assert told.kinds == ["CloseSession", "OpenSession", "AppendText", "AppendText"]


def test_only_the_newest_reply_can_be_cut_in_place() -> None:
    told = Told()
    told.tell(words("a"))
    first = told.answer()
    told.sent.clear()
    assert told.context.truncate("s.1", first, 480)
    assert told.sent == [TruncateTurn("s.1", first, 480)]
    told.tell(words("a"), told.reply(first), words("b"))
    assert told.context.truncate("s.1", first, 480)  # what the user says meanwhile stays
    second = told.answer()
    assert not told.context.truncate("s.1", first, 240)
    assert told.context.truncate("s.1", second, 240)
    assert not told.context.truncate("s.0", second, 240)


def test_a_running_reply_is_stopped_rather_than_cut() -> None:
    told = Told()
    told.tell(words("a"))
    turn_id = told.context.commit(ReplyOptions())
    assert told.context.is_running("s.1", turn_id)
    assert not told.context.truncate("s.1", turn_id, 0)
    told.context.stop_reply(480)
    assert told.context.running is None
    assert told.sent[-1] == CancelTurn("s.1", turn_id, 480)


def test_a_session_that_knows_too_much_is_not_told_on() -> None:
    told = Told()
    told.tell(words("a"))
    told.context.distrust()
    told.tell(words("a"))
    assert told.kinds == ["CloseSession", "OpenSession", "AppendText"]


def test_a_forgotten_session_is_not_closed() -> None:
    told = Told()
    told.tell(words("a"))
    told.sent.clear()
    told.context.forget()
    told.context.close()
    assert told.sent == []


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.sampled_from("abcd"), unique=True), max_size=12), st.data())
def test_whatever_is_wanted_the_worker_ends_up_knowing_it(
    wanted: list[list[str]], data: st.DataObject
) -> None:
    """Random items, commits and worker sessions lost in between; every telling ends in the same knowledge."""
    told = Told()
    for names in wanted:
        passages: list[Passage] = [words(name) for name in names]
        told.tell(*passages)
        assert told.knows == [("user", name) for name in names]
        action = data.draw(st.sampled_from(["none", "commit", "lose"]))
        if action == "commit":
            told.answer()
        elif action == "lose":
            told.worker.fail(told.session_id)
            told.context.forget()


def texts(commands: Sequence[Command]) -> list[str]:
    return [c.text for c in commands if isinstance(c, AppendText)]


def test_commits_number_the_turns() -> None:
    told = Told()
    told.tell(words("a"))
    assert [told.answer(), told.context.commit(ReplyOptions())] == [0, 1]
    assert [c.turn_id for c in told.sent if isinstance(c, CommitTurn)] == [0, 1]
    assert texts(told.sent) == ["a"]
