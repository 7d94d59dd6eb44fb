"""The shared decoder: parity with the reference, any cut of the prompt, paged cache laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention import ForwardBatch, KVCache, SequenceSpan, attend_gather, attend_torch
from model.config import DecoderConfig
from model.decoder import Decoder

PAGE_SIZE = 4


@pytest.fixture(scope="module")
def decoder(config, part) -> Decoder:  # type: ignore[no-untyped-def]
    decoder = Decoder(config.thinker.decoder)
    decoder.load_state_dict(part("thinker.model."))
    decoder.prepare()
    return decoder.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(37, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def positions() -> Tensor:
    """Three axes that differ, as a video's do."""
    g = torch.Generator().manual_seed(2)
    return torch.arange(37) + torch.randint(0, 5, (3, 37), generator=g)


def empty_cache(config: DecoderConfig, num_pages: int = 32) -> KVCache:
    return KVCache(
        config,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        dtype=torch.float32,
        device=torch.device("cpu"),
        fill=float("nan"),
    )


def run(decoder: Decoder, kv: KVCache, rows: Tensor, *spans: SequenceSpan) -> Tensor:
    batch = ForwardBatch.pack(spans, PAGE_SIZE, torch.device("cpu"))
    return decoder(rows, batch, kv)


@pytest.fixture(scope="module")
def whole(decoder: Decoder, rows: Tensor, positions: Tensor) -> Tensor:
    return decoder.whole(rows[None], positions[:, None])[0]


def test_whole_sequence_equals_the_reference(reference, decoder, rows, positions, whole) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        expected = reference.thinker.model.language_model(
            inputs_embeds=rows[None], position_ids=positions[:, None], use_cache=False
        ).last_hidden_state[0]
    # float32; three layers of matrix products in another order of summation
    torch.testing.assert_close(whole, expected, atol=2e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 36), max_size=8), shuffle=st.randoms())
def test_any_cut_of_a_prompt_gives_the_same_rows(  # type: ignore[no-untyped-def]
    decoder, config, rows, positions, whole, cuts, shuffle
) -> None:
    pages = list(range(10))
    shuffle.shuffle(pages)
    kv = empty_cache(config.thinker.decoder)
    out = []
    edges = [0, *sorted(set(cuts)), 37]
    for a, b in zip(edges, edges[1:], strict=False):
        span = SequenceSpan(pages, a, b - a, positions[:, a:b])
        out.append(run(decoder, kv, rows[a:b], span))
    # float32; a piece of another length sums in another order
    torch.testing.assert_close(torch.cat(out), whole, atol=2e-5, rtol=1e-5)


def test_sequences_in_one_batch_do_not_see_each_other(decoder, config, rows, positions, whole):  # type: ignore[no-untyped-def]
    kv = empty_cache(config.thinker.decoder)
    first, second = [9, 2, 5, 30, 1, 3, 4, 6, 7, 8], [11, 10, 13, 12, 14, 15, 16, 17, 18, 19]
    run(
        decoder,
        kv,
        torch.cat((rows[:20], rows[:7])),
        SequenceSpan(first, 0, 20, positions[:, :20]),
        SequenceSpan(second, 0, 7, positions[:, :7]),
    )
    mixed = run(
        decoder,
        kv,
        torch.cat((rows[20:21], rows[7:12])),
        SequenceSpan(first, 20, 1, positions[:, 20:21]),
        SequenceSpan(second, 7, 5, positions[:, 7:12]),
    )
    expected = torch.cat((whole[20:21], whole[7:12]))
    torch.testing.assert_close(mixed, expected, atol=2e-5, rtol=1e-5)


def test_cutting_the_cache_back_leaves_no_trace(decoder, config, rows, positions, whole) -> None:  # type: ignore[no-untyped-def]
    kv, pages = empty_cache(config.thinker.decoder), list(range(10))
    run(decoder, kv, rows[:30], SequenceSpan(pages, 0, 30, positions[:, :30]))
    noise = torch.full((3, 32), 9.0)
    run(decoder, kv, noise, SequenceSpan(pages, 30, 3, positions[:, :3]))
    # A crop is nothing but a smaller `start`.
    again = run(decoder, kv, rows[22:], SequenceSpan(pages, 22, 15, positions[:, 22:]))
    torch.testing.assert_close(again, whole[22:], atol=2e-5, rtol=1e-5)


def test_gathered_decode_equals_sequence_by_sequence(config) -> None:  # type: ignore[no-untyped-def]
    """The static-shape form that a CUDA graph can hold, against the reference form, with NaN in unused slots."""
    g = torch.Generator().manual_seed(3)
    kv = torch.full((64, 2, 2, 16), float("nan"))
    pages = ([3, 1, 7], [2, 9, 4, 5], [8])
    lens = (9, 14, 1)
    for p, n in zip(pages, lens, strict=True):
        for i in range(n):
            kv[p[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE] = torch.randn(2, 2, 16, generator=g)
    spans = [
        SequenceSpan(p, n - 1, 1, torch.zeros(3, 1, dtype=torch.int64))
        for p, n in zip(pages, lens, strict=True)
    ]
    batch = ForwardBatch.pack(spans, PAGE_SIZE, torch.device("cpu"))
    q = torch.randn(3, 4, 16, generator=g)
    y = attend_gather(q, kv, batch)
    assert y.isfinite().all()
    torch.testing.assert_close(y, attend_torch(q, kv, batch), atol=1e-6, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    pages=st.permutations(range(12)).map(lambda p: p[:6]),
    start=st.integers(0, 10),
    length=st.integers(1, 14),
)
def test_every_row_gets_the_slot_of_its_page(pages, start, length) -> None:  # type: ignore[no-untyped-def]
    span = SequenceSpan(pages, start, length, torch.zeros(3, length, dtype=torch.int64))
    batch = ForwardBatch.pack([span], PAGE_SIZE, torch.device("cpu"))
    for row, slot in enumerate(batch.slot_mapping.tolist(), start=start):
        assert divmod(slot, PAGE_SIZE) == (pages[row // PAGE_SIZE], row % PAGE_SIZE)
    used = pages[: -(-(start + length) // PAGE_SIZE)]
    is_run = used == list(range(used[0], used[0] + len(used)))
    assert batch.first_slots == (used[0] * PAGE_SIZE if is_run else None,)


def test_cache_memory_is_the_formula(config) -> None:  # type: ignore[no-untyped-def]
    decoder = config.thinker.decoder
    kv = empty_cache(decoder, num_pages=5)
    assert kv.num_bytes == 5 * PAGE_SIZE * decoder.kv_bytes_per_token(element_bytes=4)
    seven_b = DecoderConfig(152064, 3584, 18944, 28, 28, 4, 128)
    assert seven_b.kv_bytes_per_token(element_bytes=2) == 56 * 1024


def test_state_dict_keeps_the_published_names(decoder, part) -> None:  # type: ignore[no-untyped-def]
    saved, published = decoder.state_dict(), part("thinker.model.")
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in saved)


def test_loading_names_what_is_missing_and_misshapen(config, part) -> None:  # type: ignore[no-untyped-def]
    weights = dict(part("thinker.model."))
    del weights["layers.1.self_attn.k_proj.bias"]
    weights["layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=r"(?s)layers.1.self_attn.k_proj.bias.*mlp.up_proj"):
        Decoder(config.thinker.decoder).load_state_dict(weights)
