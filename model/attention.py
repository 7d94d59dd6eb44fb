"""Paged attention: what one forward pass must know about its sequences, and the one call that uses it.

Keys and values live in slots; a page is `page_size` consecutive slots; a sequence owns a list of pages. Every forward
takes a `ForwardBatch` of packed sequences and attends causally over sequence order, whatever the rotary positions are.

    packed rows   | seq 0: q0 q1 q2 | seq 1: q0 |          cu_seqlens_q = [0, 3, 4]
    context       | seq 0: 7 slots  | seq 1: 12 |          context_lens counts the rows of this pass too
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """The rows that one sequence contributes to a forward pass."""

    pages: Sequence[int]
    start: int
    """How many rows of this sequence are already in its pages."""
    length: int
    positions: Tensor
    """[3, length] int64 on the host."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Packed sequences of one forward pass. Valid for that pass only; passed down, never stored."""

    positions: Tensor
    """[3, N] rotary positions."""
    slot_mapping: Tensor
    """[N] where each row's key and value go."""
    page_table: Tensor
    """[B, P] int32, padded with 0."""
    cu_seqlens_q: Tensor
    """[B + 1] int32."""
    context_lens: Tensor
    """[B] int32: slots to attend to, this pass included."""
    page_size: int
    host_query_lens: tuple[int, ...]
    host_context_lens: tuple[int, ...]
    first_slots: tuple[int | None, ...]
    """Start of a sequence whose pages are one ascending run, so that its cache is a view; else None."""

    @classmethod
    def pack(
        cls, spans: Sequence[SequenceSpan], page_size: int, device: torch.device
    ) -> ForwardBatch:
        """Build the batch on the host and copy it to `device`."""
        query_lens = tuple(s.length for s in spans)
        context_lens = tuple(s.start + s.length for s in spans)
        slots = [_slot(s.pages, s.start + i, page_size) for s in spans for i in range(s.length)]
        width = max(_num_pages(n, page_size) for n in context_lens)
        table = [[*s.pages[:width], *[0] * (width - len(s.pages))] for s in spans]
        ends = torch.tensor((0, *query_lens)).cumsum(0)
        return cls(
            positions=torch.cat([s.positions for s in spans], dim=1).to(device),
            slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
            page_table=torch.tensor(table, dtype=torch.int32, device=device),
            cu_seqlens_q=ends.to(device=device, dtype=torch.int32),
            context_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
            page_size=page_size,
            host_query_lens=query_lens,
            host_context_lens=context_lens,
            first_slots=tuple(
                _first_slot(s.pages, n, page_size) for s, n in zip(spans, context_lens, strict=True)
            ),
        )

    @property
    def is_decode(self) -> bool:
        """One row per sequence."""
        return len(self.slot_mapping) == len(self.context_lens)


class KVCache:
    """Key and value slots of one decoder, allocated once: [layers, slots, 2, K, D].

    In a CPU's memory the slots of one head lie together, so that a long context is read in one run per head; a GPU's
    paged kernels want the heads of one slot together.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        fill: float = 0.0,
    ) -> None:
        """`fill` is NaN in tests, so that a read of a slot nobody wrote is loud."""
        layers, num_slots = config.num_hidden_layers, num_pages * page_size
        heads, size = config.num_key_value_heads, config.head_dim
        if device.type == "cuda":
            shape = (layers, num_slots, 2, heads, size)
            self.slots = torch.full(shape, fill, dtype=dtype, device=device)
        else:
            shape = (layers, 2, heads, num_slots, size)
            by_head = (
                _untouched(shape, dtype) if fill == 0 else torch.full(shape, fill, dtype=dtype)
            )
            self.slots = by_head.permute(0, 3, 1, 2, 4)
        self.page_size = page_size

    def layers(self) -> tuple[Tensor, ...]:
        """Per layer [slots, 2, K, D]."""
        return self.slots.unbind(0)

    @property
    def num_bytes(self) -> int:
        return self.slots.numel() * self.slots.element_size()


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are written: numpy passes on the system's as they are."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)


class Attention(Protocol):
    """The one call site of attention kernels."""

    def __call__(self, q: Tensor, kv: Tensor, batch: ForwardBatch) -> Tensor:
        """Causal attention of `q` [N, H, D] over the slots `kv` [slots, 2, K, D], already written; [N, H, D] out."""


def store(kv: Tensor, rows: Tensor, batch: ForwardBatch) -> None:
    """Write keys and values `rows` [N, 2, K, D] of this pass into their slots."""
    kv.index_copy_(0, batch.slot_mapping, rows)


def attend_torch(q: Tensor, kv: Tensor, batch: ForwardBatch) -> Tensor:
    """Plain torch, sequence by sequence: the reference, and the fast path of a CPU (views instead of gathers)."""
    outputs = []
    start = 0
    for i, num_rows in enumerate(batch.host_query_lens):
        k, v = _context(kv, batch, i).unbind(1)  # [n, K, D] each
        outputs.append(attend_one(q[start : start + num_rows], k, v))
        start += num_rows
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last `Q` rows of one sequence: `q` [Q, H, D] over `k`, `v` [n, K, D]; [Q, H, D] out."""
    (num_rows, num_heads, size), num_kv_heads = q.shape, k.shape[1]
    k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]  # [1, K, n, D]
    if num_rows == 1:
        # Heads of a group share keys: as rows of one query they need one pass over the cache.
        grouped = q.view(1, num_kv_heads, num_heads // num_kv_heads, size)
        return F.scaled_dot_product_attention(grouped, k, v).view(1, num_heads, size)
    mask = None if k.shape[2] == num_rows else _causal_mask(num_rows, k.shape[2], q)
    y = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return y[0].transpose(0, 1)


def attend_gather(q: Tensor, kv: Tensor, batch: ForwardBatch) -> Tensor:
    """Decode for many sequences at once with static shapes, so that a CUDA graph can hold it without flash-attn."""
    num_seqs, num_heads, size = q.shape
    slots = _page_slots(batch)  # [B, P · page_size]
    k, v = kv[slots].unbind(2)  # [B, n, K, D] each
    num_kv_heads = k.shape[2]
    visible = torch.arange(slots.shape[1], device=q.device) < batch.context_lens[:, None]
    # Slots past the context may hold anything, NaN included, and 0 · NaN is NaN.
    v = v.masked_fill(~visible[:, :, None, None], 0)
    k = k.masked_fill(~visible[:, :, None, None], 0)
    y = F.scaled_dot_product_attention(
        q.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, size),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=visible[:, None, None],
    )
    return y.reshape(num_seqs, num_heads, size)


def choose_attention(device: torch.device, dtype: torch.dtype) -> Attention:
    """The fastest kernel this machine has: flash-attn where installed, else plain torch."""
    if device.type != "cuda":
        return attend_torch
    if dtype in (torch.float16, torch.bfloat16) and _has_flash_attn():
        return _attend_flash
    return _attend_cuda_torch


def cost_is_by_context(attend: Attention | None) -> bool:
    """The kernel reads no more than the tokens there are, however wide the page table is."""
    return attend is _attend_flash


def preferred_page_size(attend: Attention | None) -> int:
    """Slots per page that the kernel asks for; small ones waste less where it does not care."""
    return 256 if attend is _attend_flash else 16


def _attend_cuda_torch(q: Tensor, kv: Tensor, batch: ForwardBatch) -> Tensor:
    return attend_gather(q, kv, batch) if batch.is_decode else attend_torch(q, kv, batch)


def _attend_flash(q: Tensor, kv: Tensor, batch: ForwardBatch) -> Tensor:
    from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

    k, v = _by_page(kv, batch).unbind(2)  # [pages, page_size, K, D]
    if batch.is_decode:
        y = flash_attn_with_kvcache(
            q[:, None],
            k,
            v,
            cache_seqlens=batch.context_lens,
            block_table=batch.page_table,
            causal=True,
        )
        return y[:, 0]  # type: ignore[no-any-return]  # untyped library
    cu_seqlens_k = F.pad(batch.context_lens.cumsum(0, dtype=torch.int32), (1, 0))
    return flash_attn_varlen_func(  # type: ignore[no-any-return]  # untyped library
        q,
        k,
        v,
        cu_seqlens_q=batch.cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max(batch.host_query_lens),
        max_seqlen_k=max(batch.host_context_lens),
        block_table=batch.page_table,
        causal=True,
    )


def _has_flash_attn() -> bool:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _context(kv: Tensor, batch: ForwardBatch, i: int) -> Tensor:
    """Slots of sequence `i`, [n, 2, K, D]: a view where its pages are one run, else a gather."""
    num_slots, first = batch.host_context_lens[i], batch.first_slots[i]
    if first is not None:
        return kv[first : first + num_slots]
    pages = batch.page_table[i, : _num_pages(num_slots, batch.page_size)].long()
    return _by_page(kv, batch)[pages].flatten(0, 1)[:num_slots]


def _by_page(kv: Tensor, batch: ForwardBatch) -> Tensor:
    """[slots, 2, K, D] as [pages, page_size, 2, K, D]."""
    return kv.view(-1, batch.page_size, *kv.shape[1:])


def _causal_mask(num_rows: int, context_len: int, like: Tensor) -> Tensor:
    """[Q, n] additive mask: row r sees everything up to context_len - Q + r."""
    mask = torch.full((num_rows, context_len), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu_(context_len - num_rows + 1)


def _page_slots(batch: ForwardBatch) -> Tensor:
    offsets = torch.arange(batch.page_size, device=batch.page_table.device)
    return (batch.page_table.long()[:, :, None] * batch.page_size + offsets).flatten(1)


def _slot(pages: Sequence[int], index: int, page_size: int) -> int:
    return pages[index // page_size] * page_size + index % page_size


def _num_pages(num_slots: int, page_size: int) -> int:
    return -(-num_slots // page_size)


def _first_slot(pages: Sequence[int], num_slots: int, page_size: int) -> int | None:
    used = pages[: _num_pages(num_slots, page_size)]
    is_run = all(b == a + 1 for a, b in zip(used, used[1:], strict=False))
    return used[0] * page_size if is_run else None
