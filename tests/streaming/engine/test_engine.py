"""Laws of the engine: who else is there, and how input arrives, never changes what a conversation says."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from model.chat import Chat
from streaming.packets import (
    AppendText,
    CancelTurn,
    CloseSession,
    CommitTurn,
    DoneReason,
    HoldTurn,
    OpenSession,
    SamplingOptions,
    SessionFailed,
    SessionSettings,
    TruncateTurn,
    TurnTruncated,
)
from tests.streaming.engine.driving import (
    GREEDY,
    SYSTEM,
    Driver,
    Said,
    chat_answer,
    commands_of,
    give,
    levels,
    picture,
    speech,
)

if TYPE_CHECKING:
    from streaming.packets import Command

CASES = {
    "text": Said("hello"),
    "sound": Said(sound=speech(4.6)),
    "sound and text": Said("what?", sound=speech(0.7, 3)),
    "image": Said("what is it", image=picture(90, 60)),
    "video": Said("and now", pairs=((0, (picture(60, 60, 1), picture(60, 60, 2))),)),
    "video with sound": Said(
        "so",
        sound=speech(4.3, 5),
        pairs=tuple((i, (picture(60, 60, 2 * i), picture(60, 60, 2 * i + 1))) for i in range(4)),
    ),
}


@pytest.mark.parametrize("said", CASES.values(), ids=CASES.keys())
def test_one_session_alone_says_what_chat_says(omni, new_driver, said: Said) -> None:  # type: ignore[no-untyped-def]
    expected = chat_answer(Chat(omni, SYSTEM), said)
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, said)
    driver.run()
    answer = driver.answer("a", 0)
    assert answer.text == expected.text
    assert answer.tokens == expected.tokens
    assert answer.codes == expected.codes
    assert len(answer.pcm) == len(expected.pcm)


def test_later_turns_continue_from_what_was_said(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    chat, driver = Chat(omni, SYSTEM), new_driver()
    driver.open("a")
    for turn_id, name in enumerate(("sound", "video with sound", "text", "image")):
        options = replace(GREEDY, max_text_tokens=3) if turn_id == 1 else GREEDY
        expected = chat_answer(chat, CASES[name], options)
        driver.say("a", turn_id, CASES[name], options)
        driver.run()
        answer = driver.answer("a", turn_id)
        assert (answer.tokens, answer.codes) == (expected.tokens, expected.codes)
    driver.engine.check_integrity()


def test_every_reply_has_the_voice_and_the_noise_it_asks_for(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    """In one session, also with turns of equal voice or equal noise, and back at the first of them."""
    # Greedy, this Talker mostly ends with its first code; from this seed it speaks in every turn.
    drawn = SamplingOptions(temperature=1, seed=1)
    asked = [("Ethan", 5), ("Chelsie", 5), ("Chelsie", 6), (None, 0), ("Ethan", 5)]
    chat, driver = Chat(omni, SYSTEM), new_driver()
    driver.open("a")
    for turn_id, (voice, seed) in enumerate(asked):
        options = replace(GREEDY, talker=drawn, voice=voice, noise_seed=seed)
        expected = chat_answer(chat, CASES["text"], options)
        driver.say("a", turn_id, CASES["text"], options)
        driver.run()
        answer = driver.answer("a", turn_id)
        assert (answer.tokens, answer.codes) == (expected.tokens, expected.codes)
        assert len(answer.codes) > 10
        # To int16 rounding: the last window and what follows it are solved in other calls.
        assert np.abs(levels(answer.pcm) - levels(expected.pcm)).max() <= 1


@pytest.mark.parametrize(("voice", "seed"), [("Chelsie", 6), ("Ethan", 5)])
def test_another_noise_or_voice_is_heard(new_driver, voice: str, seed: int) -> None:  # type: ignore[no-untyped-def]
    """So the law above could not hold if both were ignored."""
    drawn = replace(GREEDY, talker=SamplingOptions(temperature=1, seed=3))
    driver = new_driver()
    options = {"a": ("Chelsie", 5), "again": ("Chelsie", 5), "other": (voice, seed)}
    for name, (asked, noise) in options.items():
        driver.open(name)
        driver.say(name, 0, CASES["text"], replace(drawn, voice=asked, noise_seed=noise))
    driver.run()
    first, again, other = (driver.answer(name, 0) for name in options)
    assert first.pcm == again.pcm
    assert first.pcm[: len(other.pcm)] != other.pcm[: len(first.pcm)]


@pytest.mark.parametrize("seed", [0, 1])
def test_sixteen_others_who_come_and_go_change_nothing(omni, new_driver, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Random arrivals, cancels, truncations and hang-ups around one conversation of three turns."""
    rng = random.Random(seed)
    turns = ["video with sound", "text", "sound"]
    chat = Chat(omni, SYSTEM)
    expected = [chat_answer(chat, CASES[name]) for name in turns]
    driver = new_driver(num_lanes=17, context_tokens=1024)
    driver.open("a")
    crowd = [Stranger(f"s{i}", rng) for i in range(16)]
    for turn_id, name in enumerate(turns):
        arrivals = [*commands_of(CASES[name], "a", turn_id), CommitTurn("a", turn_id, GREEDY)]
        while arrivals or driver.answer("a", turn_id).done is None:
            for stranger in rng.sample(crowd, 3):
                driver.submit(*stranger.next_commands())
            if arrivals:
                driver.submit(arrivals.pop(0))
            for _ in range(rng.randrange(1, 6)):
                driver.step()
                driver.engine.scheduler.check_integrity()
        answer = driver.answer("a", turn_id)
        assert answer.text == expected[turn_id].text
        assert answer.codes == expected[turn_id].codes
        assert len(answer.pcm) == len(expected[turn_id].pcm)
    assert sum(s.num_cancelled for s in crowd) > 2
    for stranger in crowd:
        driver.submit(CloseSession(stranger.session_id))
    driver.submit(CloseSession("a"))
    driver.engine.check_integrity()
    assert all(c.evict() for c in driver.engine._prefixes.values())  # the system prompt's entry
    assert all(p.num_free == p.num_pages for p in driver.engine.scheduler.pools.values())


class Stranger:
    """A session that does anything, in a legal order or not."""

    def __init__(self, session_id: str, rng: random.Random) -> None:
        self.session_id = session_id
        self.num_cancelled = 0
        self._rng = rng
        self._turn_id = 0
        self._script: list[Command] = [OpenSession(session_id, SessionSettings(SYSTEM))]

    def next_commands(self) -> list[Command]:
        rng, turn_id = self._rng, self._turn_id
        if self._script:
            return [self._script.pop(0)]
        kind = rng.choice(["say", "say", "say", "cancel", "truncate", "stale", "hang up"])
        if kind == "say":
            self._turn_id += 1
            said = CASES[rng.choice(list(CASES))]
            self._script = [*commands_of(said, self.session_id, self._turn_id)]
            if rng.random() < 0.8:
                self._script.append(CommitTurn(self.session_id, self._turn_id, GREEDY))
            return []
        if kind == "cancel":
            self.num_cancelled += 1
            heard = rng.choice([None, 0, 4800, 20_000])
            return [CancelTurn(self.session_id, turn_id, heard)]
        if kind == "truncate":
            return [TruncateTurn(self.session_id, max(0, turn_id - rng.randrange(3)), 7000)]
        if kind == "stale":
            return [AppendText(self.session_id, turn_id - 1, "old"), CommitTurn("nobody", 3)]
        self._turn_id += 1  # the test's books know sessions by name
        self._script = [OpenSession(self.session_id, SessionSettings(SYSTEM))]
        return [CloseSession(self.session_id)]


@pytest.mark.parametrize("num_steps", [0, 1, 4, 9, 15, 22])
@pytest.mark.parametrize("heard", [None, 0, 9600])
def test_a_cancelled_reply_leaves_what_was_heard_and_no_other_trace(  # type: ignore[no-untyped-def]
    omni, new_driver, num_steps: int, heard: int | None
) -> None:
    """The next turn equals one after a history that was written, not spoken."""
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, CASES["sound"])
    for _ in range(num_steps):
        driver.step()
    driver.submit(CancelTurn("a", 0, heard))
    kept = kept_tokens(driver, "a")
    driver.say("a", 1, CASES["text"])
    driver.run()
    done = driver.answer("a", 0).done
    assert done is not None
    assert done.reason is DoneReason.CANCELLED
    expected = chat_answer(chat_with_history(omni, CASES["sound"], kept), CASES["text"])
    answer = driver.answer("a", 1)
    assert (answer.tokens, answer.codes) == (expected.tokens, expected.codes)
    driver.engine.check_integrity()


@pytest.mark.parametrize("heard", [0, 14_000, 1_000_000])
@pytest.mark.parametrize("has_gone_on", [False, True])
def test_an_ended_reply_can_still_be_cut_to_what_was_heard(  # type: ignore[no-untyped-def]
    omni, new_driver, heard: int, has_gone_on: bool
) -> None:
    """Also when the user's next turn is being heard already: its input moves behind the cut."""
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, CASES["text"])
    driver.run()
    said = list(commands_of(CASES["video with sound"], "a", 1))
    cut = len(said) // 2 if has_gone_on else 0
    driver.submit(*said[:cut])
    for _ in range(3 * cut):
        driver.step()
    driver.submit(TruncateTurn("a", 0, heard))
    [truncated] = [r for r in driver.step() if isinstance(r, TurnTruncated)]
    kept = driver.answer("a", 0).tokens[: heard_count(driver, truncated)]
    assert truncated.text == omni.tokenizer.decode(kept)
    driver.submit(*said[cut:], CommitTurn("a", 1, GREEDY))
    driver.run()
    chat = chat_with_history(omni, CASES["text"], kept)
    expected = chat_answer(chat, CASES["video with sound"])
    answer = driver.answer("a", 1)
    assert (answer.tokens, answer.codes) == (expected.tokens, expected.codes)
    driver.engine.check_integrity()


def test_sound_made_beside_the_step_loop_is_the_same(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    """Also for lanes that are cancelled, closed and given to others while a window of theirs is being made."""
    expected = {name: chat_answer(Chat(omni, SYSTEM), CASES[name]) for name in ("sound", "image")}
    alone: Driver = new_driver()
    for name in expected:
        alone.open(name)
        alone.say(name, 0, CASES[name])
    alone.run()
    driver: Driver = new_driver(num_lanes=2, use_codec_thread=True)
    for round_number, num_steps in enumerate((19, 22, 25, 28, 31)):
        names = [f"{name}-{round_number}" for name in expected]
        for name, said in zip(names, expected, strict=True):
            driver.open(name)
            driver.say(name, 0, CASES[said])
        for _ in range(num_steps):  # somewhere around the first window
            driver.step()
        driver.submit(CancelTurn(names[0], 0, 0))
        driver.say(names[0], 1, CASES["image"])  # on the same lane, at once
        driver.run()
        answer = driver.answer(names[0], 1)
        assert len(answer.pcm) == 2 * 480 * len(answer.codes)
        driver.submit(CloseSession(names[0]))
        driver.open("again")
        driver.say("again", 0, CASES["sound"])
        driver.run()
        for name, said in (("again", "sound"), (names[1], "image")):
            answer = driver.answer(name, 0)
            assert (answer.tokens, answer.codes) == (expected[said].tokens, expected[said].codes)
            assert answer.pcm == alone.answer(said, 0).pcm
        driver._seen.clear()
        driver.submit(CloseSession("again"), CloseSession(names[1]))
        driver.step()
    driver.engine.check_integrity()


def test_a_fault_of_the_codec_fails_the_sessions_it_worked_for(new_driver, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    driver: Driver = new_driver(use_codec_thread=True)
    for name in ("a", "b"):
        driver.open(name)
    driver.say("a", 0, CASES["sound"])
    codec = driver.engine.runner.codec
    assert codec is not None
    with monkeypatch.context() as patch:
        patch.setattr(codec, "_decode", lambda windows: 1 / 0)
        driver.run()
    assert [r.session_id for r in driver.replies if isinstance(r, SessionFailed)] == ["a"]
    driver.say("b", 0, CASES["sound"])
    driver.run()
    assert driver.answer("b", 0).pcm
    driver.engine.check_integrity()


def test_a_tool_call_is_delivered_but_never_spoken(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    drawn = SamplingOptions(temperature=1, seed=0)  # this checkpoint is greedy for one word only
    options = replace(GREEDY, thinker=drawn, talker=drawn)
    plain = chat_answer(Chat(omni, SYSTEM), CASES["sound"], options)
    # The marker is a stretch of what is said anyway; before it, everything is spoken as ever.
    for start, is_spoken in ((3, True), (0, False)):
        marker = plain.text[start : start + 2]
        assert plain.text.index(marker) == start
        driver = new_driver()
        driver.open("a")
        driver.say("a", 0, CASES["sound"], replace(options, silent_from=marker))
        driver.run()
        answer = driver.answer("a", 0)
        assert (answer.text, answer.tokens) == (plain.text, plain.tokens)
        assert bool(answer.codes) == bool(answer.pcm) == is_spoken
        assert answer.codes[:2] == plain.codes[: 2 * is_spoken]
        assert answer.done is not None
        assert answer.done.usage.output_audio_tokens == len(answer.codes)
    driver.say("a", 1, CASES["image"])
    driver.run()
    expected = chat_answer(chat_with_history(omni, CASES["sound"], plain.tokens), CASES["image"])
    assert driver.answer("a", 1).tokens == expected.tokens
    driver.engine.check_integrity()


def test_a_marker_that_never_comes_changes_nothing(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    plain = chat_answer(Chat(omni, SYSTEM), CASES["sound"])
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, CASES["sound"], replace(GREEDY, silent_from="<tool_call>"))
    driver.run()
    answer = driver.answer("a", 0)
    assert (answer.text, answer.codes) == (plain.text, plain.codes)


def test_a_held_reply_stands_still_and_then_goes_on_as_if_nothing_had_been(
    omni, new_driver
) -> None:  # type: ignore[no-untyped-def]
    plain = chat_answer(Chat(omni, SYSTEM), CASES["sound"])
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, CASES["sound"])
    for _ in range(15):
        driver.step()
    driver.submit(HoldTurn("a", 0, is_held=True))
    assert driver.step() == []
    assert not driver.engine.has_work(driver.now_ms)
    assert driver.engine.wake_ms(driver.now_ms) is None
    driver.now_ms += 100_000
    driver.submit(HoldTurn("a", 0, is_held=False))
    driver.run()
    answer = driver.answer("a", 0)
    assert (answer.text, answer.codes) == (plain.text, plain.codes)


def test_a_held_reply_can_be_cancelled_and_the_next_one_is_free(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, CASES["sound"])
    for _ in range(15):
        driver.step()
    driver.submit(HoldTurn("a", 0, is_held=True), CancelTurn("a", 0, 0))
    driver.say("a", 1, CASES["text"])
    driver.run()
    assert driver.answer("a", 1).codes


def test_a_turn_withdrawn_after_the_history_was_cut_leaves_no_open_message(
    omni, new_driver
) -> None:  # type: ignore[no-untyped-def]
    driver = new_driver()
    driver.open("a")
    driver.say("a", 0, CASES["text"])
    driver.run()
    driver.submit(AppendText("a", 1, "never mind"), TruncateTurn("a", 0, 0), CancelTurn("a", 1))
    driver.say("a", 2, CASES["text"])
    driver.run()
    expected = chat_answer(chat_with_history(omni, CASES["text"], []), CASES["text"])
    answer = driver.answer("a", 2)
    assert (answer.tokens, answer.codes) == (expected.tokens, expected.codes)
    driver.engine.check_integrity()


def kept_tokens(driver: Driver, session_id: str) -> list[int]:
    reply = driver.engine.conversations[session_id].reply
    assert reply is not None
    return reply.tokens[: reply.num_rows]


def heard_count(driver: Driver, truncated: TurnTruncated) -> int:
    conversation = driver.engine.conversations[truncated.session_id]
    [reply] = [r for r in conversation.replies if r.turn_id == truncated.turn_id]
    return reply.num_heard_tokens(conversation.rate)


def chat_with_history(omni, said: Said, reply_tokens: list[int]) -> Chat:  # type: ignore[no-untyped-def]
    """A conversation in which the reply stands as if it had been typed."""
    chat = Chat(omni, SYSTEM)
    give(chat, said)
    writer, prompt = chat._writer, chat.prompt
    prompt.add_tokens(writer.close_message())
    prompt.add_tokens([*writer.open_message("assistant"), *writer.take_text()])
    prompt.add_tokens(reply_tokens)
    prompt.add_tokens(writer.close_message())
    chat._is_turn_open = False
    return chat
