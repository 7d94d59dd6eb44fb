"""Servers for the whole module: starting one costs more than most tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.house import STAND_IN, House

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A gateway with a worker that needs no model."""
    made = House(
        ["--sound-seconds", "1", "--pace", "4"],
        worker_command=STAND_IN,
        model="stand-in",
        header_limit_s=3,
        failed_keys_per_minute=1000,
    )
    try:
        yield made.wait_ready()
    finally:
        made.close()


@pytest.fixture(scope="module")
def real_house(checkpoint_dir: Path) -> Iterator[House]:
    """A gateway with a real worker: random weights, every step as in a real checkpoint."""
    made = House(
        ["--dtype", "fp32", "--num-lanes", "4", "--context-tokens", "2048"]
        + ["--max-text-tokens", "1000", "--max-codes", "120"],
        model=checkpoint_dir,
    )
    try:
        yield made.wait_ready()
    finally:
        made.close()
