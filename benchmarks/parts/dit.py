"""DiT sampling, whole clip: ours against `transformers` on the same random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as published

from model.codec.dit import Dit
from model.codec.sampler import FlowSampler
from model.codec.voice import Voice
from model.config import DitConfig, SolverConfig

Pair = tuple[Callable[[], object], Callable[[], object]]

TINY = DitConfig(
    hidden_size=32,
    num_attention_heads=2,
    head_dim=16,
    emb_dim=16,
    num_embeds=64,
    mel_dim=8,
    enc_emb_dim=12,
    enc_dim=8,
    enc_channels=(16, 16, 16, 16, 48),
    enc_attention_channels=8,
    enc_se_channels=8,
)
EMBEDDED = DitConfig(
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    emb_dim=128,
    look_ahead_layers=(4,),
    look_backward_layers=(0, 7),
    num_embeds=1024,
    enc_emb_dim=64,
    enc_channels=(64, 64, 64, 64, 192),
)
PUBLISHED = DitConfig()


def reference_net(config: DitConfig, scale: float = 0.7, seed: int = 0) -> Any:
    """A reference network of these sizes whose random weights keep the signal's size."""
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    torch.manual_seed(seed)
    net = published.Qwen2_5OmniToken2WavDiTModel._from_config(
        published.Qwen2_5OmniDiTConfig(**lists, dropout=0.0), attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "codec_embed" in name:
                p.normal_()
            elif p.dim() > 1:
                p.normal_(0, scale / math.sqrt(p[0].numel()))
            else:
                p.normal_(0, 0.05)
    return net.requires_grad_(False)


def our_net(config: DitConfig, reference: Any) -> Dit:
    with torch.device("meta"):
        net = Dit(config)
    net.load_state_dict({k: v.clone() for k, v in reference.state_dict().items()}, assign=True)
    net.requires_grad_(False)
    return net


def build(config: DitConfig, num_codes: int, num_points: int) -> Pair:
    reference = reference_net(config)
    sampler = FlowSampler(our_net(config, reference), SolverConfig(num_points=num_points))
    voice = Voice("random", 0, torch.randn(config.enc_emb_dim), torch.randn(300, config.mel_dim))
    codes = torch.randint(0, config.num_embeds, (1, num_codes))
    noise = torch.randn(1, num_codes * config.repeats, config.mel_dim)
    condition = sampler.condition(voice)[None]

    def ours() -> object:
        with torch.inference_mode():
            return sampler.sample(codes, noise, condition)

    def theirs() -> object:
        return reference.sample(voice.cond[None], voice.ref_mel[None], codes, num_steps=num_points)

    return ours, theirs


CASES: dict[str, Callable[[], Pair]] = {
    "tiny, first window (24 codes)": partial(build, TINY, 24, 10),
    "tiny, 2 s": partial(build, TINY, 100, 10),
    "tiny, 10 s": partial(build, TINY, 500, 10),
    "256x8, first window (24 codes)": partial(build, EMBEDDED, 24, 10),
    "256x8, 2 s": partial(build, EMBEDDED, 100, 10),
    "256x8, 10 s": partial(build, EMBEDDED, 500, 10),
    # One step of nine: the ratio is the same and 1.3 GB of weights are slow enough.
    "1024x22, first window (24 codes), 1 step": partial(build, PUBLISHED, 24, 2),
    "1024x22, 2 s, 1 step": partial(build, PUBLISHED, 100, 2),
}
