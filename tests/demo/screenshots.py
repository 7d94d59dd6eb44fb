"""Takes the pictures of the page for the documentation: `python -m tests.demo.screenshots`.

They are for looking at, by a person, before a change of the page is called done; no test compares them.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from tests.demo.browser import GRANTED, Visitor, chromium
from tests.demo.peer import Peer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
LOOKS = {
    "light": DESKTOP | {"color_scheme": "light"},
    "dark": DESKTOP | {"color_scheme": "dark"},
    "phone": PHONE,
}
SHOWN = (
    *("idle", "hearing", "speaking", "interrupted"),
    *("error", "insecure", "busy", "reconnecting"),
)
ELSEWHERE = "lan.test"  # not localhost, not https
QUESTION = "What is the sea doing today?"
ANSWER = (
    "The tide is coming in. It stood low at dawn, and it has been rising ever since, slowly at first and then faster, "
    "until the boats begin to lift from the sand."
)


def seaside(path: Path) -> Path:
    """A camera to look through: a boat on the water, as concatenated JPEGs."""
    with path.open("wb") as file:
        for n in range(30):
            picture = Image.new("RGB", (640, 480))
            draw = ImageDraw.Draw(picture)
            for y in range(480):
                sky = (248 - y // 4, 214 - y // 6, 170 + y // 12)
                sea = (38 + (y - 280) // 4, 112 - (y - 280) // 5, 122 - (y - 280) // 8)
                draw.line([(0, y), (640, y)], fill=sky if y < 280 else sea)
            draw.ellipse((430, 150, 520, 240), fill=(255, 236, 190))
            for row in range(7):
                for k in range(6):
                    x = (k * 130 + row * 57 + n * (2 + row)) % 760 - 60
                    draw.arc(
                        (x, 292 + row * 26, x + 60 + row * 8, 304 + row * 28),
                        200,
                        340,
                        (120, 180, 178),
                        2,
                    )
            bob = [0, 1, 2, 2, 1, 0, -1, -2, -2, -1][n % 10]
            draw.polygon(
                [(190, 262 + bob), (330, 262 + bob), (305, 290 + bob), (212, 290 + bob)],
                fill=(74, 42, 34),
            )
            draw.polygon(
                [(258, 120 + bob), (258, 252 + bob), (190, 252 + bob)], fill=(250, 244, 232)
            )
            draw.polygon(
                [(264, 140 + bob), (264, 252 + bob), (318, 252 + bob)], fill=(236, 222, 200)
            )
            picture.save(file, "JPEG", quality=85)
    return path


def take(visitor: Visitor, folder: Path, name: str) -> None:
    image = Image.open(BytesIO(visitor.page.screenshot()))
    if image.width > 1280 or image.height > 1280:
        image = image.resize((image.width // 2 * 3 // 2, image.height // 2 * 3 // 2))
    # Flat paper and a few inks: a palette is as good as all colours, at a third of the size. The refinement keeps the
    # inks of the words, which are few pixels beside a sunset.
    palette = image.convert("RGB").quantize(256, kmeans=6, dither=Image.Dither.NONE)
    palette.save(folder / f"demo-{name}.png", optimize=True)


def conversation(browser: Browser, peer: Peer, folder: Path, look: str, **options: Any) -> None:
    peer.reset()
    peer.script.answers = [ANSWER, ANSWER]
    peer.script.question = QUESTION
    peer.script.thinking_ms = 120
    context = browser.new_context(**options)
    visitor = Visitor(context, peer.url)
    visitor.page.wait_for_timeout(300)
    take(visitor, folder, f"idle-{look}")
    visitor.start()
    visitor.at("camera").click()
    visitor.page.wait_for_timeout(900)
    take(visitor, folder, f"listening-{look}")
    visitor.speak(QUESTION)
    visitor.wait("hearing")
    visitor.page.wait_for_timeout(900)
    take(visitor, folder, f"hearing-{look}")
    visitor.wait("thinking")
    take(visitor, folder, f"thinking-{look}")
    visitor.wait("speaking")
    visitor.page.wait_for_timeout(4300)
    take(visitor, folder, f"speaking-{look}")
    visitor.at("interrupt").click()
    visitor.page.wait_for_timeout(500)
    take(visitor, folder, f"interrupted-{look}")
    visitor.at("transcript").click()
    visitor.page.wait_for_timeout(400)
    take(visitor, folder, f"transcript-{look}")
    visitor.at("close-transcript").click()
    visitor.at("settings").click()
    visitor.page.wait_for_timeout(200)
    take(visitor, folder, f"settings-{look}")
    context.close()


def trouble(browser: Browser, peer: Peer, folder: Path, look: str, **options: Any) -> None:
    def visit(url: str = peer.url) -> Visitor:
        peer.reset()
        return Visitor(browser.new_context(**options), url)

    def leave(visitor: Visitor, name: str) -> None:
        visitor.page.wait_for_timeout(200)
        take(visitor, folder, f"{name}-{look}")
        visitor.page.context.close()

    blocked = visit()
    blocked.page.evaluate("lab.refuse = { audio: 'NotAllowedError' }")
    blocked.at("start").click()
    blocked.wait("error")
    leave(blocked, "error")

    insecure = visit(f"http://{ELSEWHERE}:{peer.port}/")
    insecure.at("start").click()
    insecure.wait("error")
    leave(insecure, "insecure")

    turned_away = visit()
    peer.script.refuse = 503
    turned_away.at("start").click()
    turned_away.until(lambda: "places" in turned_away.at("error").text_content())
    leave(turned_away, "busy")

    cut_off = visit()
    peer.script.answers, peer.script.question = [ANSWER], QUESTION
    cut_off.start()
    cut_off.speak(QUESTION)
    cut_off.wait("speaking")
    cut_off.page.wait_for_timeout(4300)
    # It would be back before the picture is taken.
    cut_off.page.evaluate(
        "() => { const later = setTimeout; window.setTimeout = (f, ms) => later(f, 20 * ms); }"
    )
    peer.lose_connections(1012, "service_restart")
    cut_off.wait("reconnecting")
    leave(cut_off, "reconnecting")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=IMAGES)
    arguments.add_argument(
        "--all", action="store_true", help="also those that the documents do not show"
    )
    options = arguments.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    peer = Peer()
    with TemporaryDirectory() as scratch, sync_playwright() as driver:
        camera = seaside(Path(scratch) / "camera.mjpeg")
        flags = (
            GRANTED,
            f"--use-file-for-fake-video-capture={camera}",
            f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
        )
        with chromium(driver, *flags) as browser:
            for look, context in LOOKS.items():
                conversation(browser, peer, folder, look, **context)
                trouble(browser, peer, folder, look, **context)
    peer.stop()
    for path in folder.glob("demo-*.png"):
        if not options.all and path.stem.split("-")[1] not in SHOWN:
            path.unlink()


if __name__ == "__main__":
    main()
