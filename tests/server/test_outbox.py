"""Events leave in order; of a stopped response nothing leaves that it should not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.dialect import Dialect
from server.events import (
    ErrorEvent,
    InputCleared,
    ItemAdded,
    ItemRetrieved,
    OutputAudioDelta,
    OutputAudioDone,
    OutputItemAdded,
    OutputTranscriptDelta,
    SessionUpdated,
)
from server.items import FunctionCall, InputAudio, InputText, UserMessage
from server.outbox import EVENT_BYTES, Outbox
from server.settings import Settings
from tests.server.driving import VOICES

if TYPE_CHECKING:
    from server.events import ServerEvent

SETTINGS = Settings.default(Dialect.GA, VOICES)

DELTA = OutputAudioDelta("r", "i", 0, 0, bytes(300))
WORDS = OutputTranscriptDelta("r", "i", 0, 0, "Hi")
DONE = OutputAudioDone("r", "i", 0, 0)
CALL = OutputItemAdded("r", 1, FunctionCall("f", "look", "c"))


def test_what_waits_is_counted() -> None:
    outbox = Outbox()
    outbox.put(DELTA, "r")
    outbox.put(InputCleared())
    assert outbox.unsent_bytes == 2 * EVENT_BYTES + 400
    assert outbox.take() == DELTA
    assert outbox.take() == InputCleared()
    assert (outbox.take(), outbox.unsent_bytes) == (None, 0)


@pytest.mark.parametrize(
    ("event", "held"),
    [
        (ErrorEvent("c", "m" * 100), 100),
        (SessionUpdated(replace(SETTINGS, instructions="i" * 5000)), 5000),
        (ItemAdded(None, UserMessage("u", [InputText("t" * 700)])), 700),
        (ItemRetrieved(UserMessage("u", [InputAudio(bytes(3200))]), SETTINGS.input_format), 3200),
    ],
)
def test_what_an_event_holds_is_counted(event: ServerEvent, held: int) -> None:
    outbox = Outbox()
    outbox.put(event)
    assert EVENT_BYTES + held <= outbox.unsent_bytes < EVENT_BYTES + held + 100
    outbox.take()
    assert outbox.unsent_bytes == 0


def test_withdrawing_takes_deltas_and_ends_of_one_response_alone() -> None:
    outbox = Outbox()
    other = OutputAudioDelta("q", "i", 0, 0, b"12")
    for event, response_id in ((WORDS, "r"), (other, "q"), (CALL, "r"), (DELTA, "r"), (DONE, "r")):
        outbox.put(event, response_id)
    assert outbox.withdraw("r") == [WORDS, DELTA, DONE]
    assert [outbox.take(), outbox.take(), outbox.take()] == [other, CALL, None]


def test_what_closes_the_first_item_goes_before_the_next() -> None:
    outbox = Outbox()
    error = ErrorEvent("c", "m")
    for event, response_id in ((InputCleared(), None), (CALL, "r"), (error, None)):
        outbox.put(event, response_id)
    outbox.put_before_items([DONE], "r")
    outbox.put_before_items([WORDS], "q")
    assert [outbox.take() for _ in range(5)] == [InputCleared(), DONE, CALL, error, WORDS]
    assert outbox.unsent_bytes == 0
