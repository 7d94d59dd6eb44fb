"""Laws of the engine: who else is there, and how input arrives, never changes what a conversation says."""

from __future__ import annotations

import pytest

from model.chat import Chat
from tests.streaming.engine.driving import SYSTEM, Said, chat_answer, picture, speech

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
