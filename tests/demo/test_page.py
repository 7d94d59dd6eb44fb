"""The page before anybody speaks: clean, accessible, fitting, still."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.demo.peer import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.demo.browser import Visitor
    from tests.demo.peer import Peer

STATES = (
    "idle",
    "asking",
    "connecting",
    "listening",
    "hearing",
    "thinking",
    "speaking",
    "reconnecting",
    "error",
)
TESTIDS = (
    "start mute camera flip interrupt settings transcript download retry text-input send mode-ptt voice mic-device "
    "status latency mic-level caption-user caption-assistant camera-preview error"
).split()
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


def test_loads_clean_and_asks_for_nothing(visit: Callable[..., Visitor], peer: Peer) -> None:
    visitor = visit()
    visitor.page.wait_for_timeout(200)
    assert visitor.page.evaluate("lab.asked") == 0
    assert not [line for line in visitor.console if not line.startswith("verbose")]
    assert all(url.startswith(peer.url) for url in visitor.requests)
    assert not peer.connections
    assert visitor.state == "idle"
    assert visitor.page.evaluate("document.documentElement.lang") == "en"
    assert "viewport-fit=cover" in visitor.page.locator("meta[name=viewport]").get_attribute(
        "content"
    )


def test_public_hooks_exist(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    for testid in TESTIDS:
        assert visitor.at(testid).count() == 1, testid
    names = (
        "state ttfa_ms underruns buffered_ms flushes reconnects frames_up jpeg_up heard_ms".split()
    )
    assert visitor.page.evaluate("Object.keys(omniDebug).sort()") == sorted(names)
    assert (
        visitor.page.evaluate("'use strict'; try { omniDebug.state = 1 } catch { 'refused' }")
        == "refused"
    )


def test_the_page_is_small(visit: Callable[..., Visitor], peer: Peer) -> None:
    fetch = visit().page.context.request
    files = [path.relative_to(PAGE) for path in PAGE.rglob("*.*")]
    weights = [int(fetch.get(f"{peer.url}{name}").headers["content-length"]) for name in files]
    assert len(files) >= 15
    assert 20_000 < sum(weights) < 60_000


def test_nothing_foreign_is_named_in_the_sources(peer: Peer) -> None:
    for path in peer.page.rglob("*.*"):
        hosts = set(re.findall(r"(?:https?:)?//([a-z0-9-]+\.[a-z0-9.]+)", path.read_text()))
        assert hosts <= {"www.w3.org"}, path  # the namespace of the icon


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Callable[..., Visitor], peer: Peer, scheme: str) -> None:
    peer.script.answers = [
        "The tide is coming in, slowly at first and then faster, until the boats begin to lift."
    ]
    peer.script.lead_ms = 3000
    visitor = visit(color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")

    def violations() -> list[str]:
        found = Axe().run(visitor.page).response["violations"]
        return [f"{entry['id']}: {[node['html'] for node in entry['nodes']]}" for entry in found]

    assert violations() == []
    # axe passes over meters that are no ARIA widgets.
    assert visitor.page.get_by_role("meter", name="Microphone level").count() == 1
    visitor.at("transcript").click()
    assert violations() == []
    visitor.at("close-transcript").click()
    visitor.at("settings").click()
    assert violations() == []
    visitor.at("close-settings").click()
    visitor.start()
    visitor.type("Tell me about the tide.")
    visitor.wait("speaking")
    visitor.until(lambda: len(visitor.page.locator(".ahead").text_content()) > 5)
    assert violations() == []


@pytest.mark.parametrize(
    "size",
    [
        PHONE,
        {"viewport": {"width": 320, "height": 568}},
        {"viewport": {"width": 640, "height": 400}},
    ],
)
@pytest.mark.parametrize("mode", ["mode-free", "mode-ptt"])
def test_small_screens_fit_without_scrolling(
    visit: Callable[..., Visitor], size: dict[str, Any], mode: str
) -> None:
    visitor = visit(**size)
    visitor.choose(mode)
    visitor.start()
    visitor.at("camera").click()
    visitor.until(lambda: visitor.at("camera-preview").is_visible())
    width, height = (
        size["viewport"]["width"],
        size["viewport"]["height"],
    )  # innerWidth grows with what does not fit
    root = (
        "(({ scrollWidth, scrollHeight }) => [scrollWidth, scrollHeight])(document.documentElement)"
    )
    assert visitor.page.evaluate(root) == [width, height]
    assert visitor.page.evaluate("[innerWidth, innerHeight, scrollX, scrollY]") == [
        width,
        height,
        0,
        0,
    ]
    visible = visitor.page.locator(
        "button:visible, label.icon:visible, .composer input[type=text]"
    ).all()
    assert len(visible) >= 8
    for button in visible:
        box = button.bounding_box()
        assert box, button
        assert box["width"] >= 43.9, button
        assert box["height"] >= 43.9, button
        assert 0 <= box["x"], button
        assert box["x"] + box["width"] <= width, button
        assert box["y"] + box["height"] <= height, button
    if size is PHONE:
        assert visitor.page.locator(".dock").bounding_box()["height"] <= height / 4


def test_dialogs_fit_a_phone(visit: Callable[..., Visitor]) -> None:
    visitor = visit(**PHONE, reduced_motion="reduce")
    visitor.at("settings").click()
    box = visitor.page.locator("dialog.settings").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert box["y"] + box["height"] <= 844
    visitor.page.keyboard.press("Escape")
    visitor.at("transcript").click()
    sheet, dock = (visitor.page.locator(name).bounding_box() for name in (".sheet", ".dock"))
    assert sheet["y"] + sheet["height"] <= dock["y"]
    assert sheet["height"] > 600
    assert sheet["x"] == 0


def test_reduced_motion_animates_nothing(visit: Callable[..., Visitor]) -> None:
    visitor = visit(reduced_motion="reduce")
    visitor.page.evaluate(
        """() => {
             lab.frames = lab.moves = 0;
             const raf = requestAnimationFrame;
             window.requestAnimationFrame = (f) => (lab.frames++, raf(f));
             for (const kind of ["animationstart", "transitionrun"]) addEventListener(kind, () => lab.moves++);
           }"""
    )
    visitor.start()
    visitor.type("Hello")
    visitor.wait("speaking")
    visitor.at("transcript").click()
    visitor.page.wait_for_timeout(300)
    assert visitor.page.evaluate("document.getAnimations().length") == 0
    assert visitor.page.evaluate("lab.moves") == 0  # also those that are over
    assert visitor.page.evaluate("lab.frames") == 0


def test_text_twice_as_large_loses_nothing(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.page.evaluate("document.documentElement.style.fontSize = '200%'")
    for name in ("start", "settings", "transcript", "text-input", "status"):
        box = visitor.at(name).bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= 1280, name
        assert box["y"] + box["height"] <= 800, name


def test_choices_are_remembered_and_the_key_is_not(
    visit: Callable[..., Visitor], peer: Peer
) -> None:
    visitor = visit()
    visitor.at("settings").click()
    visitor.at("mode-ptt").check()
    visitor.at("captions-size").select_option("large")
    visitor.at("key").fill("secret-key")
    visitor.at("key").blur()
    visitor.page.reload()
    visitor.at("settings").click()
    assert visitor.at("mode-ptt").is_checked()
    assert visitor.at("captions-size").input_value() == "large"
    assert "secret-key" not in visitor.page.evaluate("JSON.stringify(localStorage)")
