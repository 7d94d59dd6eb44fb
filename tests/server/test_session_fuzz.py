"""The session's laws under random conversations; `python -m tests.server.fuzz --sequences 100000` for many more."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.fuzz import run

KNOWN = (2, 75, 87, 89, 203, 271, 904, 1128, 3957, 4850, 5866, 6234)
"""Conversations that have broken a law once."""


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(choice=st.randoms(use_true_random=False))
def test_no_conversation_breaks_a_law(choice: random.Random) -> None:
    run(choice, 25)


@pytest.mark.parametrize("seed", [*KNOWN, *range(40)])
def test_conversations_seen_before_stay_lawful(seed: int) -> None:
    run(random.Random(seed), 60)
