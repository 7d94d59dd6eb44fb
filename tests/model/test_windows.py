"""Window arithmetic, exhaustively: every length, several schedules, every way to arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.windows import Progress, ScheduleError, WindowPlan, WindowPlanner, WindowSchedule

SCHEDULES = [
    WindowSchedule(),
    WindowSchedule((1, 2), 3, 1, borrow_right=False),
    WindowSchedule((2,), 3, 1),
    WindowSchedule((), 1, 0),
    WindowSchedule((), 1, 0, borrow_right=False),
    WindowSchedule((1,), 2, 2, borrow_right=False),
    WindowSchedule((), 3, 2),
    WindowSchedule((1,), 1, 3, margin=34),
    WindowSchedule((1,), 1, 1, margin=34),
    WindowSchedule((1,), 1, 1, margin=0, borrow_right=False),
]
# Published sizes, 25 codes per second, and blocks shorter than the vocoder's margin.
SIZES = [(12, 2), (6, 4), (4, 2)]


def planners() -> list[WindowPlanner]:
    return [WindowPlanner(s, *sizes) for s in SCHEDULES for sizes in SIZES]


def run(planner: WindowPlanner, arrivals: list[int]) -> list[WindowPlan]:
    """Plans of a reply whose codes arrive in these pieces."""
    progress, arrived, plans = Progress(), 0, []
    for piece, is_last in [(n, False) for n in arrivals] + [(0, True)]:
        arrived += piece
        while plan := planner.next_window(progress, arrived, is_last):
            plans.append(plan)
            progress = plan.after
    return plans


@pytest.mark.parametrize("planner", planners(), ids=str)
def test_every_code_is_final_once_and_every_frame_vocoded_once(planner: WindowPlanner) -> None:
    for total in range(101):
        plans = run(planner, [total])
        frames = [f for p in plans for f in range(p.first_frame, p.last_frame)]
        assert frames == list(range(total * planner.frames_per_code)), total
        finals = [c for p in plans for c in range(p.start_code, p.start_code + p.num_new)]
        assert finals == list(range(total)), total


@pytest.mark.parametrize("planner", planners(), ids=str)
def test_windows_are_cut_between_blocks_and_see_their_look_ahead(planner: WindowPlanner) -> None:
    schedule, block = planner.schedule, planner.block_codes
    for total in range(101):
        plans = run(planner, [total])
        for index, plan in enumerate(plans):
            assert plan.start_code % block == 0
            if plan.is_last:
                assert plan is plans[-1]
                assert plan.stop_code == total
                continue
            assert plan.num_new == schedule.new_blocks(index) * block
            assert plan.num_codes == plan.num_new + schedule.look_ahead * block
            assert plan.num_codes <= planner.schedule.max_blocks * block
        # the last window is the shortest rest: no full one was left out
        if plans and plans[-1].is_last:
            full = schedule.new_blocks(len(plans) - 1) + schedule.look_ahead
            assert plans[-1].num_codes < full * block


@pytest.mark.parametrize("planner", planners(), ids=str)
def test_vocoder_context_is_the_margin_or_the_true_end_of_the_clip(planner: WindowPlanner) -> None:
    margin, rate = planner.schedule.margin, planner.frames_per_code
    for total in range(101):
        for plan in run(planner, [total]):
            assert plan.first_frame - plan.left_frame == min(margin, plan.first_frame)
            if plan.first_frame == plan.last_frame:
                assert plan.right_frame == plan.last_frame
            elif plan.is_last:
                assert plan.right_frame == plan.last_frame == total * rate
            else:
                assert plan.right_frame - plan.last_frame == margin
            known = plan.stop_code * rate if planner.schedule.borrow_right else plan.final_frames
            assert plan.right_frame <= known
            # everything it reads is either in this window or among the frames held from before
            assert plan.start_code * rate - plan.left_frame <= planner.max_held_frames


@given(st.sampled_from(planners()), st.lists(st.integers(0, 40), max_size=12))
def test_arrival_never_moves_a_window(planner: WindowPlanner, arrivals: list[int]) -> None:
    assert (
        run(planner, arrivals) == run(planner, [1] * sum(arrivals)) == run(planner, [sum(arrivals)])
    )


@given(st.sampled_from(planners()), st.lists(st.integers(1, 40), max_size=12))
def test_waiting_codes_fit_their_buffer(planner: WindowPlanner, arrivals: list[int]) -> None:
    progress, arrived = Progress(), 0
    for piece in arrivals:
        arrived += piece
        while plan := planner.next_window(progress, arrived, is_last=False):
            progress = plan.after
        assert arrived - progress.codes_done <= planner.max_held_codes


@pytest.mark.parametrize("planner", planners(), ids=str)
def test_equal_phase_means_equal_shapes_for_ever(planner: WindowPlanner) -> None:
    """Two moments of a long reply with one phase have the same windows ahead, shifted."""

    def shapes(progress: Progress, arrived: int) -> list[tuple[int | bool, ...]]:
        found, more = [], 60
        for is_last in (False, True):
            while plan := planner.next_window(progress, arrived + more, is_last):
                found.append(
                    (
                        plan.num_codes,
                        plan.num_new,
                        plan.is_last,
                        plan.first_frame - plan.left_frame,
                        plan.last_frame - plan.first_frame,
                        plan.right_frame - plan.last_frame,
                        plan.first_frame - plan.start_code * planner.frames_per_code,
                    )
                )
                progress = plan.after
        return found

    by_phase: dict[tuple[int, ...], list[tuple[int | bool, ...]]] = {}
    progress = Progress()
    for arrived in range(130):
        while plan := planner.next_window(progress, arrived, is_last=False):
            progress = plan.after
        ahead = shapes(progress, arrived)
        assert by_phase.setdefault(planner.phase(progress, arrived), ahead) == ahead
    assert len(by_phase) < 130  # the steady state repeats


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, []),
        (5, [(0, 5, True)]),
        (12, [(0, 12, True)]),
        (24, [(0, 24, False), (12, 24, True)]),
        (36, [(0, 24, False), (12, 36, True)]),
        (48, [(0, 24, False), (12, 48, False), (36, 48, True)]),
        (49, [(0, 24, False), (12, 48, False), (36, 49, True)]),
    ],
)
def test_every_way_to_stop(total: int, expected: list[tuple[int, int, bool]]) -> None:
    """No codes, less than a block, exactly one, on the edge of a window, just past it."""
    plans = run(WindowPlanner(WindowSchedule((1, 2), 3, 1), 12, 2), [total])
    assert [(p.start_code, p.stop_code, p.is_last) for p in plans] == expected


def test_first_sound_of_the_documented_schedules() -> None:
    """24 codes give 240 ms with a borrowed margin, 40 ms without; 36 in one window give 280."""

    def first(schedule: WindowSchedule) -> tuple[int, int]:
        plan = run(WindowPlanner(schedule, 12, 2), [200])[0]
        return plan.stop_code, plan.last_frame

    assert first(WindowSchedule((1,), 3, 1)) == (24, 24)
    assert first(WindowSchedule((1,), 3, 1, borrow_right=False)) == (24, 4)
    assert first(WindowSchedule((2,), 3, 1, borrow_right=False)) == (36, 28)


@pytest.mark.parametrize(
    "settings", [{"steady": 0}, {"first": (0,)}, {"look_ahead": -1}, {"margin": -1}]
)
def test_unusable_schedules_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ScheduleError, match=next(iter(settings))):
        WindowSchedule(**settings)  # type: ignore[arg-type]
