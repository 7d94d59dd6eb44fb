"""Bad input and faults: each has its answer, and nobody else notices."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from model.chat import Chat
from streaming.engine.engine import EngineDead
from streaming.media import ClipKind, ClipStart, FramePair, MediaChunk, VideoFrame
from streaming.packets import (
    AppendChunk,
    AppendImage,
    AppendPair,
    AppendText,
    AudioDelta,
    CommitTurn,
    DoneReason,
    InputRefused,
    OpenClip,
    OpenSession,
    SessionFailed,
    SessionSettings,
    TextDelta,
    TurnDone,
)
from tests.streaming.engine.driving import (
    GREEDY,
    SYSTEM,
    Driver,
    Said,
    chat_answer,
    commands_of,
    levels,
    never_stop,
    speech,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streaming.engine.engine import Engine
    from streaming.engine.runner import StepOutput
    from streaming.engine.scheduler import StepPlan
    from streaming.packets import Command

CHUNK = MediaChunk(1, 0, bytes(64), is_last=True)
BAD_TURNS = {
    "chunk without a clip": ([AppendChunk("a", 0, CHUNK)], "no_clip"),
    "chunk out of order": (
        [OpenClip("a", 0, ClipStart(ClipKind.SOUND, 0)), AppendChunk("a", 0, CHUNK)],
        "out_of_order",
    ),
    "commit inside a clip": ([OpenClip("a", 0, ClipStart(ClipKind.SOUND, 0))], "clip_open"),
    "pair in a clip of sound": (
        [
            OpenClip("a", 0, ClipStart(ClipKind.SOUND, 0)),
            AppendPair("a", 0, FramePair(0, (VideoFrame(0, b""),))),
        ],
        "no_video",
    ),
}


@pytest.mark.parametrize(("commands", "code"), BAD_TURNS.values(), ids=BAD_TURNS.keys())
def test_bad_input_fails_its_turn_and_leaves_no_trace(new_driver, commands, code: str) -> None:  # type: ignore[no-untyped-def]
    clean, driver = new_driver(), new_driver()
    for each in (clean, driver):
        each.open("a")
    driver.submit(*commands, CommitTurn("a", 0, GREEDY))
    driver.run()
    done = driver.answer("a", 0).done
    assert done is not None
    assert (done.reason, done.code) == (DoneReason.FAILED, code)
    for each in (clean, driver):
        each.say("a", 1, Said("hello"))
        each.run()
    assert driver.answer("a", 1).tokens == clean.answer("a", 1).tokens
    assert driver.answer("a", 1).codes == clean.answer("a", 1).codes


def test_a_turn_of_twenty_minutes_is_refused_with_the_limit(new_driver) -> None:  # type: ignore[no-untyped-def]
    driver = new_driver(context_tokens=512)
    driver.open("a")
    driver.say("a", 0, Said(sound=np.zeros(16_000 * 60 * 20, np.int16)))
    driver.run()
    done = driver.answer("a", 0).done
    assert done is not None
    assert done.code == "context_full"
    assert "512" in done.message
    driver.say("a", 1, Said("hi"))
    driver.run()
    assert driver.answer("a", 1).text


def test_silence_and_pictures_that_are_none_are_answered(new_driver) -> None:  # type: ignore[no-untyped-def]
    driver = new_driver()
    driver.open("a")
    driver.submit(AppendImage("a", 0, b"no picture"))
    driver.say("a", 0, Said(sound=np.zeros(16_000, np.int16)))
    driver.run()
    assert any(isinstance(r, InputRefused) for r in driver.replies)
    assert driver.answer("a", 0).tokens


def test_two_hundred_sessions_on_a_worker_for_sixteen(new_driver) -> None:  # type: ignore[no-untyped-def]
    driver = new_driver(num_lanes=16, context_tokens=256)
    for i in range(200):
        driver.open(f"s{i}")
    driver.submit(AppendText("s150", 0, "hello"), CommitTurn("s150", 0, GREEDY))
    driver.run()
    refused = [r for r in driver.replies if isinstance(r, SessionFailed)]
    assert len(refused) == 184
    assert {r.code for r in refused} == {"worker_full"}
    assert len(driver.engine.conversations) == 16
    driver.engine.check_integrity()


def twenty_minutes(session_id: str) -> Iterator[Command]:
    yield OpenSession(session_id, SessionSettings(SYSTEM))
    yield from commands_of(Said(sound=speech(20 * 60)), session_id, 0)
    yield CommitTurn(session_id, 0, GREEDY)


def two_hundred_callers() -> Iterator[Command]:
    for i in range(200):
        yield OpenSession(f"s{i}", SessionSettings(SYSTEM))
        yield AppendText(f"s{i}", 0, "hello")
        yield CommitTurn(f"s{i}", 0, GREEDY)


@pytest.mark.slow
@pytest.mark.timeout(300)  # 30 000 rows of prompt, where they fit
@pytest.mark.parametrize(
    ("disturbances", "sizes", "num_answered"),
    [
        (twenty_minutes("b"), {"context_tokens": 1024}, 0),
        (twenty_minutes("b"), {"context_tokens": 32_768, "num_lanes": 2}, 1),
        (two_hundred_callers(), {"num_lanes": 16, "context_tokens": 256}, 15),
    ],
    ids=["a turn of twenty minutes, refused", "a turn of twenty minutes", "two hundred callers"],
)
def test_a_neighbour_answers_as_if_alone(
    new_driver, disturbances: Iterator[Command], sizes: dict[str, int], num_answered: int
) -> None:  # type: ignore[no-untyped-def]
    """Two commands of the others before each step of a conversation of two turns: same text, codes and sound."""
    options = replace(GREEDY, max_text_tokens=30, max_codes=80)
    turns = [Said(sound=speech(3.0)), Said("hello")]
    alone, driver = new_driver(**sizes), new_driver(**sizes)
    for each in (alone, driver):
        never_stop(each.engine)
        each.open("a")
        each.run()
    num_beside = 0
    for turn_id, said in enumerate(turns):
        alone.say("a", turn_id, said, options)
        alone.run()
        driver.say("a", turn_id, said, options)
        while driver.answer("a", turn_id).done is None:
            for command in itertools.islice(disturbances, 2):
                driver.submit(command)
                num_beside += 1
            driver.step()
            assert "a" in driver.engine.conversations
    assert num_beside > 400
    driver.submit(*disturbances)
    driver.run()
    for turn_id in range(len(turns)):
        expected, answer = alone.answer("a", turn_id), driver.answer("a", turn_id)
        assert len(answer.codes) == 80
        assert (answer.text, answer.codes) == (expected.text, expected.codes)
        # To int16 rounding: a window is solved together with those of others.
        assert np.abs(levels(answer.pcm) - levels(expected.pcm)).max() <= 1
    others = [r for r in driver.replies if isinstance(r, TurnDone) and r.session_id != "a"]
    assert sum(r.reason is not DoneReason.FAILED for r in others) == num_answered
    driver.engine.check_integrity()


@pytest.mark.parametrize("fault", [RuntimeError("boom"), torch.OutOfMemoryError("full")])
def test_a_fault_in_a_step_fails_only_the_sessions_of_that_step(  # type: ignore[no-untyped-def]
    new_driver, monkeypatch, fault: Exception
) -> None:
    driver: Driver = new_driver()
    for name in ("a", "b"):
        driver.open(name)
    driver.run()
    driver.say("a", 0, Said("hello"))
    engine: Engine = driver.engine
    with monkeypatch.context() as patch:

        def broken(plan: object) -> None:
            raise fault

        patch.setattr(engine.runner, "run", broken)
        driver.step()
    driver.say("b", 0, Said("hello"))
    driver.run()
    failed = [r for r in driver.replies if isinstance(r, SessionFailed)]
    assert [r.session_id for r in failed] == ["a"]
    assert driver.answer("b", 0).text
    engine.check_integrity()


def full_above(engine: Engine, limit: int) -> Callable[[StepPlan], StepOutput]:
    """A runner whose memory holds batches of at most `limit`."""
    run = engine.runner.run

    def limited(plan: StepPlan) -> StepOutput:
        if plan.size > limit:
            raise torch.OutOfMemoryError(f"{plan.size} are too many")
        return run(plan)

    return limited


def test_a_batch_that_does_not_fit_is_halved_and_nobody_notices(
    omni, new_driver, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    expected = chat_answer(Chat(omni, SYSTEM), Said(sound=speech(1.0)))
    driver: Driver = new_driver(num_lanes=4)
    monkeypatch.setattr(driver.engine.runner, "run", full_above(driver.engine, 2))
    for name in "abcd":
        driver.open(name)
        driver.say(name, 0, Said(sound=speech(1.0)))
    driver.run()
    for name in "abcd":
        answer = driver.answer(name, 0)
        assert (answer.tokens, answer.codes) == (expected.tokens, expected.codes)
    driver.engine.check_integrity()


def test_when_even_half_does_not_fit_the_youngest_pays_and_twice_in_a_minute_ends_the_worker(
    new_driver, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    driver: Driver = new_driver(num_lanes=4)
    for name in "abcd":
        driver.open(name)
        driver.say(name, 0, Said("hello"))
    with monkeypatch.context() as patch:
        patch.setattr(driver.engine.runner, "run", full_above(driver.engine, 0))
        driver.step()
    [failed] = [r for r in driver.replies if isinstance(r, SessionFailed)]
    assert (failed.session_id, failed.code) == ("b", "out_of_memory")  # of the half that was tried
    driver.run()
    assert all(driver.answer(name, 0).text for name in "acd")
    driver.say("a", 1, Said("hello"))
    monkeypatch.setattr(driver.engine.runner, "run", full_above(driver.engine, 0))
    with pytest.raises(EngineDead, match="twice in a minute"):
        driver.step()


def test_no_reply_gets_further_ahead_than_the_lead(new_driver, omni) -> None:  # type: ignore[no-untyped-def]
    """Over many windows; and their sound is what the codec makes of the codes by itself."""
    driver: Driver = new_driver(max_lead_ms=2500)
    driver.step_ms = 1.0
    never_stop(driver.engine)
    driver.open("a")
    driver.say("a", 0, Said(sound=speech(1.0)), replace(GREEDY, max_codes=250))
    conversation = driver.engine.conversations["a"]
    most = 0.0
    for _ in range(20_000):
        if not driver.engine.has_work(driver.now_ms):
            wake = driver.engine.wake_ms(driver.now_ms)
            if wake is None:
                break
            driver.now_ms = max(driver.now_ms + 1, wake)
        before = driver.now_ms
        driver.step()
        most = max(most, conversation.pace.lead_ms(before))
    answer = driver.answer("a", 0)
    assert len(answer.pcm) == 2 * 480 * len(answer.codes)
    assert len(answer.codes) == 250
    assert 500 < most <= 2500
    codec = omni.model.token2wav
    with torch.inference_mode():
        condition = codec.condition(omni.voice())[None]
        expected = codec(torch.tensor([answer.codes]), condition, [0])[0].mul(32767)
    made = torch.from_numpy(np.frombuffer(answer.pcm, np.int16).copy())
    assert (made - expected).abs().max() <= 0.51  # rounding to int16


def test_speech_can_be_left_out(new_driver) -> None:  # type: ignore[no-untyped-def]
    driver: Driver = new_driver()
    driver.open("a")
    driver.say("a", 0, Said("hello"), replace(GREEDY, speech=False))
    driver.run()
    answer = driver.answer("a", 0)
    assert answer.text
    assert not answer.pcm
    assert answer.done is not None
    assert answer.done.usage.output_audio_tokens == 0
    assert answer.done.usage.output_text_tokens == len(answer.tokens)


def test_nothing_of_a_cancelled_turn_surfaces(new_driver) -> None:  # type: ignore[no-untyped-def]
    from streaming.packets import CancelTurn

    driver: Driver = new_driver()
    driver.open("a")
    driver.say("a", 0, Said("hello"))
    for _ in range(8):
        driver.step()
    driver.submit(
        CancelTurn("a", 0), *commands_of(Said("more"), "a", 0), CommitTurn("a", 0, GREEDY)
    )
    driver.step()
    driver.run()
    cancelled = next(i for i, r in enumerate(driver.replies) if r == driver.answer("a", 0).done)
    assert not any(isinstance(r, TextDelta | AudioDelta) for r in driver.replies[cancelled:])
    assert not driver.engine.has_work(driver.now_ms)
