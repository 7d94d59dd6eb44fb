"""Which windows of the codec decoder run when, and what of each is kept; integers only.

Codec tokens arrive in any pieces. The flow is solved in windows cut between blocks at fixed places
of the reply:

    codes   |  new  | look-ahead |
            |       |  new  |  new  | look-ahead |
                            |     new     |  new  | look-ahead |        last window: all that is
                            left
    mel     |  final|  final                      …

A window runs as soon as its codes have arrived; nothing else moves it, so how they arrived cannot
change the sound. The vocoder then turns final mel frames into samples, `margin` frames behind,
because a sample also depends on mel to its right. With `borrow_right` it takes that context from
the provisional look-ahead mel instead, and holds nothing back.
"""

from __future__ import annotations

from dataclasses import dataclass


class ScheduleError(ValueError):
    """A window schedule cannot be run; the message names the setting."""


@dataclass(frozen=True, slots=True)
class WindowSchedule:
    """How many blocks each window makes final, and how many more it solves to see their future.

    Args:
        first: new blocks of the first windows, in order; small ones bring the first sound early.
        steady: new blocks of every window after those.
        look_ahead: provisional blocks of every window but the last. Each one delays the sound by a
            block and divides the distance to the whole-clip decode by two to three orders of
            magnitude.
        margin: mel frames of vocoder context on each side.
        borrow_right: use provisional mel as the vocoder's right context.
    """

    first: tuple[int, ...] = (1, 2)
    steady: int = 3
    look_ahead: int = 1
    margin: int = 20
    borrow_right: bool = True

    def __post_init__(self) -> None:
        if self.steady < 1 or any(n < 1 for n in self.first):
            raise ScheduleError(
                f"schedule first {list(self.first)} and steady {self.steady} must count blocks, "
                "at least 1 each"
            )
        if self.look_ahead < 0 or self.margin < 0:
            raise ScheduleError(
                f"schedule look_ahead {self.look_ahead} and margin {self.margin} must not be "
                "negative"
            )

    def new_blocks(self, index: int) -> int:
        """New blocks of window number `index`."""
        return self.first[index] if index < len(self.first) else self.steady

    @property
    def max_blocks(self) -> int:
        """Most blocks that a window before the last one spans."""
        return max(*self.first, self.steady, 0) + self.look_ahead


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the windows of one reply have come, in absolute codes and mel frames."""

    num_windows: int = 0
    codes_done: int = 0
    frames_vocoded: int = 0


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One window of the flow and the vocoder run behind it.

    Solve codes `start_code`…`stop_code`-1; the first `num_new` of them become final (all, if
    `is_last`). Then vocode mel frames `left_frame`…`right_frame`-1 and keep the samples of
    `first_frame`…`last_frame`-1. Either part may be empty; frames from `final_frames` on are
    provisional.
    """

    start_code: int
    stop_code: int
    num_new: int
    is_last: bool
    left_frame: int
    first_frame: int
    last_frame: int
    right_frame: int
    final_frames: int
    after: Progress

    @property
    def num_codes(self) -> int:
        return self.stop_code - self.start_code


@dataclass(frozen=True, slots=True)
class WindowPlanner:
    """Plan windows for one schedule and the sizes of one decoder."""

    schedule: WindowSchedule
    block_codes: int
    frames_per_code: int

    def next_window(self, progress: Progress, num_codes: int, is_last: bool) -> WindowPlan | None:
        """Plan the window to run now that `num_codes` codes have arrived in all, or None.

        With `is_last` no more will come: repeat until None to finish the reply. A full window comes
        before the last one even when the end is already known, because online it would have run
        before the end was known.
        """
        num_new = self.schedule.new_blocks(progress.num_windows) * self.block_codes
        full = progress.codes_done + num_new + self.schedule.look_ahead * self.block_codes
        if num_codes >= full:
            return self._plan(progress, full, num_new, is_last=False)
        final = num_codes * self.frames_per_code
        if is_last and progress.frames_vocoded < final:
            return self._plan(progress, num_codes, num_codes - progress.codes_done, is_last=True)
        return None

    def phase(self, progress: Progress, num_codes: int) -> tuple[int, ...]:
        """What decides the shapes of all further windows: replies in equal phase may share a
        batch.
        """
        final = progress.codes_done * self.frames_per_code
        return (
            min(progress.num_windows, len(self.schedule.first)),
            int(progress.num_windows > 0),
            num_codes - progress.codes_done,
            final - progress.frames_vocoded,
            min(self.schedule.margin, progress.frames_vocoded),
        )

    @property
    def max_held_frames(self) -> int:
        """Most final mel frames before a window that its vocoder run reads: waiting ones and their
        left context.
        """
        return 2 * self.schedule.margin

    @property
    def max_held_codes(self) -> int:
        """Most codes that wait between windows."""
        return self.schedule.max_blocks * self.block_codes - 1

    def _plan(
        self, progress: Progress, stop_code: int, num_new: int, *, is_last: bool
    ) -> WindowPlan:
        margin = self.schedule.margin
        codes_done = progress.codes_done + num_new
        final = codes_done * self.frames_per_code
        if is_last:  # the clip ends here: the vocoder's own padding is what belongs to its right
            last_frame = right_frame = final
        else:
            known = stop_code * self.frames_per_code if self.schedule.borrow_right else final
            last_frame = max(progress.frames_vocoded, min(final, known - margin))
            right_frame = (
                last_frame + margin if last_frame > progress.frames_vocoded else last_frame
            )
        return WindowPlan(
            start_code=progress.codes_done,
            stop_code=stop_code,
            num_new=num_new,
            is_last=is_last,
            left_frame=max(0, progress.frames_vocoded - margin),
            first_frame=progress.frames_vocoded,
            last_frame=last_frame,
            right_frame=right_frame,
            final_frames=final,
            after=Progress(progress.num_windows + 1, codes_done, last_frame),
        )
