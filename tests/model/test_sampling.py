"""Sampling: the reference's processors, draws that depend on seed and step alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.config import DitConfig, OmniConfig
from model.sampling import GREEDY, TALKER_SAMPLING, Sampling, SamplingBatch, sample, uniform
from model.talker import suppressed_codes
from tests.model.reference import TINY

CPU = torch.device("cpu")
VOCAB = 40


def draw(
    logits: Tensor, setting: Sampling, step: int, seen: Tensor | None, suppressed: Tensor | None
) -> int:
    return int(sample(logits, SamplingBatch.pack([setting], [step], CPU), seen, suppressed))


def frequencies(setting: Sampling, logits: Tensor, seen: Tensor, banned: Tensor, n: int) -> Tensor:
    batch = SamplingBatch.pack([setting] * n, list(range(n)), CPU)
    tokens = sample(logits.expand(n, -1), batch, seen.expand(n, -1), banned)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / n


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.05, 1),
    penalty=st.floats(0.7, 2),
    history=st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
)
def test_draws_follow_the_distribution_of_the_reference(  # type: ignore[no-untyped-def]
    seed, temperature, top_k, top_p, penalty, history
) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    ids = torch.tensor([sorted(history)])
    seen = torch.zeros(1, VOCAB, dtype=torch.bool)
    seen[0, ids] = True
    banned = torch.zeros(VOCAB, dtype=torch.bool)
    banned[[3, 5]] = True
    processors = [
        RepetitionPenaltyLogitsProcessor(penalty),
        SuppressTokensLogitsProcessor([3, 5]),
        TemperatureLogitsWarper(temperature),
        *([TopKLogitsWarper(top_k)] if top_k else []),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ]
    expected = LogitsProcessorList(processors)(ids, logits.clone()).softmax(-1)[0]
    setting = Sampling(temperature, top_k, top_p, penalty, seed)
    n = 4000
    found = frequencies(setting, logits, seen, banned, n)
    assert found[expected == 0].sum() == 0
    # Five standard deviations of a binomial share, over all ids at once.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-3).all()


def test_greedy_takes_the_best_id_that_is_allowed() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0, -1.0]])
    seen = torch.tensor([[False, True, False, False]])
    assert draw(logits, GREEDY, 0, None, None) == 1
    assert draw(logits, Sampling(temperature=0, repetition_penalty=2), 0, seen, None) == 2
    assert draw(logits, GREEDY, 0, None, torch.tensor([False, True, True, False])) == 0


def test_a_penalty_lowers_negative_logits_too() -> None:
    logits = torch.tensor([[-1.0, -1.5]])
    seen = torch.tensor([[True, False]])
    assert draw(logits, Sampling(temperature=0, repetition_penalty=2), 0, seen, None) == 1


def test_a_reply_does_not_depend_on_who_shares_its_batch() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, VOCAB, generator=g)
    chosen = [Sampling(0.9, 10, 0.8, 1.05, seed=i) for i in range(5)] + [GREEDY]
    steps = [0, 3, 9, 2, 7, 1]
    seen = torch.rand(6, VOCAB, generator=g) > 0.7
    together = sample(logits, SamplingBatch.pack(chosen, steps, CPU), seen)
    alone = [draw(logits[i : i + 1], chosen[i], steps[i], seen[i : i + 1], None) for i in range(6)]
    assert together.tolist() == alone


def test_uniform_draws_are_even_and_independent_of_neighbouring_seeds() -> None:
    draws = torch.tensor([[uniform(seed, step) for step in range(500)] for seed in range(40)])
    counts = torch.histc(draws.flatten(), bins=20, min=0, max=1)
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()
    correlation = torch.corrcoef(draws) - torch.eye(40)
    assert correlation.abs().max() < 0.25  # 780 pairs of 500 draws: 5.6 standard deviations
    assert draws.max() < 1
    assert draws.min() >= 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"repetition_penalty": 0}]
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_the_talker_cannot_emit_what_the_codec_cannot_decode() -> None:
    talker = OmniConfig.from_json(TINY).talker
    assert talker is not None
    mask = suppressed_codes(talker, DitConfig(num_embeds=40))
    allowed = (~mask).nonzero().flatten().tolist()
    assert allowed == [*range(41), *talker.stop_ids]  # the table has num_embeds + 1 rows
    assert TALKER_SAMPLING.repetition_penalty == 1.05
