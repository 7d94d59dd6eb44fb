"""A conversation with the page: what is said, what is heard, and what happens when somebody cuts in."""

from __future__ import annotations

import json
import logging
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.demo.browser import GRANTED, Visitor, chromium
from tests.demo.peer import RATE_IN, RATE_OUT
from tests.demo.sound import match
from tests.demo.speech import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Playwright

    from tests.demo.peer import Peer

pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)  # pytest --log-cli-level=INFO shows the figures
QUESTION = "What is the sea doing today?"
LONG = (
    "Certainly. The water stood low at dawn, and it has been rising ever since, slowly at first and then faster, "
    "until the boats began to lift from the sand, one after another, and turned their bows to the wind."
)


def test_one_spoken_turn(visit: Callable[..., Visitor], peer: Peer) -> None:
    answer = "Certainly. The tide is coming in, and the wind is light."
    peer.script.answers = [answer]
    visitor = visit()
    visitor.start()
    visitor.keep_sound()
    cue = visitor.speak(QUESTION)
    visitor.wait("hearing")
    visitor.wait("thinking")
    visitor.wait("speaking")
    assert visitor.at("caption-user").text_content() in (f"{QUESTION} ", QUESTION, "…")
    visitor.wait("listening", 12)

    assert visitor.at("caption-assistant").text_content() == answer
    assert visitor.at("caption-user").text_content() == QUESTION
    heard, rate = visitor.heard()
    assert match(heard, rate, say(answer, RATE_OUT), RATE_OUT) > 0.8  # 0.38 at a wrong rate
    assert np.abs(heard).max() < 1
    sent = np.frombuffer(bytes(peer.last.pcm), "<i2")
    # The browser's gain control and noise suppression change waveforms, not bands.
    assert match(sent, RATE_IN, say(QUESTION, 24_000, voice="en-gb"), 24_000) > 0.8
    assert len(peer.last.pcm) / (visitor.figure("frames_up") * 0.04) == pytest.approx(
        32_000, rel=0.02
    )
    assert len(peer.last.pcm) > 0.85 * 32 * (visitor.now() - cue["startsAt"])
    overhead = peer.last.num_bytes / len(peer.last.pcm)
    assert overhead < 1.06  # binary; base64 would be 1.34
    shown_ms, _, words = visitor.at("latency").text_content().partition(" ")
    assert words == "ms to first sound"
    assert int(shown_ms) == pytest.approx(visitor.figure("ttfa_ms"), abs=1)
    loud = [at for at in visitor.loud_times() if at > cue["endsAt"]]
    # From outside: last word said to first sound out; the page adds the output latency it is told.
    assert abs(visitor.figure("ttfa_ms") - (loud[0] - cue["endsAt"])) < 150
    log.info("end of speech to first sound %.0f ms", loud[0] - cue["endsAt"])
    assert visitor.figure("underruns") == 0
    assert not visitor.errors


def test_where_the_time_goes_is_shown_on_demand(visit: Callable[..., Visitor], peer: Peer) -> None:
    peer.script.thinking_ms, peer.script.mute_ms = 200, 500
    visitor = visit()
    panel = visitor.at("details")
    assert panel.is_hidden()
    visitor.choose("show-details")
    visitor.start()
    visitor.speak(QUESTION)
    visitor.wait("speaking")
    visitor.until(lambda: "Played after0 ms" not in panel.text_content())  # written each second
    names, values = (panel.locator(tag).all_text_contents() for tag in ("dt", "dd"))
    shown = dict(zip(names, values, strict=True))
    assert shown.pop("Underruns") == "0"
    ms = {name: int(value.removesuffix(" ms")) for name, value in shown.items()}
    assert 0 < ms.pop("Round trip") < 1000
    assert ms.pop("Sound waiting") >= 0
    assert ms["End of speech noticed after"] >= peer.script.silence_ms - 40  # a frame
    assert ms["First text after"] >= 200
    # The peer says its first word half a second before its first sound.
    assert ms["First sound sent after"] - ms.pop("First text after") == pytest.approx(500, abs=150)
    assert visitor.figure("ttfa_ms") == pytest.approx(sum(ms.values()), abs=80)  # output latency
    visitor.at("settings").click()
    visitor.at("show-details").uncheck()
    assert panel.is_hidden()


def test_a_session_is_asked_for_once_and_in_full(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    (update,) = peer.last.of("session.update")
    session = update["session"]
    assert session["type"] == "realtime"
    assert session["output_modalities"] == ["audio"]
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 16000}
    assert session["audio"]["input"]["transcription"]
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session["audio"]["output"]["delivery"] == "binary"


def cut_by_voice(visitor: Visitor) -> float:
    return visitor.speak("Wait a moment please")["startsAt"]


def cut_by_button(visitor: Visitor) -> float:
    visitor.at("interrupt").click()
    return float(visitor.page.evaluate("lab.inputs.at(-1)"))


def cut_by_escape(visitor: Visitor) -> float:
    visitor.page.keyboard.press("Escape")
    return float(visitor.page.evaluate("lab.inputs.at(-1)"))


@pytest.mark.parametrize(
    ("cut", "limit_ms", "state"),
    [
        (cut_by_voice, 600, "hearing"),
        (cut_by_button, 250, "listening"),
        (cut_by_escape, 250, "listening"),
    ],
)
def test_interruption_silences_at_once_and_says_what_was_heard(
    visit: Callable[..., Visitor],
    peer: Peer,
    cut: Callable[[Visitor], float],
    limit_ms: int,
    state: str,
) -> None:
    peer.script.answers = [LONG, "Yes."]
    peer.script.lead_ms = 3000
    visitor = visit()
    visitor.start()
    visitor.speak(QUESTION)
    visitor.wait("speaking")
    visitor.page.wait_for_timeout(1500)
    began = visitor.loud_times()[0]
    cut_at = cut(visitor)
    visitor.wait(state)
    visitor.until(lambda: peer.last.of("conversation.item.truncate"))
    visitor.page.wait_for_timeout(limit_ms + 300)  # longer than it may still sound

    last_loud = max(at for at in visitor.loud_times() if at < cut_at + 1500)
    log.info("silent after %.0f ms, %s", last_loud - cut_at, cut.__name__)
    assert last_loud - cut_at < limit_ms
    (truncate,) = peer.last.of("conversation.item.truncate")
    # What the ear heard, in steps of 21 ms: a busy machine may hold the sound up in between, by 650 ms once.
    heard_ms = 21 * sum(at <= last_loud for at in visitor.loud_times())
    assert heard_ms - 400 < truncate["audio_end_ms"] < last_loud - began + 400
    assert visitor.figure("heard_ms") == truncate["audio_end_ms"]
    assert visitor.figure("flushes") == 1
    assert visitor.figure("buffered_ms") == 0 or cut is cut_by_voice
    if cut is not cut_by_voice:
        assert peer.last.of("response.cancel")
        visitor.type("Go on.")
    visitor.wait("speaking")  # a new answer follows
    # The transcript keeps what the server says was heard, and a dash.
    visitor.until(lambda: visitor.page.locator(".sheet .assistant").count() >= 1)
    kept = visitor.page.locator(".sheet .assistant p").first.text_content()
    assert kept.endswith(" —")
    assert LONG.startswith(kept[:-2])
    assert 3 < len(kept) < len(LONG) - 20


def test_old_packets_after_an_interruption_are_not_played(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.answers = [LONG]
    visitor = visit()
    visitor.start()
    visitor.speak(QUESTION)
    visitor.wait("speaking")
    (item,) = [item for item in peer.talks[-1].items.values() if "words" in item]
    response = peer.talks[-1].response
    visitor.at("interrupt").click()
    visitor.wait("listening")
    visitor.page.wait_for_timeout(150)
    quiet_from = visitor.now()
    # A delta that was under way when the response was cancelled, in the base64 spelling for good measure.
    import base64

    late = {
        "response_id": response["id"],
        "item_id": item["id"],
        "output_index": 0,
        "content_index": 0,
    }
    peer.say(
        "response.output_audio.delta",
        **late,
        delta=base64.b64encode(say(LONG, RATE_OUT)[:48_000].tobytes()).decode(),
    )
    visitor.page.wait_for_timeout(500)
    assert not [at for at in visitor.loud_times() if at > quiet_from]
    assert visitor.state == "listening"


def test_interrupting_before_the_answer_begins_stops_it(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.creating_ms = 700  # nothing to cancel yet
    visitor = visit()
    visitor.start()
    visitor.type("Hello")
    visitor.wait("thinking")
    visitor.page.keyboard.press("Escape")
    visitor.wait("listening")
    assert not peer.last.of("response.cancel")
    visitor.until(lambda: peer.last.of("response.cancel"))
    visitor.page.wait_for_timeout(300)
    assert visitor.state == "listening"
    assert visitor.loud_times() == []


def test_words_that_nobody_heard_were_not_said(visit: Callable[..., Visitor], peer: Peer) -> None:
    peer.script.mute_ms = 3000
    visitor = visit()
    visitor.start()
    visitor.type("Hello")
    visitor.wait("thinking")
    visitor.page.wait_for_timeout(500)
    visitor.page.keyboard.press("Escape")
    visitor.until(lambda: peer.last.of("conversation.item.truncate"))
    assert peer.last.of("conversation.item.truncate")[0]["audio_end_ms"] == 0
    peer.lose_connections()
    visitor.until(lambda: len(peer.connections) == 2)
    visitor.wait("listening")
    visitor.until(lambda: peer.last.of("conversation.item.create"))
    created = peer.last.of("conversation.item.create")
    assert [event["item"]["role"] for event in created] == ["user"]


def test_a_question_asked_too_early_is_asked_again(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.creating_ms = 600  # a page cannot cancel what it has not been told of
    visitor = visit()
    visitor.start()
    visitor.type("One?")
    visitor.wait("thinking")
    visitor.type("Two?")
    visitor.wait("speaking")
    visitor.wait("listening", 15)
    visitor.wait("thinking")
    visitor.wait("speaking")
    assert len(peer.last.of("response.create")) == 3
    assert visitor.at("error").text_content() == ""


def test_playback_is_acknowledged_each_second_and_at_the_end(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    answer = (
        "The tide is coming in, and the wind is light today, so the boats may leave before noon."
    )
    peer.script.answers = [answer]
    visitor = visit()
    visitor.start()
    visitor.at("text-input").fill("Hello")
    visitor.at("text-input").press("Enter")
    visitor.wait("speaking")
    visitor.wait("listening", 12)
    total_ms = 1000 * len(say(answer, RATE_OUT)) / RATE_OUT
    acks = [event["audio_end_ms"] for event in peer.last.of("playback.ack")]
    assert len(acks) >= int(total_ms / 1000)
    assert acks == sorted(acks)
    assert abs(acks[-1] - total_ms) < 2


def test_short_answers_play_whole_and_end_without_underrun(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    peer.script.answers = ["Yes."]
    visitor = visit()
    visitor.start()
    visitor.keep_sound()
    visitor.type("Is it?")
    visitor.wait("speaking")
    visitor.wait("listening")
    heard, rate = visitor.heard()
    assert match(heard, rate, say("Yes.", RATE_OUT), RATE_OUT) > 0.8
    assert visitor.figure("underruns") == 0


def test_a_slow_server_is_counted_not_fatal(visit: Callable[..., Visitor], peer: Peer) -> None:
    peer.script.answers = ["The tide is coming in, and the wind is light."]
    # Four seconds late at the end; a busy machine may hold the sound up for one.
    peer.script.speed = 0.4
    visitor = visit()
    visitor.start()
    visitor.type("Hello")
    visitor.wait("speaking")
    visitor.wait("listening", 20)
    assert visitor.figure("underruns") > 0
    assert visitor.at("caption-assistant").text_content() == peer.script.answers[0]


def test_speech_into_a_muted_microphone_starts_no_turn(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.start()
    visitor.at("mute").click()
    assert visitor.at("mute").get_attribute("aria-pressed") == "true"
    assert visitor.at("mute").text_content().strip() == "Muted"
    frames = visitor.figure("frames_up")
    visitor.speak("Hello")
    visitor.page.wait_for_timeout(900)
    assert visitor.state == "listening"
    assert visitor.figure("frames_up") > frames + 10  # the input clock goes on
    assert not any(peer.last.pcm[-16_000:])
    visitor.page.locator("h1").click()
    visitor.page.keyboard.press(" ")
    assert visitor.at("mute").get_attribute("aria-pressed") == "false"
    visitor.speak("Hello")
    visitor.wait("hearing")


def test_the_camera_sends_pictures_and_goes_out(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    visitor.at("camera").click()
    visitor.until(lambda: len(peer.last.jpegs) >= 1)
    assert visitor.at("camera").get_attribute("aria-pressed") == "true"
    assert visitor.at("camera-preview").is_visible()
    began, num = visitor.now(), len(peer.last.jpegs)
    visitor.page.wait_for_timeout(2000)
    per_second = (len(peer.last.jpegs) - num) / (visitor.now() - began) * 1000
    assert 1 <= per_second <= 4
    assert all(
        jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9") for jpeg in peer.last.jpegs
    )
    assert visitor.figure("jpeg_up") == len(peer.last.jpegs)
    visitor.page.locator("h1").click()
    visitor.page.keyboard.press("c")
    visitor.until(lambda: visitor.at("camera-preview").is_hidden())
    video = "lab.tracks.filter((t) => t.kind === 'video').map((t) => t.readyState)"
    assert visitor.page.evaluate(video) == ["ended"]
    visitor.at("camera").click()
    visitor.until(lambda: visitor.at("camera-preview").is_visible())
    visitor.at("start").click()
    visitor.wait("idle")
    assert set(visitor.page.evaluate("lab.tracks.map((t) => t.readyState)")) == {"ended"}
    assert visitor.at("camera").get_attribute("aria-pressed") == "false"


def test_other_devices_can_be_chosen(driver: Playwright, peer: Peer) -> None:
    two = "--use-fake-device-for-media-stream=device-count=2"
    with chromium(driver, GRANTED, two) as browser:
        context = browser.new_context()
        context.add_init_script(
            "addEventListener('DOMContentLoaded', () => (lab.useDevice = true))"
        )
        visitor = Visitor(context, peer.url)

        def opened(kind: str) -> list[tuple[str, str]]:
            """State and device of each that was opened."""
            tracks = f"lab.tracks.filter((t) => t.kind === '{kind}')"
            script = f"{tracks}.map((t) => [t.readyState, t.getSettings().deviceId])"
            return [(state, device) for state, device in visitor.page.evaluate(script)]

        visitor.start()
        visitor.at("camera").click()
        visitor.until(lambda: visitor.at("flip").is_visible())
        for kind, testid in (("audio", "mic-device"), ("video", "camera-device")):
            ((_, first),) = opened(kind)
            choice = visitor.at(testid)
            visitor.at("settings").click()
            other = choice.locator("option").last.get_attribute("value")
            assert other != first
            choice.select_option(other)
            visitor.at("close-settings").click()
            visitor.until(lambda kind=kind: len(opened(kind)) == 2)
            assert [state for state, _ in opened(kind)] == ["ended", "live"]
            assert opened(kind)[-1][1] == choice.input_value() == other
        visitor.at("flip").click()
        visitor.until(lambda: opened("video")[-1] == ("live", first))
        num_jpegs, num_frames = len(peer.last.jpegs), visitor.figure("frames_up")
        visitor.until(lambda: len(peer.last.jpegs) > num_jpegs)
        visitor.until(lambda: visitor.figure("frames_up") > num_frames)


def test_a_device_that_is_gone_gives_way_to_another(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.page.evaluate(
        """localStorage.setItem("parley", JSON.stringify({ mic: "gone", camera: "gone" }))"""
    )
    visitor.page.reload()
    visitor.start()
    visitor.at("camera").click()
    visitor.until(lambda: peer.last.jpegs)
    assert visitor.figure("frames_up") > 0
    assert visitor.at("error").text_content() == ""


def test_clips_are_one_stream_of_recorder_bytes(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.choose("clips")
    visitor.start()
    assert peer.last.of("session.update")[-1]["session"]["video"] == {
        "input": {"audio_track": "ignore"}
    }
    visitor.at("camera").click()
    visitor.until(lambda: len(peer.last.clips) >= 2, 12)
    visitor.at("camera").click()
    visitor.until(lambda: peer.last.clips[-1][0].get("last"))
    headers = [header for header, _ in peer.last.clips]
    assert [header["seq"] for header in headers] == list(range(len(headers)))
    assert {header["format"] for header in headers} == {"video/webm"}
    assert len({header["stream_id"] for header in headers}) == 1
    assert peer.last.clips[0][1].startswith(b"\x1a\x45\xdf\xa3")
    assert not peer.last.jpegs


def test_everything_by_keyboard(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    keys = visitor.page.keyboard

    def tab_to(testid: str, key: str = "Tab") -> None:
        for _ in range(30):
            keys.press(key)
            if visitor.page.evaluate("document.activeElement?.dataset?.testid") == testid:
                return
        raise AssertionError(f"{testid} cannot be reached")

    tab_to("settings")
    keys.press("Enter")
    tab_to("mode-free")
    keys.press("ArrowDown")
    assert visitor.at("mode-ptt").is_checked()
    keys.press("Escape")
    tab_to("start", "Shift+Tab")
    outline = visitor.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    keys.press("Enter")
    visitor.wait("listening")
    session = peer.last.of("session.update")[-1]["session"]
    assert session["audio"]["input"]["turn_detection"] is None
    visitor.page.evaluate("document.activeElement.blur()")
    assert visitor.figure("frames_up") == 0  # nothing leaves before the key is down
    keys.down(" ")
    visitor.wait("hearing")
    visitor.speak("Hello there")
    visitor.page.wait_for_timeout(900)
    keys.down(" ")  # a repeat
    keys.up(" ")
    visitor.wait("speaking")
    assert len(peer.last.of("input_audio_buffer.commit")) == 1
    sent = np.frombuffer(bytes(peer.last.pcm), "<i2")
    assert match(sent, RATE_IN, say("Hello there", 24_000, voice="en-gb"), 24_000) > 0.7
    keys.press("Escape")
    visitor.wait("listening")
    keys.press("t")
    assert visitor.page.locator(".sheet").is_visible()
    keys.press("Escape")
    assert visitor.page.locator(".sheet").is_hidden()


def test_a_tap_on_the_talk_button_explains_itself(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.choose("mode-ptt")
    visitor.start()
    visitor.at("mute").click()
    visitor.until(lambda: "Hold the button" in visitor.at("error").text_content())
    assert visitor.state == "listening"
    visitor.until(lambda: peer.last.of("input_audio_buffer.clear"))
    assert not peer.last.of("input_audio_buffer.commit")


def test_typed_turn_and_saved_transcript(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    visitor.type("How high is the water?")
    visitor.wait("speaking")
    sent = [event["item"]["content"] for event in peer.last.of("conversation.item.create")]
    assert sent == [[{"type": "input_text", "text": "How high is the water?"}]]
    visitor.wait("listening", 12)
    visitor.at("transcript").click()
    saved = {}
    for testid in ("download", "download-json"):
        with visitor.page.expect_download() as download:
            visitor.at(testid).click()
        saved[testid] = Path(download.value.path()).read_text()
    assert visitor.page.locator(".sheet li").count() == 2
    assert "You: How high is the water?" in saved["download"]
    assert "Parley: Certainly. The tide is coming in." in saved["download"]
    turns = json.loads(saved["download-json"])["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert [turn["text"] for turn in turns] == [
        "How high is the water?",
        "Certainly. The tide is coming in.",
    ]


def test_typing_needs_no_microphone(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.type("Hello")
    visitor.wait("speaking")
    assert visitor.page.evaluate("lab.tracks.length") == 0
    assert visitor.at("mute").is_disabled()
    visitor.wait("listening", 12)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + bytes([y % 256, 90, 120]) * width for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_a_dropped_picture_can_be_asked_about(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    drop = """async ([bytes, kind]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "sea.png", { type: "image/png" }));
      const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }"""
    for n, kind in enumerate(("drop", "paste")):
        visitor.page.evaluate(drop, [list(png(1600, 900)), kind])
        visitor.until(lambda n=n: visitor.page.locator(".chips li").count() == n + 1)
    visitor.page.locator(".chips button").first.click()
    visitor.until(lambda: len(peer.last.of("conversation.item.delete")) == 1)
    visitor.type("What is this?")
    visitor.wait("speaking")
    assert visitor.page.locator(".chips li").count() == 0
    created = peer.last.of("conversation.item.create")
    url = created[0]["item"]["content"][0]["image_url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 200_000
    assert peer.last.of("conversation.item.delete")[0]["item_id"] == created[0]["item"]["id"]
    assert created[-1]["item"]["content"] == [{"type": "input_text", "text": "What is this?"}]


def test_a_broken_picture_is_refused_in_words(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.at("picture").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": b"nothing"}
    )
    visitor.until(lambda: "could not be read" in visitor.at("error").text_content())
    visitor.at("dismiss").click()
    assert visitor.at("error").text_content() == ""


def test_the_voice_can_change_in_mid_conversation(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.start()
    visitor.at("settings").click()
    assert visitor.at("voice").input_value() == "Chelsie"
    visitor.at("voice").select_option("Ethan")
    visitor.until(lambda: len(peer.last.of("session.update")) == 2)
    assert peer.last.of("session.update")[-1]["session"]["audio"]["output"]["voice"] == "Ethan"
    assert len(peer.connections) == 1


def test_clearing_asks_and_then_forgets(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.start()
    visitor.type("Remember the number seven.")
    visitor.wait("speaking")
    visitor.wait("listening", 12)
    visitor.at("transcript").click()
    visitor.at("clear").click()
    visitor.at("clear-cancel").click()
    assert visitor.page.locator(".sheet li").count() == 2
    visitor.at("clear").click()
    visitor.at("clear-confirm").click()
    visitor.until(lambda: len(peer.connections) == 2)
    visitor.wait("listening")
    assert visitor.page.locator(".sheet li").count() == 0
    assert not peer.last.of("conversation.item.create")


def test_a_greeting_comes_first_if_wanted(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.choose("greet")
    visitor.start()
    visitor.wait("speaking")
    assert "Greet" in peer.last.of("response.create")[0]["response"]["instructions"]
