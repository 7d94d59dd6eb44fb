"""Checkpoints to measure: a folder, or `random:7b`, drawn on the device; time does not depend on what weights say."""

from __future__ import annotations

import torch

from model.codec.voice import Voice
from model.config import OmniConfig
from model.generation import Generation
from model.image import PUBLISHED
from model.omni import Omni, OmniModel, WeightFormat, default_dtype, load
from model.prompt import SPEECH_SYSTEM_PROMPT
from model.tokenizer import TextTokenizer
from recipes.random_checkpoint import PUBLISHED_CONTROL, SHAPES, byte_tokenizer

RANDOM = "random:"


def open_model(name: str, device: str, weights: WeightFormat = "plain") -> Omni:
    """Load a folder or hub name, or make `random:` and one of the shapes (those in their own precision)."""
    if name.startswith(RANDOM):
        return random_omni(name.removeprefix(RANDOM), torch.device(device))
    return load(name, device=device, weights=weights)


def random_omni(shape: str, device: torch.device) -> Omni:
    """A whole checkpoint of random weights in the precision it would be loaded in."""
    dtype = default_dtype(device)
    model = random_model(shape, device, dtype)
    tokenizer = TextTokenizer(byte_tokenizer(PUBLISHED_CONTROL))
    assert model.config.token2wav is not None
    dit = model.config.token2wav.dit
    voice = Voice("Chelsie", 151872, torch.randn(dit.enc_emb_dim), torch.randn(150, dit.mel_dim))
    return Omni(
        model=model,
        config=model.config,
        tokenizer=tokenizer,
        voices={voice.name: voice},
        images=PUBLISHED,
        end_ids=frozenset((tokenizer.im_end_id,)),
        generation=Generation(),
        system_prompt=SPEECH_SYSTEM_PROMPT,
        device=device,
        dtype=dtype,
    )


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> OmniModel:
    config = OmniConfig.from_json(SHAPES[shape])
    with torch.device("meta"):
        model = OmniModel(config, PUBLISHED)
    model.thinker.to(dtype)
    assert model.talker is not None
    model.talker.to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2:
                p.fill_(0 if name.endswith(("bias", "alpha", "beta")) else 1)
            else:
                p.normal_(0, 0.7 * p[0].numel() ** -0.5)
    model.requires_grad_(False).eval().prepare()
    return model
