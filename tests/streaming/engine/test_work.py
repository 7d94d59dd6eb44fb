"""What is computed and when: input as it is spoken, nothing for a reply that nobody wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from model.audio_encoder import num_rows
from streaming.engine.sequence import Phase, Role
from streaming.media import CHUNK_SAMPLES
from streaming.packets import CancelTurn, CommitTurn, TextDelta
from tests.streaming.engine.driving import (
    GREEDY,
    Driver,
    Said,
    commands_of,
    never_stop,
    record_plans,
    speech,
)

if TYPE_CHECKING:
    from streaming.engine.scheduler import StepPlan

MEL_HOP = 160


def prefilled(plans: list[StepPlan], role: Role) -> int:
    """Rows that were prefilled for a role."""
    entries = [e for p in plans if (p.role, p.phase) == (role, Phase.PREFILL) for e in p.entries]
    return sum(e.length for e in entries)


@pytest.mark.parametrize("seconds", [0.3, 1.9, 2.0, 2.5, 4.0, 8.6, 16.2, 29.9])
def test_a_commit_leaves_the_open_chunk_to_compute_and_nothing_before_it(
    omni, new_driver, seconds: float
) -> None:  # type: ignore[no-untyped-def]
    driver: Driver = new_driver()
    driver.open("a")
    *earlier, last = commands_of(Said(sound=speech(seconds)), "a", 0)
    for command in earlier:
        driver.submit(command)
        driver.run()
    driver.submit(last, CommitTurn("a", 0, GREEDY))
    prompt = driver.engine.conversations["a"].prompt
    num_closing = prompt.ids[::-1].index(omni.config.thinker.audio_token_index)
    open_samples = round(16_000 * seconds) % CHUNK_SAMPLES or CHUNK_SAMPLES
    num_left = num_rows(open_samples // MEL_HOP) + num_closing
    assert prompt.thinker.num_pending == num_left
    assert prompt.talker is not None
    assert prompt.talker.num_pending == 0
    plans = record_plans(driver.engine)
    driver.run()
    assert sum(len(p.jobs) for p in plans if p.role is Role.AUDIO) == 1
    assert prefilled(plans, Role.THINKER) == num_left
    assert prefilled(plans, Role.TALKER) == num_left + 1  # the voice's row


WAITING = {
    "text token": lambda engine, member: member.sequences[0].decode,
    "code": lambda engine, member: member.sequences[1].decode,
    "window": lambda engine, member: member.jobs.get(Role.CODEC) or engine._sounding,
}


@pytest.mark.parametrize("use_codec_thread", [False, True])
@pytest.mark.parametrize("heard", [None, 2400])
@pytest.mark.parametrize("is_waiting", WAITING.values(), ids=WAITING.keys())
def test_after_a_cancel_no_step_is_spent_on_the_session(
    new_driver, is_waiting, heard: int | None, use_codec_thread: bool
) -> None:  # type: ignore[no-untyped-def]
    """Whatever of its reply was about to be made; a neighbour goes on."""
    driver: Driver = new_driver(use_codec_thread=use_codec_thread)
    never_stop(driver.engine)
    options = replace(GREEDY, max_text_tokens=40, max_codes=60)
    for name in ("a", "b"):
        driver.open(name)
        driver.say(name, 0, Said("hello"), options)
    member = driver.engine.scheduler.members["a"]
    while member.sequences[0].wants_token or any(seq.pending for seq in member.sequences):
        driver.step()
    while not is_waiting(driver.engine, member):
        driver.step()
    plans = record_plans(driver.engine)
    driver.submit(CancelTurn("a", 0, heard))
    driver.run()
    assert {name for plan in plans for name in plan.session_ids} == {"b"}
    assert len(driver.answer("b", 0).codes) == 60


@pytest.mark.parametrize("num_steps", [6, 7, 30, 31])
def test_after_a_cancel_a_worker_with_nothing_else_to_do_rests_at_once(
    new_driver, num_steps: int
) -> None:  # type: ignore[no-untyped-def]
    driver: Driver = new_driver()
    never_stop(driver.engine)
    driver.open("a")
    driver.say("a", 0, Said(sound=speech(1.0)))
    for _ in range(num_steps):
        driver.step()
    plans = record_plans(driver.engine)
    driver.submit(CancelTurn("a", 0, 0))
    driver.step()
    assert plans == []
    assert not driver.engine.has_work(driver.now_ms)
    assert driver.engine.wake_ms(driver.now_ms) is None


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_reply_cancelled_before_its_prompt_was_read_costs_its_input_and_no_token(
    new_driver, num_steps: int
) -> None:  # type: ignore[no-untyped-def]
    """What the user said stays in the history, so it is computed once; nothing is drawn."""
    driver: Driver = new_driver(prefill_tokens=32)
    driver.open("a")
    driver.run()
    driver.say("a", 0, Said(sound=speech(3.0)))
    for _ in range(num_steps):
        driver.step()
    thinker = driver.engine.conversations["a"].prompt.thinker
    num_left = thinker.num_pending
    assert num_left
    plans = record_plans(driver.engine)
    driver.submit(CancelTurn("a", 0))
    driver.run()
    assert {plan.phase for plan in plans} <= {Phase.ENCODE, Phase.PREFILL}
    assert prefilled(plans, Role.THINKER) <= num_left
    assert not any(isinstance(r, TextDelta) for r in driver.replies)
    assert thinker.num_drawn == 0


@pytest.mark.parametrize("num_steps", [0, 4, 30])
def test_nobody_is_late_for_a_reply_that_was_cancelled(new_driver, num_steps: int) -> None:  # type: ignore[no-untyped-def]
    """Or the gateway would turn newcomers away from an idle worker."""
    driver: Driver = new_driver()
    driver.open("a")
    driver.say("a", 0, Said(sound=speech(1.0)))
    for _ in range(num_steps):
        driver.step()
    driver.submit(CancelTurn("a", 0, 0))
    driver.run()
    assert driver.engine.lateness_ms(driver.now_ms + 60_000) == 0
