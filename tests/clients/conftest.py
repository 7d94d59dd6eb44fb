"""One server that speaks by the script, for all clients: starting one costs more than most tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients import scripted
from tests.clients.serving import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.house import House


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/clients" in str(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def scripted_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripted")
    scripted.write(folder)
    return folder


@pytest.fixture(scope="package")
def server(scripted_dir: Path) -> Iterator[House]:
    made = serve(scripted_dir)
    try:
        yield made.wait_ready()
    finally:
        made.close()


@pytest.fixture(autouse=True)
def no_session_fell_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a client does, no session of ours ends by a fault of ours."""
    yield
    if "server" in request.fixturenames:
        house: House = request.getfixturevalue("server")
        assert house.figure("parley_session_faults_total") == 0, house.text[-3000:]
