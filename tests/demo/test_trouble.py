"""When something is missing, refused, slow or gone: a sentence a person can act on, and no exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.demo.browser import GRANTED, Visitor, chromium

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Playwright

    from tests.demo.peer import Peer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "NotAllowedError",
            "Microphone access was blocked. Allow it in the address bar, then try again.",
        ),
        ("NotFoundError", "No microphone was found. Plug one in, or continue by typing."),
        ("NotReadableError", "Another program is using the microphone."),
        ("OverconstrainedError", "That microphone was disconnected; pick another."),
    ],
)
def test_a_refused_microphone_says_why_and_offers_typing(
    visit: Callable[..., Visitor], peer: Peer, name: str, sentence: str
) -> None:
    visitor = visit()
    visitor.page.evaluate(f"lab.refuse = {{ audio: '{name}' }}")
    visitor.at("start").click()
    visitor.wait("error")
    assert visitor.at("error").text_content() == sentence
    assert visitor.at("error").get_attribute("role") == "alert"
    assert visitor.at("retry").is_visible()
    assert not peer.connections
    visitor.page.evaluate("lab.refuse = null")
    visitor.at("retry").click()
    visitor.wait("listening")
    assert visitor.at("error").text_content() == ""
    assert visitor.page.evaluate("lab.errors") == []


def test_without_a_microphone_one_can_type_on(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.page.evaluate("lab.refuse = { audio: 'NotFoundError' }")
    visitor.at("start").click()
    visitor.wait("error")
    visitor.at("type-instead").click()
    visitor.wait("listening")
    visitor.type("Hello")
    visitor.wait("speaking")


def test_a_refused_camera_leaves_the_conversation_alone(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.start()
    visitor.page.evaluate("lab.refuse = { video: 'NotAllowedError' }")
    visitor.at("camera").click()
    visitor.until(lambda: "Camera access was blocked" in visitor.at("error").text_content())
    assert visitor.state == "listening"
    assert visitor.at("camera").get_attribute("aria-pressed") == "false"


def test_an_insecure_address_says_so_and_typing_still_works(driver: Playwright, peer: Peer) -> None:
    with chromium(driver, GRANTED, "--host-resolver-rules=MAP lan.test 127.0.0.1") as browser:
        visitor = Visitor(browser.new_context(), f"http://lan.test:{peer.port}/")
        visitor.at("start").click()
        visitor.wait("error")
        assert visitor.at("error").text_content() == (
            "Browsers only allow the microphone on https:// or localhost. Open this page over one of those."
        )
        visitor.type("Hello")
        visitor.until(lambda: "tide" in visitor.at("caption-assistant").text_content())
        visitor.wait("listening")
        assert peer.last.of("session.update")[0]["session"]["output_modalities"] == ["text"]
        assert visitor.page.evaluate("lab.errors") == []


def test_denied_for_real_and_a_real_device_from_a_file(
    driver: Playwright, peer: Peer, tmp_path: Path
) -> None:
    import numpy as np

    from tests.demo.sound import match
    from tests.demo.speech import say, write_wav

    with chromium(driver, "--deny-permission-prompts") as browser:
        visitor = Visitor(browser.new_context(), peer.url)
        visitor.at("start").click()
        visitor.wait("error")
        assert "Microphone access was blocked" in visitor.at("error").text_content()

    question = say("What is the sea doing today?", 16_000, voice="en-gb")
    pause = np.zeros(32_000, np.int16)  # the file plays from the moment the device opens
    wav = write_wav(tmp_path / "question.wav", np.concatenate((pause, question, pause)), 16_000)
    with chromium(driver, GRANTED, f"--use-file-for-fake-audio-capture={wav}%noloop") as browser:
        context = browser.new_context()
        context.add_init_script(
            "addEventListener('DOMContentLoaded', () => (lab.useDevice = true))"
        )
        visitor = Visitor(context, peer.url)
        visitor.start()
        visitor.wait("hearing")
        visitor.wait("speaking")
        sent = np.frombuffer(bytes(peer.last.pcm), "<i2")
        assert match(sent, 16_000, question, 16_000) > 0.8


def test_a_microphone_that_is_unplugged_is_said_and_can_be_replaced(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.start()
    visitor.page.evaluate(
        "lab.tracks.at(-1).onended()"
    )  # browsers fire it; a script's own stop does not
    visitor.until(lambda: "disconnected" in visitor.at("error").text_content())
    assert visitor.state == "listening"
    visitor.at("settings").click()
    options = visitor.at("mic-device").locator("option").all()
    assert len(options) > 1
    visitor.at("mic-device").select_option(index=1)
    visitor.at("close-settings").click()
    visitor.until(lambda: visitor.at("mute").is_enabled())
    visitor.speak("Hello there")
    visitor.wait("hearing")


def test_a_server_that_dies_and_returns(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    visitor.type("My name is Ada.")
    visitor.wait("speaking")
    visitor.wait("listening", 12)
    peer.stop()
    visitor.wait("reconnecting")
    assert visitor.at("status").text_content() == "Connection lost, reconnecting…"
    visitor.page.wait_for_timeout(600)
    peer.start()
    visitor.wait("listening", 15)
    assert visitor.figure("reconnects") == 1
    assert visitor.at("error").text_content() == ""
    # The new session has been told what was said.
    said = [
        event["item"]["content"][0]["text"] for event in peer.last.of("conversation.item.create")
    ]
    assert said == ["My name is Ada.", "Certainly. The tide is coming in."]
    assert set(visitor.page.evaluate("lab.tracks.map((t) => t.readyState)")) == {"live"}
    visitor.speak("Are you still there?")
    visitor.wait("hearing")
    visitor.wait("speaking")


def test_a_connection_lost_in_mid_answer_keeps_what_was_heard(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.answers = [
        "The tide is coming in, slowly at first and then faster, until the boats begin to lift."
    ]
    visitor = visit()
    visitor.start()
    visitor.type("Tell me.")
    visitor.wait("speaking")
    visitor.page.wait_for_timeout(1200)
    above = """(({ width, height }, pen) => pen.getImageData(0, 0, width, height / 2 - 4).data.some(Boolean))(
      document.querySelector("canvas"), document.querySelector("canvas").getContext("2d"))"""
    assert visitor.page.evaluate(above)  # a voice lifts the line
    peer.lose_connections(1012, "service_restart")
    visitor.wait("reconnecting")
    assert not visitor.page.evaluate(above)
    visitor.wait("listening")
    said = [
        event["item"]["content"][0]["text"] for event in peer.last.of("conversation.item.create")
    ]
    assert said[0] == "Tell me."
    assert peer.script.answers[0].startswith(said[1])
    assert 3 < len(said[1]) < 60


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (3000, "invalid_request_error.invalid_api_key", "access key"),
        (1008, "slow_consumer", "too slow"),
        (4001, "replaced", "another window"),
    ],
)
def test_a_final_refusal_is_not_tried_again(
    visit: Callable[..., Visitor], peer: Peer, code: int, reason: str, words: str
) -> None:
    peer.script.close_at_once = (code, reason)
    visitor = visit()
    visitor.at("start").click()
    visitor.wait("error")
    assert words in visitor.at("error").text_content()
    assert visitor.at("retry").is_visible()
    assert set(visitor.page.evaluate("lab.tracks.map((t) => t.readyState)")) == {"ended"}
    peer.script.close_at_once = None
    visitor.at("retry").click()
    visitor.wait("listening")


def test_a_loading_server_is_waited_for(visit: Callable[..., Visitor], peer: Peer) -> None:
    peer.script.refuse = 503
    peer.script.ready = (503, {"status": "loading", "eta_s": 12})
    visitor = visit()
    visitor.at("start").click()
    visitor.until(
        lambda: visitor.at("error").text_content() == "The model is still loading (about 12 s)."
    )
    assert visitor.state == "connecting"
    peer.script.ready = (200, {"status": "ready"})
    visitor.until(
        lambda: "All places are taken; trying again in" in visitor.at("error").text_content()
    )
    peer.script.refuse = 0
    visitor.wait("listening", 12)
    assert visitor.at("error").text_content() == ""


def test_no_server_at_all_ends_in_an_error(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    # Eight real retries take half a minute; the clock is the browser's, so it can be hurried.
    visitor.start()
    visitor.page.evaluate(
        "() => { const later = setTimeout; window.setTimeout = (f, ms) => later(f, ms / 50); }"
    )
    peer.stop()
    try:
        visitor.wait("reconnecting")
        visitor.wait("error", 15)
        assert visitor.at("error").text_content() == "The server is not answering."
        assert set(visitor.page.evaluate("lab.tracks.map((t) => t.readyState)")) == {"ended"}
        visitor.type("Are you there?")
        visitor.wait("error", 15)
        assert visitor.at("error").text_content() == "The server is not answering."
        assert visitor.at("text-input").input_value() == "Are you there?"  # nothing typed is lost
    finally:
        peer.start()


def test_a_failed_answer_and_a_refused_event_are_said(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.fail_response = "The worker was lost."
    visitor = visit()
    visitor.start()
    visitor.type("Hello")
    visitor.until(lambda: "The worker was lost." in visitor.at("error").text_content())
    visitor.wait("listening")
    visitor.at("dismiss").click()
    error = {
        "type": "invalid_request_error",
        "message": "Too many pictures.",
        "param": None,
        "event_id": None,
    }
    peer.say("error", error=error | {"code": "rate_limit_exceeded"})
    visitor.until(lambda: visitor.at("error").text_content() == "Too many pictures.")
    peer.say(
        "error",
        error=error | {"code": "response_cancel_not_active", "message": "Cancellation failed"},
    )
    visitor.page.wait_for_timeout(100)
    assert visitor.at("error").text_content() == "Too many pictures."


def test_cancelling_while_the_browser_asks(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.page.evaluate(
        """() => { const ask = navigator.mediaDevices.getUserMedia;
             navigator.mediaDevices.getUserMedia = async (w) =>
               (await new Promise((r) => (lab.answer = r)), ask(w)); }"""
    )
    visitor.at("start").click()
    visitor.wait("asking")
    assert visitor.at("start").text_content() == "Cancel"
    visitor.at("start").click()
    visitor.wait("idle")
    visitor.page.evaluate("lab.answer()")
    visitor.page.wait_for_timeout(200)
    assert visitor.state == "idle"
    assert set(visitor.page.evaluate("lab.tracks.map((t) => t.readyState)")) == {"ended"}
    assert not peer.connections


def test_a_context_that_stands_still_is_replaced(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    visitor.page.evaluate(
        """() => {
             const old = lab.contexts.at(-1);
             Object.defineProperty(old, "currentTime", { get: () => 1 });
             document.dispatchEvent(new Event("visibilitychange"));
           }"""
    )
    visitor.until(
        lambda: visitor.page.evaluate("lab.tracks.map((t) => t.readyState).join()") == "ended,live"
    )
    visitor.until(lambda: visitor.at("mute").is_enabled())
    visitor.speak("Are you there?")
    visitor.wait("hearing")
    visitor.wait("speaking")
    assert len(peer.connections) == 1


def test_a_page_that_interrupts_itself_gets_advice(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.answers = [
        "The tide is coming in, slowly at first and then faster, until the boats begin to lift."
    ]
    visitor = visit()
    visitor.start()
    visitor.speak("Hello there")
    for _ in range(2):
        visitor.wait("speaking")
        visitor.speak("Echo echo")
        visitor.wait("hearing")
    visitor.until(lambda: "Headphones help" in visitor.at("error").text_content())
