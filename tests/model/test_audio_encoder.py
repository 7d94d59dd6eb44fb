"""The audio encoder against the reference's audio tower, and the independence of its blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.audio_encoder import AudioEncoder, AudioShapeError, AudioStream, num_rows
from model.mel import AudioInputError, LogMel

LENGTHS = [*range(3, 8), 99, 100, *range(199, 205), 250, 377, *range(400, 404), 565, 600, 601, 603]
# Two layers of float32: a product of another number of rows may sum in another order.
CLOSE = {"rtol": 0, "atol": 5e-6}


@pytest.fixture(scope="module")
def tower(reference):  # type: ignore[no-untyped-def]
    return reference.thinker.model.audio_tower


@pytest.fixture(scope="module")
def encoder(config, part) -> AudioEncoder:  # type: ignore[no-untyped-def]
    encoder = AudioEncoder(config.thinker.audio)
    encoder.load_state_dict(part("thinker.audio_tower."), strict=True)
    encoder.prepare()
    return encoder.requires_grad_(False)


def frames(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1000 * seed + n))


@torch.no_grad()
def reference_rows(tower, *clips: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    lengths = torch.tensor([len(clip) for clip in clips])
    return tower(torch.cat(clips).T, feature_lens=lengths).last_hidden_state


@pytest.mark.parametrize("n", LENGTHS)
def test_rows_equal_the_reference(encoder: AudioEncoder, tower, n: int) -> None:  # type: ignore[no-untyped-def]
    got = encoder(frames(n))
    assert len(got) == num_rows(n)
    torch.testing.assert_close(got, reference_rows(tower, frames(n)), **CLOSE)


def test_rows_of_many_clips_equal_the_reference(encoder: AudioEncoder, tower) -> None:  # type: ignore[no-untyped-def]
    clips = [frames(n) for n in (37, 200, 6, 199, 200, 120)]
    got = torch.cat(encoder.encode_blocks(clips))
    torch.testing.assert_close(got, reference_rows(tower, *clips), **CLOSE)


def test_row_counts_follow_the_published_formula(encoder: AudioEncoder) -> None:
    for n in range(0, 605):
        assert num_rows(n) == ((n - 1) // 2 + 1 - 2) // 2 + 1
    blocks = [frames(n) for n in range(0, 201)]
    counts = [len(rows) for rows in encoder.encode_blocks(blocks)]
    assert counts == [num_rows(n) for n in range(0, 201)]
    # Rows of a clip are those of its blocks, whatever the tail.
    assert all(num_rows(200 + n) == 50 + num_rows(n) for n in range(0, 201))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_rest_of_two_frames_has_no_rows(encoder: AudioEncoder, n: int) -> None:
    assert encoder(frames(n)).shape == (0, 32)
    assert [len(rows) for rows in encoder.encode_blocks([frames(n), frames(200)])] == [0, 50]


def test_no_blocks_give_no_rows(encoder: AudioEncoder) -> None:
    assert encoder.encode_blocks([]) == []


def test_a_clip_equals_its_blocks_for_every_tail(encoder: AudioEncoder) -> None:
    for tail in range(0, 200):
        clip = frames(200 + tail)
        alone = [encoder.encode_blocks([block])[0] for block in (clip[:200], clip[200:])]
        torch.testing.assert_close(encoder(clip), torch.cat(alone), **CLOSE)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 200) | st.sampled_from([199, 200]), max_size=7))
def test_batching_never_matters(encoder: AudioEncoder, lengths: list[int]) -> None:
    blocks = [frames(n, seed) for seed, n in enumerate(lengths)]
    together = encoder.encode_blocks(blocks)
    for rows, block in zip(together, blocks, strict=True):
        torch.testing.assert_close(rows, encoder.encode_blocks([block])[0], **CLOSE)


@pytest.mark.parametrize("lengths", [(200, 200, 200), (200, 37, 199, 6)])
def test_rows_do_not_see_what_other_blocks_hold(
    encoder: AudioEncoder, lengths: tuple[int, ...]
) -> None:
    blocks = [frames(n) for n in lengths]
    before = encoder.encode_blocks(blocks)
    blocks[1] = torch.full_like(blocks[1], torch.nan)
    after = encoder.encode_blocks(blocks)
    assert after[1].isnan().all()
    assert all(torch.equal(before[i], after[i]) for i in range(len(lengths)) if i != 1)


def test_the_last_frame_of_a_block_changes_all_its_rows(encoder: AudioEncoder) -> None:
    clip = frames(400)
    before = encoder(clip)
    clip[199] += 1
    changed = (encoder(clip) != before).any(-1)
    assert changed[:50].all()
    assert not changed[50:].any()


def test_loading_on_meta_then_preparing_equals_loading_directly(  # type: ignore[no-untyped-def]
    encoder: AudioEncoder, config, part
) -> None:
    with torch.device("meta"):
        other = AudioEncoder(config.thinker.audio)
    other.load_state_dict(part("thinker.audio_tower."), strict=True, assign=True)
    other.prepare()
    assert torch.equal(other(frames(277)), encoder(frames(277)))


def test_state_dict_keeps_the_published_names(encoder: AudioEncoder, part) -> None:  # type: ignore[no-untyped-def]
    assert encoder.state_dict().keys() == part("thinker.audio_tower.").keys()


@pytest.mark.parametrize(
    ("dtype", "atol"),
    # Rows are about 1; residuals round to 8 or 11 bits four times, products accumulate in float32.
    [(torch.bfloat16, 0.1), (torch.float16, 0.0125)],
)
def test_half_precision_stays_close(  # type: ignore[no-untyped-def]
    encoder: AudioEncoder, config, dtype: torch.dtype, atol: float
) -> None:
    half = AudioEncoder(config.thinker.audio)
    half.load_state_dict(encoder.state_dict())
    half = half.to(dtype)
    half.prepare()
    got = half(frames(277))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), encoder(frames(277)), rtol=0, atol=atol)


def test_float16_residuals_saturate_below_infinity(encoder: AudioEncoder, config) -> None:  # type: ignore[no-untyped-def]
    half = AudioEncoder(config.thinker.audio)
    half.load_state_dict(encoder.state_dict())
    half = half.to(torch.float16).requires_grad_(False)
    half.layers[0].fc2.bias[:8] = 65_000
    half.layers[1].fc2.bias[:8] = 65_000
    half.prepare()
    assert half(frames(200)).isfinite().all()


def test_every_used_weight_learns(config, part) -> None:  # type: ignore[no-untyped-def]
    encoder = AudioEncoder(config.thinker.audio)
    encoder.load_state_dict(part("thinker.audio_tower."))
    encoder.prepare()
    encoder(frames(277)).square().sum().backward()
    idle = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {"audio_bos_eos_token.weight"}


@pytest.mark.parametrize("shape", [(201, 16), (200, 17), (16,), (1, 200, 16)])
def test_blocks_that_do_not_fit_are_refused(encoder: AudioEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioShapeError, match=r"block 1 has shape .* expected \[t ≤ 200, 16\]"):
        encoder.encode_blocks([frames(10), torch.zeros(shape)])


def test_negative_counts_are_refused() -> None:
    with pytest.raises(AudioShapeError, match="-1"):
        num_rows(-1)


def test_forgetting_to_prepare_is_named(config) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError, match=r"prepare\(\)"):
        AudioEncoder(config.thinker.audio)(frames(10))


# --- From samples to rows


def voice_like(num_samples: int) -> Tensor:
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(5))
    return noise * torch.linspace(0.01, 0.3, num_samples)


@pytest.fixture
def log_mel() -> LogMel:
    return LogMel(16)


@pytest.mark.parametrize("piece", [320, 5001, 100_000])
@pytest.mark.parametrize("num_samples", [0, 100, 32_000, 32_039, 70_000])
def test_a_stream_equals_the_clip(
    encoder: AudioEncoder, log_mel: LogMel, num_samples: int, piece: int
) -> None:
    x, stream = voice_like(num_samples), AudioStream(log_mel, encoder)
    rows = [stream.push(part) for part in x.split(piece)]
    rows.append(stream.flush())
    torch.testing.assert_close(torch.cat(rows), encoder(log_mel(x[None])[0]), **CLOSE)


def test_pieces_never_matter_to_a_stream(encoder: AudioEncoder, log_mel: LogMel) -> None:
    x, results = voice_like(40_000), []
    for piece in (320, 5001):
        stream = AudioStream(log_mel, encoder)
        rows = [stream.push(part) for part in x.split(piece)]
        results.append(torch.cat([*rows, stream.flush()]))
    assert torch.equal(*results)  # blocks are the same, encoded one by one


def test_speech_may_go_on_after_a_peek(encoder: AudioEncoder, log_mel: LogMel) -> None:
    x = voice_like(50_000)
    plain, peeking = AudioStream(log_mel, encoder), AudioStream(log_mel, encoder)
    for part in x.split(9_000):
        assert torch.equal(plain.push(part), peeking.push(part))
        assert torch.equal(peeking.peek(), peeking.peek())
    speculated = peeking.peek()
    assert torch.equal(speculated, plain.flush())
    assert torch.equal(speculated, peeking.flush())


def test_a_flushed_stream_begins_anew(encoder: AudioEncoder, log_mel: LogMel) -> None:
    stream, x = AudioStream(log_mel, encoder), voice_like(20_000)
    first, second = (torch.cat([stream.push(x), stream.flush()]) for _ in range(2))
    assert torch.equal(first, second)


def test_a_stream_refuses_what_is_not_finite(encoder: AudioEncoder, log_mel: LogMel) -> None:
    with pytest.raises(AudioInputError, match="sample 3"):
        AudioStream(log_mel, encoder).push(torch.tensor([0.0, 0.0, 0.0, torch.nan]))
