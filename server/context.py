"""Context: what one worker session has been told, and what it takes to make it know what the items say now.

    told      system │ item a │ item b │ reply 0 │ item c │ clip d, 3 parts          ◀── what the worker knows
    wanted    system │ item a │ item b │ reply 0 │ item c │ clip d, 5 parts │ item e  ◀── what the items say
                                                            └─ send parts 4, 5, then e

Where told is the beginning of wanted, the rest is sent. Where they part within the turn that is not committed yet, that
turn is cancelled and told anew. Where they part earlier, the worker session is closed and a new one is told everything.
Nothing else changes what a worker session knows, so inserting, deleting, new instructions and a worker that died need
no code of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from streaming.media import ClipStart, FramePair, MediaChunk
from streaming.packets import (
    AppendChunk,
    AppendImage,
    AppendPair,
    AppendText,
    CancelTurn,
    CloseSession,
    CommitTurn,
    OpenClip,
    OpenSession,
    SessionSettings,
    TruncateTurn,
)

if TYPE_CHECKING:
    from streaming.media import ClipPart
    from streaming.packets import Command, ReplyOptions

Role = Literal["user", "assistant", "system"]
Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Words:
    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    image: bytes


@dataclass(frozen=True, slots=True)
class Awaited:
    """Media that a decoder is still working on; nothing behind them can be told yet."""

    key: str
    num_bytes: int


Piece = Words | Picture | Awaited | ClipStart | FramePair | MediaChunk


@dataclass(frozen=True, slots=True)
class Passage:
    """What the model is to know of one item, or of one reply it made."""

    key: Key
    """Changes whenever the pieces change in any way but growing."""
    pieces: Sequence[Piece]
    is_growing: bool = False
    """A clip that the user still speaks; only the last passage may be one."""


Write = Callable[[str | None], Sequence[Passage]]
"""What a worker session is to know, given its id: what it has said itself has another key than what it is told."""


@dataclass(slots=True)
class _Told:
    key: Key
    num_pieces: int
    is_reply: bool = False
    is_optional: bool = False
    """A reply that no item shows (yet): it may be missing from what is wanted."""


def reply_key(session_id: str, turn_id: int) -> Key:
    """Return the key of the passage that stands for a reply the worker made itself."""
    return ("reply", session_id, turn_id)


class Context:
    """One worker session at a time; owned by the session.

    Args:
        new_session_id: makes the id of the next worker session.
        send: takes each command.
    """

    def __init__(self, new_session_id: Callable[[], str], send: Callable[[Command], None]) -> None:
        self.session_id: str | None = None
        """None: the worker knows nothing of us."""
        self.running_turn_id: int | None = None
        """Committed, and its reply still wanted."""
        self._new_session_id = new_session_id
        self._send = send
        self._prompt: str | None = None
        self._told: list[_Told] = []
        self._turn_id = 0
        """Of the input told since the last commit."""

    def tell(self, prompt: str | None, write: Write) -> bool:
        """Make the worker know what `write` says under a system prompt; True if it now knows all of it.

        False if media are awaited, or if that would disturb the running reply or a clip being spoken: call again
        when those are over.
        """
        passages = write(self.session_id)
        is_same_prompt = self.session_id is not None and prompt == self._prompt
        num_told, num_agreed = self._agreement(passages) if is_same_prompt else (0, 0)
        if not is_same_prompt or num_told <= self._last_reply():
            if self.running_turn_id is not None:
                return False
            self._reopen(prompt)
            passages, num_agreed = write(self.session_id), 0
        elif num_told < len(self._told):
            if passages and passages[-1].is_growing and self._told[-1].key == passages[-1].key:
                return False
            self._cancel_open_turn()
            num_agreed = self._agreement(passages)[1]
        return self._tell_rest(passages, num_agreed)

    def commit(self, options: ReplyOptions) -> int:
        """Have what was told answered; return the reply's turn id."""
        assert self.session_id is not None and self.running_turn_id is None
        turn_id = self._turn_id
        self._send(CommitTurn(self.session_id, turn_id, options))
        key = reply_key(self.session_id, turn_id)
        self._told.append(_Told(key, 0, is_reply=True, is_optional=True))
        self._turn_id += 1
        self.running_turn_id = turn_id
        return turn_id

    def stop_reply(self, heard_samples: int | None) -> None:
        """Cancel the running reply; the worker keeps of it what was heard."""
        assert self.session_id is not None and self.running_turn_id is not None
        self._send(CancelTurn(self.session_id, self.running_turn_id, heard_samples))
        self.running_turn_id = None

    def end_reply(self, turn_id: int) -> None:
        """The worker has ended the reply."""
        if self.running_turn_id == turn_id:
            self.running_turn_id = None

    def show_reply(self, turn_id: int) -> None:
        """An item now shows this reply."""
        for told in self._told:
            if self.session_id is not None and told.key == reply_key(self.session_id, turn_id):
                told.is_optional = False

    @property
    def running(self) -> tuple[str, int] | None:
        """Worker session and turn of the running reply."""
        if self.session_id is None or self.running_turn_id is None:
            return None
        return self.session_id, self.running_turn_id

    def distrust(self) -> None:
        """The worker knows more than the items say: tell another one before the next reply."""
        self._told.append(_Told(("unknown",), 0, is_reply=True))

    def is_running(self, session_id: str, turn_id: int) -> bool:
        """This reply is being made here."""
        return self.running == (session_id, turn_id)

    def truncate(self, session_id: str, turn_id: int, heard_samples: int) -> bool:
        """Cut an ended reply to what was heard; True if the worker can, and will say what is left."""
        if self.running_turn_id is not None or session_id != self.session_id:
            return False
        last = self._last_reply()
        if last < 0 or self._told[last].key != reply_key(session_id, turn_id):
            return False
        self._send(TruncateTurn(session_id, turn_id, heard_samples))
        return True

    def close(self) -> None:
        """Give the worker session up; the next `tell` opens another."""
        if self.session_id is not None:
            self._send(CloseSession(self.session_id))
        self.forget()

    def forget(self) -> None:
        """The worker no longer knows the session: it failed there, or the worker is gone."""
        self.session_id = None
        self.running_turn_id = None
        self._told.clear()
        self._turn_id = 0

    def _agreement(self, passages: Sequence[Passage]) -> tuple[int, int]:
        """How much of what was told, and how many passages, are the same from the beginning on."""
        num_told = num_agreed = 0
        while num_told < len(self._told):
            told = self._told[num_told]
            if num_agreed < len(passages) and told.key == passages[num_agreed].key:
                num_agreed += 1
            elif not told.is_optional:
                break
            num_told += 1
        return num_told, num_agreed

    def _last_reply(self) -> int:
        """Index of the last reply among what was told; −1 without one."""
        return max((i for i, told in enumerate(self._told) if told.is_reply), default=-1)

    def _reopen(self, prompt: str | None) -> None:
        self.close()
        self.session_id = self._new_session_id()
        self._prompt = prompt
        self._send(OpenSession(self.session_id, SessionSettings(prompt)))

    def _cancel_open_turn(self) -> None:
        assert self.session_id is not None
        self._send(CancelTurn(self.session_id, self._turn_id))
        self._turn_id += 1
        del self._told[self._last_reply() + 1 :]

    def _tell_rest(self, passages: Sequence[Passage], num_agreed: int) -> bool:
        # The last that was told may have grown since; an awaited picture may have come.
        begun = self._told[-1] if self._told and not self._told[-1].is_reply else None
        first = num_agreed - 1 if begun and num_agreed else num_agreed
        for passage in passages[first:]:
            if begun is None:
                begun = _Told(passage.key, 0)
                self._told.append(begun)
            for piece in passage.pieces[begun.num_pieces :]:
                if isinstance(piece, Awaited):
                    return False
                self._tell_piece(piece)
                begun.num_pieces += 1
            begun = None
        return True

    def _tell_piece(self, piece: Words | Picture | ClipPart) -> None:
        assert self.session_id is not None
        where = self.session_id, self._turn_id
        match piece:
            case Words():
                self._send(AppendText(*where, piece.text, piece.role))
            case Picture():
                self._send(AppendImage(*where, piece.image))
            case ClipStart():
                self._send(OpenClip(*where, piece))
            case FramePair():
                self._send(AppendPair(*where, piece))
            case MediaChunk():
                self._send(AppendChunk(*where, piece))
