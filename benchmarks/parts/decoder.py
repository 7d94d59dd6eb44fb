"""Thinker and Talker: prefill and decode on the same weights as `transformers`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import DynamicCache, Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

from model.attention import ForwardBatch, KVCache, SequenceSpan
from model.config import DecoderConfig
from model.cpu_linear import Int8Linear, PrepackedLinear, prepack
from model.decoder import Decoder
from model.layers import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Pair = tuple["Callable[[], object]", "Callable[[], object]"]

PAGE_SIZE = 16
CPU = torch.device("cpu")
SMOL = DecoderConfig(49152, 576, 1536, 30, 9, 3, 64, mrope_section=(8, 12, 12))
TINY = DecoderConfig(320, 64, 128, 3, 4, 2, 16, mrope_section=(2, 3, 3))
TALKER = DecoderConfig(4100, 384, 1024, 8, 6, 2, 64, mrope_section=(8, 12, 12))


class Subject:
    """One decoder with its output layer, ours and the reference's, on the same weights."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, *, int8: bool = False) -> None:
        torch.manual_seed(0)
        self.config, self.dtype = config, dtype
        self.decoder = Decoder(config).to(dtype).requires_grad_(False)
        self.head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head.to(dtype).requires_grad_(False)
        self.reference_head = self.head
        self.reference = Qwen2_5OmniThinkerTextModel._from_config(_reference_config(config))
        self.reference.to(dtype).requires_grad_(False).eval()
        self.reference.load_state_dict(self.decoder.state_dict())
        self.decoder.prepare()
        if int8:
            self._quantise()
        prepack(self.decoder)
        if not int8:
            self.head = PrepackedLinear(self.head)  # type: ignore[arg-type]

    def step(self, context: int, num_rows: int) -> Pair:
        """`num_rows` tokens after `context` cached ones, then logits of the last."""
        num_pages = -(-(context + num_rows) // PAGE_SIZE)
        kv = KVCache(
            self.config, num_pages=num_pages, page_size=PAGE_SIZE, dtype=self.dtype, device=CPU
        )
        cache = DynamicCache()
        ids = torch.arange(num_rows) % 300

        def ours(start: int = context, new: Tensor = ids) -> int:
            positions = torch.arange(start, start + len(new)).expand(3, -1)
            span = SequenceSpan(range(num_pages), start, len(new), positions)
            batch = ForwardBatch.pack([span], PAGE_SIZE, CPU)
            hidden = self.decoder(self.decoder.embed_tokens(new), batch, kv)
            return int(self.head(hidden[-1:]).argmax())

        def theirs(new: Tensor = ids) -> int:
            if cache.get_seq_length() > context:
                cache.crop(context - cache.get_seq_length())  # negative: how many to take away
            out = self.reference(input_ids=new[None], past_key_values=cache, use_cache=True)
            return int(self.reference_head(out.last_hidden_state[:, -1]).argmax())

        if context:
            past = torch.arange(context) % 300
            ours(0, past)
            self.reference(input_ids=past[None], past_key_values=cache, use_cache=True)
        return ours, theirs

    def _quantise(self) -> None:
        for name, layer in list(self.decoder.named_modules()):
            if isinstance(layer, nn.Linear | PackedLinear):
                self.decoder.set_submodule(name, Int8Linear(layer))
        self.head = Int8Linear(self.head)  # type: ignore[arg-type]


def _reference_config(c: DecoderConfig) -> object:
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    text = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rope_parameters": rope | {"mrope_section": list(c.mrope_section)},
    }
    return Qwen2_5OmniThinkerConfig(text_config=text).text_config


def build(
    config: DecoderConfig, dtype: torch.dtype, context: int, num_rows: int, int8: bool = False
) -> Pair:
    return Subject(config, dtype, int8=int8).step(context, num_rows)


BF16, FP32 = torch.bfloat16, torch.float32
CASES: dict[str, Callable[[], Pair]] = {
    "Thinker 135M bf16, decode at 64": partial(build, SMOL, BF16, 64, 1),
    "Thinker 135M bf16, decode at 2048": partial(build, SMOL, BF16, 2048, 1),
    "Thinker 135M bf16, prefill 50 at 64": partial(build, SMOL, BF16, 64, 50),
    "Thinker 135M bf16, prefill 512": partial(build, SMOL, BF16, 0, 512),
    "Thinker 135M bf16, prefill 2048": partial(build, SMOL, BF16, 0, 2048),
    "Thinker 135M int8, decode at 64": partial(build, SMOL, BF16, 64, 1, int8=True),
    "Thinker 135M int8, decode at 2048": partial(build, SMOL, BF16, 2048, 1, int8=True),
    "Thinker 135M int8, prefill 50 at 64": partial(build, SMOL, BF16, 64, 50, int8=True),
    "Thinker 135M int8, prefill 512": partial(build, SMOL, BF16, 0, 512, int8=True),
    "Thinker 135M fp32, decode at 64": partial(build, SMOL, FP32, 64, 1),
    "Thinker 135M fp32, prefill 50 at 64": partial(build, SMOL, FP32, 64, 50),
    "Thinker tiny fp32, decode at 64": partial(build, TINY, FP32, 64, 1),
    "Thinker tiny fp32, prefill 50 at 64": partial(build, TINY, FP32, 64, 50),
    "Talker 8x384 bf16, decode at 128": partial(build, TALKER, BF16, 128, 1),
    "Talker 8x384 int8, decode at 128": partial(build, TALKER, BF16, 128, 1, int8=True),
}
