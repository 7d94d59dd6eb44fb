"""The flow's recipe: what it is trained at, and where its code table starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.tiny import codec, dit, tree, vocabulary


def test_three_times_in_four_the_flow_is_trained_where_it_is_sampled() -> None:
    plan = dit.time_plan(dit.SOLVER)
    exact = np.float32([plan.times[i] for i in plan.time_of_evaluation])
    drawn = dit.draw_times(np.random.default_rng(0), 4000)
    is_exact = np.isin(drawn, exact)
    assert 0.72 < is_exact.mean() < 0.78
    assert set(drawn[is_exact]) == set(exact)
    assert (drawn >= 0).all() and (drawn < 1).all()


def test_codes_of_one_sound_start_with_like_embeddings() -> None:
    table = torch.randn(tree.NUM_CODES, 64, generator=torch.Generator().manual_seed(1))
    dit.embed_by_value(table, codec.meaning(torch.arange(tree.NUM_CODES)))
    by_sound = table.view(tree.NUM_SOUNDS, tree.NUM_WAYS, -1)
    near = (by_sound[:, 0] - by_sound[:, 1]).norm(dim=1).mean()  # a step in the first number
    far = (by_sound[1:] - by_sound[:-1]).norm(dim=2).mean()
    assert near < 0.6 * far
    assert table.std() == pytest.approx(1.0, abs=0.2)


def test_rows_of_words_are_reproducible_and_mostly_common() -> None:
    ranked = [(i, f"word{i}") for i in range(1000)]
    rows = [vocabulary.row_of_words(ranked, 1, i) for i in range(200)]
    assert rows == [vocabulary.row_of_words(ranked, 1, i) for i in range(200)]
    ranks = [int(word.lower().strip(".")[4:]) for row in rows for word in row.split()]
    assert 0.25 < np.mean(np.array(ranks) < 100) < 0.35
    assert all(row[0].isupper() and row.endswith(".") for row in rows)
