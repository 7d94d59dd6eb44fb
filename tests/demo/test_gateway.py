"""The page against the real gateway; only the model is stood in for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.demo.test_page import PHONE
from tests.e2e.house import STAND_IN, House

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.demo.browser import Visitor

pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    made = House(
        ["--sound", "hum", "--sound-seconds", "4", "--pace", "3"],
        worker_command=STAND_IN, model="stand-in", demo=True, max_sessions=1,
    )  # fmt: skip
    try:
        yield made.wait_ready()
    finally:
        made.close()


@pytest.fixture
def enter(visit: Callable[..., Visitor], house: House) -> Callable[..., Visitor]:
    # The one place is free again when the previous visitor's context has closed.
    house.wait_until(lambda: house.figure("parley_sessions") == 0)
    return lambda **options: visit(f"http://127.0.0.1:{house.port}/", **options)


def test_the_policy_holds_and_the_page_is_small(enter: Callable[..., Visitor]) -> None:
    visitor = enter()
    visitor.start()
    visitor.at("camera").click()
    visitor.until(lambda: visitor.figure("jpeg_up") > 0)
    assert visitor.errors == []
    weigh = "performance.getEntries().reduce((n, e) => n + (e.transferSize ?? 0), 0)"
    assert visitor.page.evaluate(weigh) < 60_000


def test_a_spoken_turn_and_an_interruption(enter: Callable[..., Visitor]) -> None:
    visitor = enter()
    visitor.start()
    visitor.speak("What is the sea doing today?")
    visitor.wait("hearing")
    visitor.wait("thinking")
    visitor.wait("speaking")
    log.info("end of speech to first sound %.0f ms", visitor.figure("ttfa_ms"))
    visitor.until(
        lambda: visitor.at("caption-user").text_content() == "Good day."
    )  # its hearing is stood in for too
    visitor.page.wait_for_timeout(700)
    visitor.at("interrupt").click()
    visitor.wait("listening")
    visitor.until(lambda: visitor.page.locator(".sheet .assistant").count() == 1)
    visitor.until(lambda: visitor.page.locator(".sheet .assistant p").text_content() == "Good —")
    assert visitor.at("error").text_content() == ""
    visitor.type("And now?")
    visitor.wait("speaking")
    visitor.wait("listening", 12)
    assert visitor.at("caption-assistant").text_content() == "Good day."
    assert visitor.at("error").text_content() == ""


def test_a_voice_cuts_in(enter: Callable[..., Visitor]) -> None:
    visitor = enter()
    visitor.start()
    visitor.speak("What is the sea doing today?")
    visitor.wait("speaking")
    visitor.page.wait_for_timeout(700)
    cut_at = visitor.speak("Wait a moment please")["startsAt"]
    visitor.wait("hearing")
    visitor.page.wait_for_timeout(900)  # longer than it may still sound
    last_loud = max(at for at in visitor.loud_times() if at < cut_at + 1500)
    log.info("silent %.0f ms after the first word", last_loud - cut_at)
    assert last_loud - cut_at < 600
    visitor.wait("speaking")  # a new answer follows
    (first, *_) = visitor.page.locator(".sheet .assistant p").all_text_contents()
    assert first == "Good —"
    assert visitor.figure("flushes") == 1
    assert visitor.at("error").text_content() == ""


def test_a_spoken_turn_on_a_phone_by_taps(enter: Callable[..., Visitor]) -> None:
    visitor = enter(**PHONE)
    visitor.at("start").tap()
    visitor.wait("listening")
    visitor.speak("What is the sea doing today?")
    visitor.wait("hearing")
    visitor.wait("speaking")
    visitor.at("interrupt").tap()
    visitor.wait("listening")
    visitor.at("start").tap()
    visitor.wait("idle")
    assert set(visitor.page.evaluate("lab.tracks.map((t) => t.readyState)")) == {"ended"}
    assert visitor.errors == []


def test_push_to_talk_voice_and_clips(enter: Callable[..., Visitor]) -> None:
    visitor = enter()
    visitor.choose("mode-ptt", "clips")
    visitor.start()
    visitor.at("settings").click()
    visitor.at("voice").select_option("Ethan")
    visitor.at("close-settings").click()
    visitor.at("camera").click()
    visitor.page.evaluate("document.activeElement.blur()")
    visitor.page.keyboard.down(" ")
    visitor.wait("hearing")
    visitor.speak("Hello there")
    visitor.page.wait_for_timeout(900)
    visitor.page.keyboard.up(" ")
    visitor.wait("thinking")
    visitor.wait("speaking")
    assert visitor.at("error").text_content() == ""
    visitor.page.keyboard.press("Escape")
    visitor.wait("listening")
    assert visitor.at("voice").input_value() == "Ethan"


def test_a_full_house_is_waited_for(
    enter: Callable[..., Visitor], visit: Callable[..., Visitor], house: House
) -> None:
    first = enter()
    first.start()
    second = visit(f"http://127.0.0.1:{house.port}/")
    second.at("start").click()
    second.until(lambda: "All places are taken" in second.at("error").text_content())
    first.at("start").click()
    first.wait("idle")
    second.wait("listening", 12)
