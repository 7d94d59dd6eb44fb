"""The page, the real server and the embedded checkpoint: what a person hears is the answer.

Nothing is stood in for but the person: a recorded question goes into the microphone, something is held up to the
camera, and Whisper tiny.en listens at the speakers.
"""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.demo.browser import GRANTED, SILENT, Visitor, chromium
from tests.e2e.embedded import (
    ANSWERS,
    CHECKPOINT,
    QUESTIONS,
    SEEN,
    question,
    require_checkpoint,
    whisper,
)
from tests.e2e.house import House

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Playwright

require_checkpoint()
pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)
SPOKEN_S = 0.3  # of samples that are not silent: a caption alone is no answer
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


@pytest.mark.timeout(240)  # three browsers, three replies, three transcriptions
def test_what_is_held_up_to_the_camera_is_named(
    driver: Playwright, house: House, tmp_path: Path
) -> None:
    right, num_heard, replies = 0, 0, []
    for name, wanted in SEEN:
        camera = looking_at(QUESTIONS / name.replace("question.ogg", "camera.png"), tmp_path)
        with chromium(driver, GRANTED, f"--use-file-for-fake-video-capture={camera}") as browser:
            visitor = Visitor(browser.new_context(), f"http://127.0.0.1:{house.port}/")
            visitor.start()
            visitor.at("camera").click()
            visitor.until(lambda at=visitor.at: at("camera-preview").is_visible())
            visitor.keep_sound()
            visitor.hold_turn(question(name), PATIENCE_S)
            sound, rate = visitor.heard()
            caption = visitor.at("caption-assistant").text_content()
            assert visitor.figure("jpeg_up") > 0
            assert visitor.errors == [] and visitor.at("error").text_content() == ""
        right += wanted in caption.lower()
        heard = whisper().transcribe(sound, rate)
        num_heard += wanted in heard.lower()
        replies.append((caption, heard))
        assert np.mean(np.abs(sound) > SILENT) * len(sound) / rate > SPOKEN_S, replies
    # Two are right as a rule, one of them when the machine is busy and frames are late; what is captioned is heard.
    log.info("%d captioned, %d heard: %s", right, num_heard, replies)
    assert right and num_heard, replies


def looking_at(picture: Path, folder: Path) -> Path:
    """A camera that sees nothing but a picture, as concatenated JPEGs."""
    jpeg = io.BytesIO()
    Image.open(picture).resize((640, 480)).save(jpeg, "JPEG", quality=90)
    camera = folder / f"{picture.stem}.mjpeg"
    camera.write_bytes(jpeg.getvalue() * 30)
    return camera
