"""StepPlan to tensors: all integers of a step are packed on the host and copied to the device once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.attention import ForwardBatch
from streaming.engine.sequence import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from streaming.engine.scheduler import Entry, StepPlan

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Int32s = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class Padding:
    """Fixed sizes of a decode step, and what its padding rows write to and read from."""

    num_sequences: int
    table_width: int
    page: int
    row_slot: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one forward of Thinker or Talker reads, N rows of B sequences, D of which draw a token.

    Padding, if any, is behind the real sequences and counted in none of N, B, D but in the sizes of the tensors.
    """

    batch: ForwardBatch
    token_ids: Tensor
    """[N]; 0 where a row is given."""
    is_given: Tensor
    """[N] bool: rows that an encoder made."""
    row_slots: Tensor
    """[B] of a decode: where reply rows are stored or found."""
    drawing_rows: Tensor
    """[D]"""
    drawing_lanes: Tensor
    """[D]"""
    given: tuple[tuple[int, Tensor], ...]
    """Given rows and where in the batch they start."""
    buffer: Tensor
    """Bytes that the tensors above are views of."""
    num_sequences: int


def pack(
    plan: StepPlan, page_size: int, device: torch.device, padding: Padding | None = None
) -> StepInputs:
    """Build the inputs of a plan for Thinker or Talker.

    `padding` gives a decode fixed sizes, for captured graphs. On a CPU the table is left out where every sequence's
    pages are one run, because nobody reads it then.
    """
    entries = plan.entries
    is_decode = plan.phase is Phase.DECODE
    lengths = [e.length for e in entries]
    contexts = [e.start + e.length for e in entries]
    first_slots = tuple(
        e.seq.first_slot(c, page_size) for e, c in zip(entries, contexts, strict=True)
    )
    rows = _DecodeRows(entries) if is_decode else _PrefillRows(entries)
    ends = np.cumsum(lengths)
    draws = [i for i, e in enumerate(entries) if e.draws_token]
    is_run = device.type == "cpu" and None not in first_slots and padding is None
    longs = [
        rows.positions,
        _slots(entries, page_size),
        rows.token_ids,
        rows.is_given,
        rows.row_slots,
        np.array([ends[i] - 1 for i in draws], np.int64),
        np.array([entries[i].seq.lane for i in draws], np.int64),
    ]
    table = np.zeros((len(entries), 0), np.int32) if is_run else _table(entries)
    ints = [table, np.concatenate(([0], ends)).astype(np.int32), np.array(contexts, np.int32)]
    if padding is not None:
        longs, ints = _padded(longs, ints, padding, page_size)
    buffer, moved = _copy(longs, ints, device)
    positions, slots, token_ids, is_given, row_slots, drawing_rows, drawing_lanes = moved[:7]
    batch = ForwardBatch(
        positions=positions,
        slot_mapping=slots,
        page_table=moved[7],
        cu_seqlens_q=moved[8],
        context_lens=moved[9],
        page_size=page_size,
        host_query_lens=tuple(lengths),
        host_context_lens=tuple(contexts),
        first_slots=first_slots,
    )
    return StepInputs(
        batch,
        token_ids,
        is_given.bool(),
        row_slots,
        drawing_rows[: len(draws)],
        drawing_lanes[: len(draws)],
        rows.given,
        buffer,
        len(entries),
    )


class _DecodeRows:
    """One row per sequence."""

    def __init__(self, entries: Seq[Entry]) -> None:
        inputs = [e.seq.decode for e in entries]
        fed = np.array([(i.token_id, i.row_slot, i.position) for i in inputs if i], np.int64)
        fed = fed.reshape(-1, 3)
        self.token_ids, self.row_slots = fed[:, 0], fed[:, 1]
        self.positions = np.repeat(fed[None, :, 2], 3, axis=0)
        self.is_given = np.zeros(0, np.int64)
        self.given: tuple[tuple[int, Tensor], ...] = ()


class _PrefillRows:
    """Known rows, tokens and media as they come."""

    def __init__(self, entries: Seq[Entry]) -> None:
        pieces = [p for e in entries for p in e.seq.next_pieces(e.length)]
        num_rows = sum(p.stop - p.start for p in pieces)
        self.token_ids = np.zeros(num_rows, np.int64)
        self.is_given = np.zeros(num_rows, np.int64)
        self.row_slots = np.zeros(0, np.int64)
        self.positions = np.concatenate(
            [p.segment.positions[:, p.start : p.stop] for p in pieces], axis=1
        )
        given: list[tuple[int, Tensor]] = []
        at = 0
        for piece in pieces:
            size = piece.stop - piece.start
            if piece.segment.rows is None:
                self.token_ids[at : at + size] = piece.segment.token_ids[piece.start : piece.stop]
            else:
                self.is_given[at : at + size] = 1
                given.append((at, piece.segment.rows[piece.start : piece.stop]))
            at += size
        self.given = tuple(given)


def _slots(entries: Seq[Entry], page_size: int) -> Ints:
    """The key-value slot of every row."""
    pieces = []
    for entry in entries:
        if entry.length == 1:
            page = entry.seq.pages[entry.start // page_size]
            pieces.append(np.array([page * page_size + entry.start % page_size], np.int64))
            continue
        at = np.arange(entry.start, entry.start + entry.length)
        pages = entry.seq.page_table()[at // page_size].astype(np.int64)
        pieces.append(pages * page_size + at % page_size)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _padded(
    longs: Seq[Ints], ints: Seq[Int32s], padding: Padding, page_size: int
) -> tuple[list[Ints], list[Int32s]]:
    """A decode's arrays with padding rows behind them: one token of context, in the scratch page."""
    positions, slots, token_ids, is_given, row_slots, drawing_rows, drawing_lanes = longs
    table, _, contexts = ints
    size, missing = padding.num_sequences, padding.num_sequences - len(token_ids)

    def grown(array: Ints, value: int) -> Ints:
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)], constant_values=value)

    scratch = padding.page * page_size
    wide = np.full((size, padding.table_width), padding.page, np.int32)
    wide[: len(table), : table.shape[1]] = table
    return [
        grown(positions, 0),
        grown(slots, scratch),
        grown(token_ids, 0),
        is_given,
        grown(row_slots, padding.row_slot),
        grown(drawing_rows, 0),
        grown(drawing_lanes, 0),
    ], [
        wide,
        np.arange(size + 1, dtype=np.int32),
        np.pad(contexts, (0, missing), constant_values=1),
    ]


def _table(entries: Seq[Entry]) -> Int32s:
    tables = [e.seq.page_table() for e in entries]
    table = np.zeros((len(entries), max(map(len, tables), default=0)), np.int32)
    for row, pages in zip(table, tables, strict=True):
        row[: len(pages)] = pages
    return table


def _copy(longs: Seq[Ints], ints: Seq[Int32s], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Arrays to the device in one piece of bytes; return it and views of it."""
    arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.int64 | np.int32]]] = [*longs, *ints]
    parts = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays]
    buffer = torch.from_numpy(np.concatenate(parts))
    if device.type == "cuda":
        buffer = buffer.pin_memory().to(device, non_blocking=True)
    tensors, at = [], 0
    for array, part in zip(arrays, parts, strict=True):
        dtype = torch.int64 if array.dtype == np.int64 else torch.int32
        tensors.append(buffer[at : at + part.size].view(dtype).view(array.shape))
        at += part.size
    return buffer, tensors
