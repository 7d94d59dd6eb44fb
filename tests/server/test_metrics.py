"""Figures: their names are kept, and strangers cannot add labels."""

from __future__ import annotations

import asyncio

from server.metrics import Metrics


def test_a_close_code_nobody_knows_makes_no_label_of_its_own() -> None:
    metrics = Metrics()
    for code in (1000, 1001, 4999, 3999):
        metrics.count_close(code)

    async def text() -> str:
        return metrics.render().decode()

    rendered = asyncio.run(text())
    assert 'parley_closes_total{code="other"} 2.0' in rendered
    assert "4999" not in rendered
    assert "parley_tasks 1.0" in rendered


def test_two_gateways_count_apart() -> None:
    one, two = Metrics(), Metrics()
    one.handshakes.inc()
    assert two.registry.get_sample_value("parley_handshakes_total") == 0
