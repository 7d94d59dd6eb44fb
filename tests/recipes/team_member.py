"""One of two processes that `test_tiny_loop` starts: what a member of a team may rely on."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from recipes.tiny.team import Team


def main() -> None:
    team = Team.join()
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0 + team.rank)
    team.average_before_steps([optimizer])
    weight.grad = torch.tensor([1.0, 0.0] if team.is_first else [0.0, 3.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.75, -2.25]))
    assert team.agree(stop=team.rank == 1)
    assert not team.agree(stop=False)
    assert team.seed(1, 2) == ((1, 2) if team.is_first else (1, 2, 1))
    team.leave()
    expect_no_thread_of_the_group()


def expect_no_thread_of_the_group() -> None:
    """A thread that outlives its group aborts the process now and then.

    One that was joined may still be listed for a moment (2 of 100 are), so the list gets time to clear.
    """
    until = time.monotonic() + 5
    while any("gloo" in name for name in thread_names()):
        assert time.monotonic() < until, thread_names()


def thread_names() -> list[str]:
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:  # it ended since it was listed
            continue
    return names


if __name__ == "__main__":
    main()
