"""CUDA graphs of decode steps, behind the same call as eager.

A graph is captured per sub-model, batch-size bucket and page-table width, by `warm_up` or the first time it is needed.
A batch is padded up to its bucket; padding rows write to and read from one scratch page that no sequence ever holds,
and their reply rows go to a scratch row. All integers of a step lie in one buffer of bytes: filling a graph's inputs is
one copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from streaming.engine.batch import Padding

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from streaming.engine.batch import StepInputs
    from streaming.engine.sequence import Role

    Forward = Callable[[StepInputs], Tensor]

NARROWEST_TABLE = 8


class Capture(Protocol):
    """Turns a call whose tensors never move into one that can be repeated."""

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Return what repeats the call, and the tensor that then holds its result."""


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: StepInputs
    replay: Callable[[], None]
    output: Tensor


class DecodeGraphs:
    """Runs decode steps: by replaying graphs if there is a way to capture them, else eagerly."""

    def __init__(
        self,
        capture: Capture | None,
        *,
        max_batch: int,
        max_pages: int,
        scratch_page: int,
        scratch_row: int,
        widens_table: bool,
    ) -> None:
        """`widens_table`: the attention kernel's cost does not depend on the table's width, so one width will do."""
        self._capture = capture
        self._max_batch = max_batch
        self._max_pages = max_pages
        self._scratch = scratch_page, scratch_row
        self._widens_table = widens_table
        self._graphs: dict[tuple[Role, int, int], _Graph] = {}

    def padding(self, num_sequences: int, num_pages: int) -> Padding | None:
        """How to pad a step of so many sequences, the longest of which holds `num_pages`; None: not at all."""
        if self._capture is None:
            return None
        width = self._max_pages
        if not self._widens_table:
            width = min(width, max(NARROWEST_TABLE, power_of_two(num_pages)))
        batch = min(self._max_batch, power_of_two(num_sequences))
        page, row = self._scratch
        return Padding(batch, width, page, row)

    def buckets(self) -> list[Padding]:
        """Every padding that a step of short conversations may get: what to capture before the first user comes."""
        sizes = {min(self._max_batch, 1 << i) for i in range(self._max_batch.bit_length() + 1)}
        return [p for n in sorted(sizes, reverse=True) if (p := self.padding(n, 1))]

    def run(self, role: Role, inputs: StepInputs, forward: Forward) -> Tensor:
        """Logits [B, V] of a decode step that was packed with `padding`."""
        if self._capture is None:
            return forward(inputs)
        key = role, len(inputs.token_ids), inputs.batch.page_table.shape[1]
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._captured(inputs, forward)
        graph.inputs.buffer.copy_(inputs.buffer)
        graph.replay()
        return graph.output[: inputs.num_sequences]

    def _captured(self, inputs: StepInputs, forward: Forward) -> _Graph:
        assert self._capture is not None
        replay, output = self._capture(lambda: forward(inputs))
        return _Graph(inputs, replay, output)


def power_of_two(n: int) -> int:
    """The smallest that is not below `n`."""
    return 1 << max(0, n - 1).bit_length()


class CudaCapture:
    """Captures on the current device; all graphs share one pool of memory, as they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's annotation lacks
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(
                2
            ):  # libraries choose their kernels and allocate before they may be recorded
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = call()
        return graph.replay, output
