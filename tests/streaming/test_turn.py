"""The turn's table: what it lists works, everything else is somebody's fault and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import ClientError, RequestFailed
from streaming.turn import CLIENT_EVENTS, NEXT, Turn, TurnEvent, TurnState

if TYPE_CHECKING:
    from collections.abc import Callable

ACTIONS: dict[TurnEvent, Callable[[Turn], object]] = {
    TurnEvent.INPUT: lambda turn: turn.add_input(320),
    TurnEvent.COMMIT: lambda turn: turn.commit(),
    TurnEvent.CANCEL: lambda turn: turn.cancel(),
    TurnEvent.TRUNCATE: lambda turn: turn.truncate(100),
    TurnEvent.DELTA: lambda turn: turn.receive_text(),
    TurnEvent.FINISH: lambda turn: turn.finish(),
}


def turn_in(state: TurnState) -> Turn:
    return Turn(turn_id=7, start_sample=0, state=state)


@pytest.mark.parametrize(("state", "event"), list(product(TurnState, TurnEvent)))
def test_every_event_in_every_state(state: TurnState, event: TurnEvent) -> None:
    turn = turn_in(state)
    before = replace(turn)
    if (state, event) in NEXT:
        ACTIONS[event](turn)
        assert turn.state is NEXT[state, event]
        return
    culprit = ClientError if event in CLIENT_EVENTS else RequestFailed
    with pytest.raises(culprit, match=f"{event.value}: turn 7 is {state}"):
        ACTIONS[event](turn)
    assert turn == before


def test_the_table_itself() -> None:
    """Cancelled can be reached from all but the ends; from the ends nothing leads away."""
    cancellable = {state for (state, event), _ in NEXT.items() if event is TurnEvent.CANCEL}
    assert cancellable == {TurnState.LISTENING, TurnState.COMMITTED, TurnState.REPLYING}
    for (state, _), after in NEXT.items():
        if turn_in(state).is_over:
            assert after is state


def test_a_spoken_turn_from_start_to_end() -> None:
    turn = Turn(1, start_sample=4_000)
    turn.add_input(32_040)
    turn.add_input(100)
    turn.commit()
    assert turn.receive_text()
    assert turn.receive_audio(0, 6_720)
    assert turn.receive_audio(6_720, 480)
    assert turn.finish()
    assert turn == Turn(1, 4_000, TurnState.DONE, input_samples=32_140, reply_samples_sent=7_200)
    assert turn.is_over


def test_after_a_cancel_nothing_is_delivered() -> None:
    turn = Turn(1, 0)
    turn.commit()
    assert turn.receive_audio(0, 480)
    turn.cancel()
    assert not turn.receive_audio(480, 480)
    assert not turn.receive_audio(99_999, 480)
    assert not turn.receive_text()
    assert not turn.finish()
    assert (turn.state, turn.reply_samples_sent) == (TurnState.CANCELLED, 480)


@pytest.mark.parametrize("start_sample", [0, 479, 481])
def test_lost_or_repeated_sound_is_the_workers_fault(start_sample: int) -> None:
    turn = Turn(1, 0)
    turn.commit()
    turn.receive_audio(0, 480)
    before = replace(turn)
    with pytest.raises(RequestFailed, match=f"audio from sample {start_sample}, expected 480"):
        turn.receive_audio(start_sample, 480)
    assert turn == before


@given(st.lists(st.integers(-10, 2_000)))
def test_heard_only_grows_and_stays_within_what_was_sent(reports: list[int]) -> None:
    turn = Turn(1, 0)
    turn.commit()
    turn.receive_audio(0, 1_000)
    for report in reports:
        turn.report_heard(report)
    assert turn.reply_samples_heard == min(1_000, max([0, *reports]))


@given(st.lists(st.integers(-10, 2_000), min_size=1))
def test_truncation_takes_the_least_ever_said(values: list[int]) -> None:
    turn = Turn(1, 0)
    turn.commit()
    turn.receive_audio(0, 1_000)
    turn.finish()
    for value in values:
        kept = turn.truncate(value)
    assert kept == turn.reply_samples_kept == max(0, min(1_000, *values))
