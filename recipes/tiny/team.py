"""Several processes training one network, each on a core of its own: gradients are averaged before every step.

    torchrun --nproc-per-node 2 -m recipes.tiny.talker …

Each member draws its own batches. The first one reports, validates and saves; a stage need not know of any of this.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

# Functions of `nn.functional` take the group there is when it is imported for their default: so far, none. An optimizer
# imports it too. If that came first after members had met, their group's threads would outlive `leave`, and a process
# that ends under them aborts now and then.
import torch.distributed.nn.functional
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Team:
    """This process's place; alone it is the first of one, and everything here does nothing."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Team:
        """Meet the others that torchrun has started, if it has."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), size)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def seed(self, *parts: int) -> tuple[int, ...]:
        """Make a seed this member's own; the first one's is what it would be alone."""
        return parts if self.is_first else (*parts, self.rank)

    def average_before_steps(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Let every later step of these use the mean of all members' gradients, and of their rates."""
        if self.size > 1:
            for optimizer in optimizers:
                optimizer.register_step_pre_hook(self._average)

    def agree(self, *, stop: bool) -> bool:
        """True for all as soon as one member wants to stop."""
        if self.size == 1:
            return stop
        wish = torch.tensor([float(stop)])
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        return bool(wish.item())

    def leave(self) -> None:
        """Part together, when the work is done: threads that outlive their process end it with an abort."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def _average(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        grads = [p.grad for g in groups for p in g["params"] if p.grad is not None]
        rates = torch.tensor([float(g["lr"]) for g in groups])
        flat = torch.cat([rates, *(g.flatten().float().cpu() for g in grads)])
        dist.all_reduce(flat)
        flat /= self.size
        parts: list[Tensor] = list(flat.split([len(rates), *(g.numel() for g in grads)]))
        for group, rate in zip(groups, parts[0].tolist(), strict=True):
            group["lr"] = rate
        for grad, mean in zip(grads, parts[1:], strict=True):
            grad.copy_(mean.view_as(grad))
