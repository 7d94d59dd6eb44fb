"""The page, the real server and the embedded checkpoint: what a person hears is the answer.

Nothing is stood in for but the person: a recorded question goes into the microphone, and Whisper tiny.en listens at
the speakers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.e2e.embedded import ANSWERS, CHECKPOINT, question, require_checkpoint, whisper
from tests.e2e.house import House

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.demo.browser import Visitor

require_checkpoint()
pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)
PATIENCE_S = 60  # a reply of some seconds on a machine that runs Chromium as well


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    made = House(["--max-text-tokens", "60", "--max-codes", "400"], model=CHECKPOINT, demo=True)
    try:
        yield made.wait_ready()
    finally:
        made.close()


def test_answers_are_heard_and_captioned(visit: Callable[..., Visitor], house: House) -> None:
    right, replies = 0, []
    for name, wanted in ANSWERS[:2]:
        visitor = visit(f"http://127.0.0.1:{house.port}/")
        visitor.start()
        visitor.keep_sound()
        visitor.hold_turn(question(name), PATIENCE_S)
        log.info(
            "first sound %.0f ms, %d underruns",
            visitor.figure("ttfa_ms"),
            visitor.figure("underruns"),
        )
        caption = visitor.at("caption-assistant").text_content()
        heard = whisper().transcribe(*visitor.heard())
        right += wanted in heard.lower()
        replies.append((caption, heard))
        assert wanted in caption.lower(), replies
        visitor.until(lambda at=visitor.at: at("caption-user").text_content() != "", PATIENCE_S)
        assert visitor.errors == [] and visitor.at("error").text_content() == ""
    assert right, replies
