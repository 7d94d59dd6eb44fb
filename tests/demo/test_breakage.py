"""Each check of the page must notice a page that is broken on purpose.

A row of the table breaks one line of one file; the named check then has to fail, and at the line that looks for this
very thing. A few run with every test; all of them with `BREAKAGES=all python -m pytest tests/demo/test_breakage.py`.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from playwright.sync_api import Error as BrowserError

from tests.demo import test_closed_loop, test_hidden, test_page, test_talk, test_trouble
from tests.demo.browser import Visitor
from tests.demo.peer import PAGE, Peer
from tests.demo.test_closed_loop import room, wav  # noqa: F401
from tests.demo.test_hidden import devtools  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RUNS_ALL = os.environ.get("BREAKAGES") == "all"
PATIENCE_S = 8  # an answer of the scripted peer takes four


class Breakage(NamedTuple):
    file: str
    text: str  # stands there once
    instead: str
    check: Callable[..., None]
    noticed_by: str  # the statement of the check that fails
    given: dict[str, Any] = {}  # parameters of the check that are no fixtures
    is_always_run: bool = False


LOADS = test_page.test_loads_clean_and_asks_for_nothing
SPOKEN = test_talk.test_one_spoken_turn
CUT = test_talk.test_interruption_silences_at_once_and_says_what_was_heard
MUTE = test_talk.test_speech_into_a_muted_microphone_starts_no_turn
CAMERA = test_talk.test_the_camera_sends_pictures_and_goes_out
KEYBOARD = test_talk.test_everything_by_keyboard
TYPED = test_talk.test_typed_turn_and_saved_transcript
REFUSED = test_trouble.test_a_refused_microphone_says_why_and_offers_typing
INSECURE = test_trouble.test_an_insecure_address_says_so_and_typing_still_works
RETURNS = test_trouble.test_a_server_that_dies_and_returns
FITS = test_page.test_small_screens_fit_without_scrolling
STILL = test_page.test_reduced_motion_animates_nothing
HIDDEN = test_hidden.test_sound_and_pictures_flow_from_a_hidden_tab
AXE = test_page.test_axe_finds_nothing
LOOP = test_closed_loop.test_the_page_does_not_interrupt_itself

LIGHT, DARK = {"scheme": "light"}, {"scheme": "dark"}
BY_VOICE = {"cut": test_talk.cut_by_voice, "limit_ms": 600, "state": "hearing"}
BY_BUTTON = {"cut": test_talk.cut_by_button, "limit_ms": 250, "state": "listening"}
BY_ESCAPE = BY_BUTTON | {"cut": test_talk.cut_by_escape}
DENIED, MISSING = (
    dict(zip(("name", "sentence"), case, strict=True))
    for case in REFUSED.pytestmark[0].args[1][:2]  # type: ignore[attr-defined]
)
ON_A_PHONE = {"size": test_page.PHONE, "mode": "mode-free"}
ON_A_SMALL_SCREEN = ON_A_PHONE | {"size": {"viewport": {"width": 320, "height": 568}}}

BREAKAGES = {
    # Loads clean.
    "a file is missing": Breakage(
        "index.html", 'href="style.css"', 'href="styles.css"', LOADS,
        "visitor.console", is_always_run=True,
    ),
    "an exception at load": Breakage(
        "main.js", "listVoices();\nshow();", "listVoices();\nshowAll();", LOADS, "visitor.console",
    ),
    "a style from elsewhere": Breakage(
        "index.html", '<link rel="stylesheet" href="style.css" />',
        '<link rel="stylesheet" href="style.css" /><link rel="stylesheet" href="https://fonts.example/a.css" />',
        LOADS, "visitor.console",
    ),
    "a font from elsewhere": Breakage(
        "style.css", "* { box-sizing", "@import url(https://fonts.example/a.css);\n* { box-sizing",
        test_page.test_nothing_foreign_is_named_in_the_sources, "hosts <=", is_always_run=True,
    ),
    "the microphone is asked for at load": Breakage(
        "main.js", 'addEventListener("devicechange", listDevices)', "getUserMedia({ audio: true })",
        LOADS, "lab.asked", is_always_run=True,
    ),
    "a connection at load": Breakage(
        "main.js", "listVoices();\nshow();", "listVoices();\nshow();\nlink.open();", LOADS, "peer.connections",
    ),
    "no language": Breakage("index.html", '<html lang="en"', "<html", LOADS, ".lang"),
    "no viewport": Breakage("index.html", ", viewport-fit=cover", "", LOADS, "viewport-fit"),
    # axe.
    "pale grey on light paper": Breakage(
        "style.css", "--soft: light-dark(#55626b", "--soft: light-dark(#a5b2bb", AXE,
        "violations()", LIGHT, is_always_run=True,
    ),
    "a dark voice on dark paper": Breakage(
        "style.css", "light-dark(#0e6263, #6fcdc6)", "light-dark(#0e6263, #0e6263)", AXE, "violations()", DARK,
    ),
    "words not heard yet are too faint": Breakage(
        "style.css", ".ahead { opacity: 0.72; }", ".ahead { opacity: 0.3; }", AXE, "violations()", LIGHT,
    ),
    "a meter without a name": Breakage(
        "index.html", 'aria-label="Microphone level" ', "", AXE, 'get_by_role("meter"', LIGHT,
    ),
    "a choice without a label": Breakage(
        "index.html", '<label>Voice <select name="voice" data-testid="voice"></select></label>',
        '<p>Voice <select name="voice" data-testid="voice"></select></p>', AXE, "violations()", LIGHT,
    ),
    "a button without a name": Breakage(
        "index.html", 'aria-label="Send" title="Send"', "", AXE, "violations()", LIGHT,
    ),
    # One spoken turn.
    "no caption of the person": Breakage(
        "turns.js", "view.captionUser(turn.text);", "", SPOKEN, 'at("caption-user").text_content() == QUESTION',
    ),
    "no caption of the answer": Breakage(
        "turns.js", "answer.turn.text += delta;", "", SPOKEN, 'at("caption-assistant")',
    ),
    "played at another rate": Breakage(
        "player.js", "{ rate: OUTPUT_RATE }", "{ rate: 16000 }", SPOKEN, "match(heard, rate,",
    ),
    "recorded at another rate": Breakage(
        "mic.js", "rate: INPUT_RATE,", "rate: 24000,", SPOKEN, "match(sent, RATE_IN,",
    ),
    "played too loud": Breakage(
        "worklets/playback.js", "samples[packet.at++] / 32768", "samples[packet.at++] / 8192", SPOKEN, ".max() < 1",
    ),
    "sound goes up as base64": Breakage(
        "main.js", 'link.sendBytes({ type: "input_audio_buffer.append" }, pcm);',
        'link.send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...new Uint8Array(pcm))) });',
        SPOKEN, "overhead <",
    ),
    "no latency": Breakage(
        "turns.js", "this.stage.view.latency(ttfa);", "", SPOKEN, 'words == "ms to first sound"',
    ),
    "latency from the server's notice on": Breakage(
        "turns.js", "const ttfa = now - end", "const ttfa = now - stopped", SPOKEN, "loud[0] - cue",
    ),
    # Interruption.
    "a voice does not cut in": Breakage(
        "turns.js", 'this.cutShort("voice");', "", CUT, 'of("conversation.item.truncate"))', BY_VOICE,
    ),
    "what is queued plays on": Breakage(
        "player.js", 'this.post({ type: "flush" });', "", CUT, "< limit_ms", BY_VOICE, is_always_run=True,
    ),
    "the button silences late": Breakage(
        "worklets/playback.js", "const FADE_MS = 10;", "const FADE_MS = 600;", CUT, "< limit_ms", BY_BUTTON,
    ),
    "the server is not told to stop": Breakage(
        "turns.js", 'if (by === "hand" && this.making)', "if (false)", CUT, 'of("response.cancel")', BY_BUTTON,
    ),
    "Escape does nothing": Breakage(
        "view.js", 'if (event.key === "Escape") return this.escape();', "", CUT, "visitor.wait(state)", BY_ESCAPE,
    ),
    "silent for good after a cut": Breakage(
        "player.js", "this.flushing = null;\n        this.open", "this.open", CUT,
        'visitor.wait("speaking")  # a new', BY_ESCAPE,
    ),
    # Truth.
    "off by a second": Breakage(
        "turns.js", "content_index: 0, audio_end_ms: ms }", "content_index: 0, audio_end_ms: ms + 1000 }", CUT,
        '< truncate["audio_end_ms"] <', BY_BUTTON, is_always_run=True,
    ),
    "the cut is not told": Breakage(
        "turns.js", 'send({ type: "conversation.item.truncate",', 'Object({ type: "conversation.item.truncate",', CUT,
        'of("conversation.item.truncate"))', BY_BUTTON,
    ),
    # Mute.
    "a muted microphone sends speech": Breakage(
        "worklets/capture.js", "this.muted ? 0 : samples[i]", "samples[i]", MUTE,
        'visitor.state == "listening"', is_always_run=True,
    ),
    "a muted microphone sends nothing": Breakage(
        "main.js", "if (isOpenMic()) sendSound(pcm);", "if (isOpenMic() && !call?.mic.muted) sendSound(pcm);", MUTE,
        "frames + 10",
    ),
    # Camera.
    "the camera stays open when it is put off": Breakage(
        "camera.js", "track.onended = null;\n      track.stop();", "track.onended = null;", CAMERA,
        'evaluate(video) == ["ended"]', is_always_run=True,
    ),
    "the camera stays open after End": Breakage(
        "main.js", "camera.close();\n  showCamera();\n  view.level(0);", "showCamera();\n  view.level(0);", CAMERA,
        '== {"ended"}',
    ),
    "a picture in five seconds": Breakage(
        "camera.js", "FRAME_EVERY_MS = 500", "FRAME_EVERY_MS = 5000", CAMERA, "1 <= per_second <= 4",
    ),
    "ten pictures a second": Breakage(
        "camera.js", "FRAME_EVERY_MS = 500", "FRAME_EVERY_MS = 100", CAMERA, "1 <= per_second <= 4",
    ),
    "no preview": Breakage(
        "view.js", 'this.query(".camera").hidden = !isOn;', "", CAMERA, 'at("camera-preview").is_visible()',
    ),
    "the choice of a device is a mere wish": Breakage(
        "mic.js", "{ exact: deviceId }", "{ ideal: deviceId }", test_talk.test_other_devices_can_be_chosen,
        "== choice.input_value() == other",
    ),
    "a device that is gone is insisted on": Breakage(
        "mic.js", 'error.name !== "OverconstrainedError"', "error.name",
        test_talk.test_a_device_that_is_gone_gives_way_to_another, "visitor.start()",
    ),
    # Keyboard.
    "Start cannot be reached": Breakage(
        "index.html", 'class="primary" data-testid="start"', 'class="primary" tabindex="-1" data-testid="start"',
        KEYBOARD, 'tab_to("start"',
    ),
    "no sign of the focus": Breakage(
        "style.css", ":focus-visible { outline: 3px solid", ":focus-visible { outline: 0 solid", KEYBOARD,
        'outline == "3px"', is_always_run=True,
    ),
    "Space does not talk": Breakage(
        "view.js", "this.isPushToTalk ? this.hold(true)", "this.isPushToTalk ? undefined", KEYBOARD,
        'wait("hearing")',
    ),
    "no way out of the transcript": Breakage(
        "view.js", "if (!this.sheet.hidden && this.sheet.contains", "if (this.sheet.hidden && this.sheet.contains",
        KEYBOARD, 'locator(".sheet").is_hidden()',
    ),
    # Typed turn, transcript.
    "a typed turn asks for no answer": Breakage(
        "turns.js", 'this.asked(performance.now());\n    send({ type: "response.create" });',
        "this.asked(performance.now());", TYPED, 'wait("speaking")', is_always_run=True,
    ),
    "what was typed stays here": Breakage(
        "turns.js", "send(itemCreate(turn, pictures));", "", TYPED, "assert sent ==",
    ),
    "an empty file": Breakage(
        "view.js", "new Blob([text], { type })", "new Blob([], { type })", TYPED, "You: How high",
    ),
    "answers are missing in the file": Breakage(
        "conversation.js", "const turns = this.turns.map(({ id, role,",
        'const turns = this.turns.filter((turn) => turn.role === "user").map(({ id, role,', TYPED, 'turn["role"]',
    ),
    # Errors.
    "denied without a sentence": Breakage(
        "mic.js", 'NotAllowedError: "Microphone', 'NotAllowed: "Microphone', REFUSED, "== sentence",
        DENIED, is_always_run=True,
    ),
    "no device without a sentence": Breakage(
        "mic.js", 'NotFoundError: "No microphone', 'NotFound: "No microphone', REFUSED, "== sentence", MISSING,
    ),
    "a refusal ends in an exception": Breakage(
        "main.js", "mine.mic.close();\n    if (call === mine) fail", "throw error;\n    if (call === mine) fail",
        REFUSED, 'wait("error")', DENIED,
    ),
    "an error that is not announced": Breakage(
        "index.html", 'class="alert" role="alert"', 'class="alert"', REFUSED, 'get_attribute("role")', DENIED,
    ),
    "an insecure page says something else": Breakage(
        "mic.js", 'if (!navigator.mediaDevices) throw new DOMException("needs https", "SecurityError");', "", INSECURE,
        "Browsers only allow",
    ),
    # Reconnecting.
    "no second try": Breakage(
        "realtime.js", "this.timer = setTimeout(() => this.dial(), waitMs);", "", RETURNS, 'wait("listening", 15)',
    ),
    "the status line does not say so": Breakage(
        "conversation.js", 'reconnecting: "Connection lost', 'reconnecting: "Connection', RETURNS, 'at("status")',
        is_always_run=True,
    ),
    "the new session knows nothing": Breakage(
        "realtime.js", "for (const event of this.options.replay()) this.send(event);", "", RETURNS, "said ==",
    ),
    "deaf after the return": Breakage(
        "main.js", "figures.reconnects++;", "figures.reconnects++;\n    call?.mic.close();", RETURNS, '== {"live"}',
    ),
    "the line stands when nobody is there": Breakage(
        "main.js", "waterline.flatten(); // or", "// or",
        test_trouble.test_a_connection_lost_in_mid_answer_keeps_what_was_heard, "assert not visitor.page",
    ),
    # Phone, reduced motion.
    "too wide for a phone": Breakage(
        "style.css", "grid-template-columns: repeat(5, minmax(0, 1fr)); padding",
        "grid-template-columns: repeat(5, 5rem); padding", FITS, "evaluate(root)", ON_A_SMALL_SCREEN,
    ),
    "the page scrolls": Breakage(
        "style.css", "  overflow: hidden;\n  padding: env(", "  min-height: 1000px;\n  padding: env(", FITS,
        "evaluate(root)", ON_A_PHONE,
    ),
    "small targets": Breakage(
        "style.css", "color: inherit; min-height: 44px;", "color: inherit; min-height: 30px;", FITS,
        'box["height"] >= 43.9', ON_A_PHONE, is_always_run=True,
    ),
    "a tall dock": Breakage(
        "style.css", ".dock button { padding: 0; min-height: 48px", ".dock button { padding: 0; min-height: 108px",
        FITS, "<= height / 4", ON_A_PHONE,
    ),
    "the line moves all the same": Breakage(
        "waterline.js", "if (this.calm.matches) setTimeout", "if (false) setTimeout", STILL, "lab.frames",
        is_always_run=True,
    ),
    "the sheet slides all the same": Breakage(
        "style.css", "@media (prefers-reduced-motion: no-preference)", "@media all", STILL, "lab.moves",
    ),
    # Hidden tab.
    "deaf in a hidden tab": Breakage(
        "main.js", "if (isOpenMic()) sendSound(pcm);", "if (isOpenMic() && !document.hidden) sendSound(pcm);", HIDDEN,
        "num_samples) / seconds",
    ),
    "blind in a hidden tab": Breakage(
        "camera.js", "if (this.timer && performance", "if (this.timer && !document.hidden && performance", HIDDEN,
        "num_jpegs) / seconds",
    ),
    # Closed loop.
    "no echo cancellation": Breakage(
        "mic.js", "echoCancellation: true", "echoCancellation: false", LOOP, "assert",
    ),
}  # fmt: skip


def chosen() -> list[Any]:
    """With what the check itself needs."""
    return [
        pytest.param(
            breakage,
            id=name,
            marks=getattr(sys.modules[breakage.check.__module__], "pytestmark", ()),
        )
        for name, breakage in BREAKAGES.items()
        if RUNS_ALL or breakage.is_always_run
    ]


@pytest.fixture
def peer(breakage: Breakage, tmp_path: Path) -> Iterator[Peer]:
    """Serves the page with one thing broken."""
    page = tmp_path / "page"
    shutil.copytree(PAGE, page)
    file = page / breakage.file
    file.write_text(file.read_text().replace(breakage.text, breakage.instead))
    peer = Peer(page)
    yield peer
    peer.stop()


def test_what_is_broken_stands_there_once() -> None:
    rotten = [
        name
        for name, breakage in BREAKAGES.items()
        if (PAGE / breakage.file).read_text().count(breakage.text) != 1
    ]
    assert rotten == []


@pytest.mark.slow
@pytest.mark.parametrize("breakage", chosen())
def test_the_check_notices(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, breakage: Breakage
) -> None:
    monkeypatch.setattr(Visitor, "patience_s", PATIENCE_S)
    names = [
        name for name in inspect.signature(breakage.check).parameters if name not in breakage.given
    ]
    fixtures = {name: request.getfixturevalue(name) for name in names}
    with pytest.raises((AssertionError, BrowserError)) as caught:
        breakage.check(**fixtures, **breakage.given)
    # Not by accident somewhere else: a check that fails too early says nothing about this line.
    (statement,) = [
        str(entry.statement)
        for entry in caught.traceback
        if entry.frame.code.name == breakage.check.__name__
    ]
    assert breakage.noticed_by in statement, caught.value
