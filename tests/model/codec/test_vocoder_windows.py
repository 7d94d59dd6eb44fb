"""Window arithmetic of the vocoder, exhaustively, against counting by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from model.codec.vocoder import ResidualBlock
from model.codec.vocoder_windows import Hops, Span, StageSpans, layer_reaches, stage_spans, up_input
from model.config import VocoderConfig

HOPS = [Hops(*sizes) for sizes in itertools.product((0, 1, 2, 5), (1, 2, 4), (1, 2, 3))]


@pytest.mark.parametrize("hops", HOPS)
def test_windows_tile_the_clip_with_their_margins(hops: Hops) -> None:
    for arrived in range(25):
        windows = [*hops.windows(0, arrived), hops.last_window(arrived)]
        edges = [0, *(w.kept.stop for w in windows)]
        assert [w.kept.start for w in windows] == edges[:-1]
        assert edges[-1] == arrived
        for w in windows[:-1]:
            assert w.span == (max(0, w.kept.start - hops.margin), w.kept.stop + hops.margin)
            assert w.span.stop <= arrived
        assert windows[-1].span == (max(0, windows[-1].kept.start - hops.margin), arrived)


@pytest.mark.parametrize("hops", HOPS)
def test_windows_do_not_depend_on_arrival_and_nothing_they_need_is_dropped(hops: Hops) -> None:
    for before, more in itertools.product(range(20), range(8)):
        arrived = before + more
        fresh = list(hops.windows(before, arrived))
        assert [*hops.windows(0, before), *fresh] == list(hops.windows(0, arrived))
        assert all(w.span.start >= hops.held_from(before) for w in fresh)
        assert hops.last_window(arrived).span.start >= hops.held_from(arrived)
        assert 0 <= arrived - hops.held_from(arrived) <= hops.max_held()


@pytest.mark.parametrize(("rate", "kernel"), [(5, 11), (3, 7), (2, 4), (2, 2), (4, 8), (1, 3)])
def test_up_input_is_what_a_transposed_convolution_reads(rate: int, kernel: int) -> None:
    length, padding = 9, (kernel - rate) // 2
    for start, stop in itertools.combinations(range(length * rate + 1), 2):
        read = [
            j
            for j in range(length)
            if any(0 <= t + padding - rate * j < kernel for t in range(start, stop))
        ]
        assert up_input(Span(start, stop), rate, kernel, length) == (read[0], read[-1] + 1)


@pytest.mark.parametrize("kernel", [3, 7, 11])
def test_reach_is_the_support_of_the_gradient(kernel: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(2, kernel, (1, 3, 5)).double()
    reach = layer_reaches(kernel, (1, 3, 5))[0]
    whole = Span(0, 2 * reach + 21)
    x = torch.randn(1, 2, whole.stop, dtype=torch.float64, requires_grad=True)
    middle = Span(reach + 10, reach + 11)
    block(x, StageSpans(whole, whole, whole, whole.stop), None)[..., middle.start].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().sum((0, 1)).nonzero().flatten().tolist()
    assert (touched[0], touched[-1]) == (middle.start - reach, middle.start + reach)


def test_stage_spans_chain_and_stay_inside_the_window() -> None:
    config = VocoderConfig()
    for frames in (1, 24, 64):
        for start, stop in itertools.combinations(range(frames + 1), 2):
            spans = stage_spans(config, frames, Span(start, stop))
            lengths = [s.length for s in spans]
            assert lengths == [frames * n for n in (5, 15, 30, 60, 120, 240)]
            for before, after in itertools.pairwise(spans):
                assert before.kept == after.read
            for s in spans:
                assert 0 <= s.held.start <= s.kept.start < s.kept.stop <= s.held.stop <= s.length


def test_receptive_field_is_34_frames() -> None:
    # Through the last stage backwards; the first convolution adds three frames to each side.
    read = stage_spans(VocoderConfig(), 200, Span(100, 101))[0].read
    assert (100 - read.start + 3, read.stop - 101 + 3) == (34, 34)
