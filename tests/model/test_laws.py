"""The two laws of `model/streaming.py`, for every streaming module, over arbitrary splits of its input."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.codec.decoder import CodecDecoder
from model.codec.vocoder import Vocoder
from model.codec.voice import load_voices
from model.config import SolverConfig
from model.mel import LogMel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.streaming import StreamingModule


@dataclass(frozen=True)
class Subject:
    module: StreamingModule[Any]
    make_input: Callable[[int], Tensor]
    max_len: int
    assign: Callable[[Any, int], None] = lambda state, lane: None
    """What a lane needs before its first step."""

    def run(self, x: Tensor, cuts: list[int], state: Any, lane: int) -> Tensor:
        self.assign(state, lane)
        edges = [0, *sorted(min(c, x.shape[1]) for c in cuts), x.shape[1]]
        pieces = [x[:, a:b] for a, b in itertools.pairwise(edges)]
        out = [self.module.step(piece, state, (lane,)) for piece in pieces]
        return torch.cat([*out, self.module.flush(state, (lane,))], dim=1)


@pytest.fixture(scope="module")
def subjects(config, part, checkpoint_dir) -> dict[str, Subject]:  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(0)
    vocoder = Vocoder(config.token2wav.bigvgan)
    vocoder.load_state_dict(part("token2wav.code2wav_bigvgan_model."))
    decoder = CodecDecoder(config.token2wav, SolverConfig("euler", num_points=3, guidance=0))
    decoder.load_state_dict(part("token2wav."))
    for module in (vocoder, decoder):
        module.requires_grad_(False).eval().prepare()
    voice = load_voices(checkpoint_dir / "spk_dict.pt", config.token2wav.dit)["Ethan"]
    condition = decoder.condition(voice)
    return {
        "log mel": Subject(LogMel(16), lambda n: torch.randn(1, n, generator=g) * 0.1, 70_000),
        "vocoder": Subject(vocoder, lambda n: torch.randn(1, n, 8, generator=g), 90),
        "codec decoder": Subject(
            decoder,
            lambda n: torch.randint(0, 56, (1, n), generator=g),
            90,
            lambda state, lane: decoder.assign(state, lane, condition, seed=lane),
        ),
    }


NAMES = ("log mel", "vocoder", "codec decoder")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_grouping_changes_no_bit(subjects, name: str, data) -> None:  # type: ignore[no-untyped-def]
    subject = subjects[name]
    length = data.draw(st.integers(0, subject.max_len))
    cuts = data.draw(st.lists(st.integers(0, length), max_size=9))
    x = subject.make_input(length)
    state = subject.module.init_state(2)
    assert torch.equal(subject.run(x, cuts, state, 1), subject.run(x, [], state, 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_flushed_lane_is_as_new_and_its_neighbour_untouched(subjects, name: str) -> None:  # type: ignore[no-untyped-def]
    subject = subjects[name]
    first, second = (subject.make_input(n) for n in (subject.max_len, subject.max_len // 3))
    alone = subject.run(second, [], subject.module.init_state(1), 0)
    state = subject.module.init_state(2)
    subject.assign(state, 1)
    begun = subject.module.step(first[:, :30], state, (1,))
    subject.run(first, [7, 20], state, 0)
    assert torch.equal(subject.run(second, [], state, 0), alone)
    rest = [subject.module.step(first[:, 30:], state, (1,)), subject.module.flush(state, (1,))]
    whole = subject.run(first, [30], subject.module.init_state(2), 1)
    assert torch.equal(torch.cat([begun, *rest], dim=1), whole)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("log mel", 0.0),
        # 20 frames of context on each side leave 2e-7; float32 in another order leaves 1e-5 of the spread.
        ("vocoder", 2e-5),
    ],
)
def test_steps_and_flush_equal_the_whole(subjects, name: str, tolerance: float) -> None:  # type: ignore[no-untyped-def]
    subject = subjects[name]
    for length in (1, 5, subject.max_len // 2 + 1, subject.max_len):
        x = subject.make_input(length)
        streamed = subject.run(x, [3], subject.module.init_state(1), 0)
        torch.testing.assert_close(streamed, subject.module(x), atol=tolerance, rtol=0)
