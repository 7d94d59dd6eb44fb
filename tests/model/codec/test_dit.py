"""The network against the reference: velocities, gradients, reach, and the attention layout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from model.codec.block_attention import attend, attention_runs
from model.codec.dit import Block, Dit
from model.codec.voice import Voice
from model.config import DitConfig
from tests.model.codec.conftest import random_codes, random_noise

BLOCK_CODES = 12


def visible(num_frames: int, block: int, back: int, ahead: int, past: int) -> Tensor:
    """The definition as a mask [T, past + T]: block distance within -back…ahead."""
    queries = torch.arange(num_frames) // block
    keys = torch.arange(-past, num_frames).div(block, rounding_mode="floor")
    distance = keys[None] - queries[:, None]
    return (distance >= -back) & (distance <= ahead)


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("past", [0, 4])
def test_runs_show_each_query_exactly_the_keys_of_the_mask(
    back: int, ahead: int, past: int
) -> None:
    for num_frames in range(1, 30):
        seen = torch.zeros(num_frames, past + num_frames, dtype=torch.int)
        for run in attention_runs(num_frames, 4, back, ahead, past):
            for i in range(run.num_blocks * run.num_queries):
                first = run.key_start + i // run.num_queries * run.num_queries
                seen[run.query_start + i, first : first + run.num_keys] += 1
        assert torch.equal(seen, visible(num_frames, 4, back, ahead, past).int()), num_frames


@pytest.mark.parametrize("num_frames", [3, 4, 8, 11, 16, 17])
@pytest.mark.parametrize("past", [0, 4])
def test_block_attention_equals_masked_attention(num_frames: int, past: int) -> None:
    q = random_noise(2, num_frames, 3, 8)
    kv = random_noise(2, past + num_frames, 2, 3, 8, seed=2)
    for back, ahead in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        ours = attend(q, kv, attention_runs(num_frames, 4, back, ahead, past))
        mask = visible(num_frames, 4, back, ahead, past)
        keys, values = kv.transpose(1, 3).unbind(2)
        masked = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask)
        # float32 rounding of one softmax
        torch.testing.assert_close(ours, masked.transpose(1, 2).flatten(2), atol=1e-6, rtol=0)


def reference_velocity(net: Any, x: Tensor, codes: Tensor, voice: Voice, t: Tensor) -> Tensor:
    batch, length = x.shape[:2]
    velocity: Tensor = net(
        hidden_states=x,
        speaker_embedding=voice.cond.expand(batch, length, -1),
        condition_vector=voice.ref_mel.expand(batch, -1, -1),
        quantized_code=codes,
        time_step=t,
        apply_cfg=False,
    )
    return velocity


def our_velocity(net: Dit, x: Tensor, codes: Tensor, voice: Voice, t: Tensor, **kw: Any) -> Tensor:
    batch = x.shape[0]
    cond, ref_mel = voice.cond.expand(batch, -1), voice.ref_mel.expand(batch, -1, -1)
    return net.velocity(x, codes, cond, ref_mel, t, **kw)


@pytest.mark.parametrize("num_codes", [1, 11, 12, 13, 24, 29, 36, 55])
def test_velocity_equals_reference_at_different_times_per_row(
    dit: Dit, reference_dit: Any, chelsie: Voice, num_codes: int
) -> None:
    x, codes = random_noise(3, 2 * num_codes, 8), random_codes(3, num_codes)
    t = torch.tensor([0.0, 0.4, 1.0])
    with torch.no_grad():
        theirs = reference_velocity(reference_dit, x, codes, chelsie, t)
    # float32 rounding through 22 layers
    torch.testing.assert_close(our_velocity(dit, x, codes, chelsie, t), theirs, atol=5e-6, rtol=0)


def test_null_rows_equal_the_references_unconditioned_row(
    dit: Dit, reference_dit: Any, chelsie: Voice
) -> None:
    x, codes, t = random_noise(2, 60, 8), random_codes(2, 30), torch.tensor([0.3, 0.3])
    is_null = torch.tensor([False, True])
    ours = our_velocity(dit, x, codes, chelsie, t, is_null=is_null)
    with torch.no_grad():
        both = reference_dit(
            hidden_states=x,
            speaker_embedding=chelsie.cond.expand(2, 60, -1),
            condition_vector=chelsie.ref_mel.expand(2, -1, -1),
            quantized_code=codes,
            time_step=t,
        )
    torch.testing.assert_close(ours, torch.stack([both[0], both[3]]), atol=5e-6, rtol=0)


def test_gradients_equal_the_references(
    dit: Dit, reference_dit: Any, chelsie: Voice, part: Any, config: Any
) -> None:
    """Through rotation in place, and for every published parameter."""
    ours = Dit(config.token2wav.dit)
    ours.load_state_dict(dit.state_dict())
    x, codes, t = random_noise(2, 58, 8), random_codes(2, 29), torch.tensor([0.1, 0.7])
    weights = random_noise(2, 58, 8, seed=3)
    (our_velocity(ours, x, codes, chelsie, t) * weights).mean().backward()
    theirs = copy.deepcopy(reference_dit)
    (reference_velocity(theirs, x, codes, chelsie, t) * weights).mean().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert p.grad is not None, name
        # relative to the largest entry: float32 rounding through 22 layers and back
        scale = expected[name].grad.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            p.grad / scale, expected[name].grad / scale, atol=1e-4, rtol=0, msg=name
        )


def test_packing_keeps_names_values_and_training(
    dit: Dit, chelsie: Voice, part: Any, config: Any, tmp_path: Any
) -> None:
    net = Dit(config.token2wav.dit)
    net.load_state_dict(dit.state_dict())
    for block in net.blocks:
        block.packed_linears()
    published = part("token2wav.code2wav_dit_model.")
    assert net.state_dict().keys() == published.keys()
    save_file(net.state_dict(), tmp_path / "dit.safetensors")
    for name, saved in load_file(tmp_path / "dit.safetensors").items():
        assert torch.equal(saved, published[name]), name
    x, codes, t = random_noise(1, 48, 8), random_codes(1, 24), torch.tensor([0.5])
    before = our_velocity(net, x, codes, chelsie, t)
    before.square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=1e-2).step()
    assert (our_velocity(net, x, codes, chelsie, t) - before).abs().max() > 1e-3


@pytest.mark.parametrize("width", [32, 128, 256])  # plain, and laid out by oneDNN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linears_equal_plain_ones(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = DitConfig(hidden_size=width, num_attention_heads=width // 64 or 1)
    block = Block(config, 0, 0).to(dtype).requires_grad_(False)
    x = random_noise(2, 31, width).to(dtype)
    plain, packed = block.linears(), block.packed_linears()
    # rounding of sums in another order, in the dtype of the result
    atol = 1e-5 if dtype == torch.float32 else 2e-2
    for name in ("project", "mix", "expand", "contract"):
        width_in = {"mix": config.num_attention_heads * 64, "contract": 2 * width}.get(name, width)
        fed = x if width_in == width else random_noise(2, 31, width_in).to(dtype)
        torch.testing.assert_close(
            getattr(packed, name)(fed), getattr(plain, name)(fed), atol=atol, rtol=0, msg=name
        )


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_one_evaluation_sees_two_blocks_back_and_one_ahead(
    dit: Dit, chelsie: Voice, changed: int
) -> None:
    codes, x, t = random_codes(1, 8 * BLOCK_CODES), random_noise(1, 8 * 24, 8), torch.tensor([0.4])
    perturbed = codes.clone()
    perturbed[0, changed * BLOCK_CODES] = (perturbed[0, changed * BLOCK_CODES] + 1) % 64
    difference = our_velocity(dit, x, codes, chelsie, t) - our_velocity(
        dit, x, perturbed, chelsie, t
    )
    reached = difference.view(8, 24, 8).abs().amax((1, 2)).gt(0).nonzero().flatten().tolist()
    assert reached == [b for b in range(changed - 1, changed + 3) if 0 <= b < 8]


@pytest.mark.parametrize(
    ("changes", "num_codes"),
    [
        ({"look_ahead_layers": (0, 2), "look_backward_layers": (0, 1)}, 31),
        ({"look_ahead_layers": (), "look_backward_layers": ()}, 24),
        ({"repeats": 4}, 13),
        ({"block_size": 8}, 13),
    ],
)
def test_every_published_field_is_general(
    changes: dict[str, Any], num_codes: int, chelsie: Voice
) -> None:
    """Other layer counts, reaches, repeats and block sizes, against a reference of the same."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

    sizes: dict[str, Any] = (
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "head_dim": 16,
            "emb_dim": 16,
            "num_embeds": 64,
            "mel_dim": 8,
            "enc_emb_dim": 12,
            "enc_dim": 8,
            "enc_channels": (16, 16, 16, 16, 48),
            "enc_attention_channels": 8,
            "enc_se_channels": 8,
        }
        | {"look_ahead_layers": (1,), "look_backward_layers": (0, 2)}
        | changes
    )
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
    torch.manual_seed(0)
    reference = theirs.Qwen2_5OmniToken2WavDiTModel._from_config(
        theirs.Qwen2_5OmniDiTConfig(**lists, dropout=0.0), attn_implementation="sdpa"
    ).eval()
    for p in reference.parameters():
        torch.nn.init.normal_(p, std=0.7 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.05)
    net = Dit(DitConfig(**sizes)).requires_grad_(False)
    net.load_state_dict(reference.state_dict())
    repeats = net.config.repeats
    x, codes = random_noise(2, num_codes * repeats, 8), random_codes(2, num_codes)
    t = torch.tensor([0.2, 0.9])
    with torch.no_grad():
        expected = reference_velocity(reference, x, codes, chelsie, t)
    assert expected.std() > 0.1
    torch.testing.assert_close(our_velocity(net, x, codes, chelsie, t), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float32(dit: Dit, chelsie: Voice, dtype: torch.dtype) -> None:
    x, codes, t = random_noise(1, 58, 8), random_codes(1, 29), torch.tensor([0.5])
    exact = our_velocity(dit, x, codes, chelsie, t)
    low = copy.deepcopy(dit).to(dtype)
    voice = Voice("low", 0, chelsie.cond.to(dtype), chelsie.ref_mel.to(dtype))
    got = our_velocity(low, x.to(dtype), codes, voice, t).float()
    # bf16 keeps 8 bits: 22 layers of it leave some percent of the spread
    assert (got - exact).square().mean().sqrt() < 0.06 * exact.std()


def test_training_from_scratch_starts_at_zero_velocity_and_descends(
    chelsie: Voice, config: Any
) -> None:
    torch.manual_seed(0)
    net = Dit(config.token2wav.dit)
    net.reset_parameters()
    x, codes, t = random_noise(2, 48, 8), random_codes(2, 24), torch.tensor([0.2, 0.8])
    assert our_velocity(net, x, codes, chelsie, t).abs().max() == 0
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    target = random_noise(2, 48, 8, seed=5)
    losses = []
    for _ in range(12):
        loss = F.mse_loss(our_velocity(net, x, codes, chelsie, t), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]


def test_autocast_trains_in_bfloat16(dit: Dit, chelsie: Voice, config: Any) -> None:
    net = Dit(config.token2wav.dit)
    net.load_state_dict(dit.state_dict())
    x, codes, t = random_noise(1, 48, 8), random_codes(1, 24), torch.tensor([0.5])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = our_velocity(net, x, codes, chelsie, t)
    velocity.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_bad_codes_and_lengths_are_refused(dit: Dit, chelsie: Voice) -> None:
    x, t = random_noise(1, 4, 8), torch.tensor([0.5])
    for bad in (65, -1):
        with pytest.raises(ValueError, match=f"codec token {bad} .* table of 65"):
            our_velocity(dit, x, torch.tensor([[3, bad]]), chelsie, t)
    with pytest.raises(ValueError, match="2 codes make 4 mel frames, not 5"):
        our_velocity(dit, random_noise(1, 5, 8), torch.tensor([[3, 4]]), chelsie, t)
    with pytest.raises(ValueError, match="32768"):
        dit.geometry(32769)
