"""One scripted peer and one browser for all checks of the page; a fresh context for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

from tests.demo.browser import CHROMIUM, GRANTED, INSTALL, Visitor, chromium
from tests.demo.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Playwright


@pytest.fixture(scope="session")
def shared_peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.stop()


@pytest.fixture
def peer(shared_peer: Peer) -> Peer:
    shared_peer.reset()
    return shared_peer


@pytest.fixture(scope="session")
def driver() -> Iterator[Playwright]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium: {INSTALL}")
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(driver: Playwright) -> Iterator[Browser]:
    with chromium(driver, GRANTED) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, peer: Peer) -> Iterator[Callable[..., Visitor]]:
    """`visit(**context_options)` opens the page in a context of its own."""
    contexts = []

    def open_page(url: str = "", **options: object) -> Visitor:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        return Visitor(context, url or peer.url)

    yield open_page
    for context in contexts:
        context.close()
