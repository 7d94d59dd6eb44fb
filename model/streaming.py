"""The contract of everything that streams: state is a value the caller owns, and grouping never matters.

A *lane* is the row of one live conversation in batched state. Tensors of a state have the lane as their first axis;
what decides control flow (how many frames have arrived, say) is a plain host integer per lane, so that no step has
to ask the device.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class State(Protocol):
    """What a streaming module remembers between steps, for every lane."""

    def reset(self, lanes: Sequence[int]) -> None:
        """Make these lanes as new; other lanes are untouched."""


StateT = TypeVar("StateT", bound=State)


class StreamingModule(nn.Module, Generic[StateT]):
    """A module that can take its input in pieces.

    Two laws hold for every subclass and are tested in `tests/model/test_laws.py`:

    * Grouping law (exact): how the input is split into `step` calls never changes the concatenated output. It holds
      because every computation has a shape that depends on absolute position alone, never on arrival.
    * Whole law: steps then `flush` equal `forward` on the whole input; exactly for causal and block-local modules,
      within a stated tolerance for windowed ones.

    The lanes of one call must be in phase (equal counts so far) and their inputs equally long; the caller groups them.
    After `flush` the lanes are clean and may serve another conversation.
    """

    @abstractmethod
    def init_state(self, num_lanes: int) -> StateT:
        """Allocate state for `num_lanes` conversations, all clean."""

    @abstractmethod
    def step(self, x: Tensor, state: StateT, lanes: Sequence[int]) -> Tensor:
        """Take `x` [B, n, …] for the given lanes; return what has become final, possibly of length zero."""

    @abstractmethod
    def flush(self, state: StateT, lanes: Sequence[int]) -> Tensor:
        """Return the rest, as if the input ended here, and reset the lanes."""
