"""Who goes next, with a scripted runner: pure integers, no model."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from streaming.engine.pages import PagePool
from streaming.engine.scheduler import Limits, Scheduler, StepPlan
from streaming.engine.sequence import DecodeInput, Pace, Phase, Role, Segment, Sequence


def limits(**changes: object) -> Limits:
    values = {
        "max_batch": 64, "prefill_tokens": 32, "job_sizes": dict.fromkeys(Role, 1 << 20),
        "max_lead_ms": 2000.0, "guard_ms": 300.0, "window_ms": 500.0, "page_size": 4, "reserve_pages": 2,
        "fill_batches": True,
    }  # fmt: skip
    return Limits(**(values | changes))  # type: ignore[arg-type]


class Script:
    """A scheduler whose plans 'run' by being committed; decoding sessions always want the next token."""

    def __init__(self, num_pages: int = 1000, **changes: object) -> None:
        pools = {Role.THINKER: PagePool(num_pages), Role.TALKER: PagePool(num_pages)}
        self.scheduler = Scheduler(limits(**changes), pools)
        self.seqs: dict[str, Sequence] = {}

    def session(self, name: str, num_pending: int = 0) -> Sequence:
        seq = Sequence(len(self.seqs), name, Role.THINKER, len(self.seqs), Pace())
        if num_pending:
            seq.append(segment(num_pending))
        self.scheduler.add(name, seq.pace, [seq])
        self.seqs[name] = seq
        return seq

    def playing(self, name: str, dry_ms: float) -> Sequence:
        seq = self.session(name)
        seq.pace.wait(0, speech=True)
        seq.pace.deliver(0, dry_ms)
        seq.decode = DecodeInput(1, 0, 0)
        return seq

    def run(self, now_ms: float) -> StepPlan | None:
        plan = self.scheduler.plan(now_ms)
        if plan is not None:
            self.scheduler.commit(plan)
            for entry in plan.entries:
                if plan.phase is Phase.DECODE:
                    entry.seq.decode = DecodeInput(1, 0, 0)
            self.scheduler.check_integrity()
        return plan


def segment(length: int) -> Segment:
    return Segment(np.zeros((3, length), np.int64), tuple(range(1, length + 1)))


def test_the_driest_playout_goes_first_then_first_packets_then_the_rest() -> None:
    script = Script(fill_batches=False)
    script.playing("comfortable", 1000)
    script.playing("dry", 100)
    script.session("listening", 8).pace.listen(2000)
    script.session("first", 8).pace.wait(0, speech=True)
    assert script.run(0).session_ids == ("dry",)  # type: ignore[union-attr]
    script.seqs["dry"].decode = None
    assert script.run(0).session_ids == ("first",)  # type: ignore[union-attr]
    assert script.run(0).session_ids == ("comfortable",)  # type: ignore[union-attr]
    script.seqs["comfortable"].decode = None
    assert script.run(0).session_ids == ("listening",)  # type: ignore[union-attr]
    assert script.run(0) is None


def test_equal_work_joins_the_most_urgent() -> None:
    script = Script()
    for name, dry_ms in (("a", 900.0), ("b", 100.0), ("c", 400.0)):
        script.playing(name, dry_ms)
    assert script.run(0).session_ids == ("b", "c", "a")  # type: ignore[union-attr]


def test_a_reply_ahead_of_its_playback_waits_and_says_until_when() -> None:
    script = Script()
    script.playing("a", 1600)
    assert script.run(0) is None
    assert not script.scheduler.has_runnable(0)
    assert script.scheduler.wake_ms(0) == 100
    assert script.run(100) is not None


def test_the_lead_is_counted_from_where_the_player_says_it_is() -> None:
    script = Script()
    pace = script.playing("a", 0).pace
    pace.deliver(1600 * 24, 0)
    assert script.run(0) is None
    pace.report(200 * 24, 50)  # 200 ms played, 1400 to go
    assert pace.lead_ms(50) == 1400
    assert script.run(50) is not None
    pace.report(200 * 24, 700)  # it stands still: so does the reply
    assert pace.lead_ms(700) == 1400
    pace.report(10**9, 800)
    assert pace.lead_ms(800) == 0


def test_a_long_prompt_is_cut_so_that_nobody_runs_dry() -> None:
    script = Script()
    script.session("long", 1000).pace.wait(0, speech=True)
    player = script.playing("player", 250)
    now_ms, num_prefilled = 0.0, 0
    while script.seqs["long"].pending:
        plan = script.run(now_ms)
        assert plan is not None
        num_prefilled += sum(e.length for e in plan.entries if plan.phase is Phase.PREFILL)
        assert all(e.length <= 32 for e in plan.entries)
        if plan.session_ids == ("player",):
            player.pace.deliver(24 * 120, now_ms)
        now_ms += 10
        assert player.pace.due_ms > now_ms
    assert num_prefilled == 1000


def test_equal_sessions_get_equal_shares() -> None:
    script = Script(max_batch=3, fill_batches=True)
    for i in range(7):
        script.playing(f"s{i}", 100)
    turns = dict.fromkeys(script.seqs, 0)
    for now_ms in range(700):
        plan = script.run(now_ms)
        for name in plan.session_ids if plan else ():
            turns[name] += 1
            script.seqs[name].pace.deliver(24, now_ms)
    assert max(turns.values()) - min(turns.values()) <= 1


def test_prefill_leaves_pages_to_those_who_speak() -> None:
    script = Script(num_pages=6, reserve_pages=2)
    speaker = script.playing("speaker", 0)
    script.session("big", 100).pace.wait(0, speech=True)
    for step in range(8):
        plan = script.run(step)
        assert plan is None or plan.session_ids != ("big",) or script.seqs["big"].num_computed <= 12
    assert speaker.num_computed == 8
    speaker.decode = None
    assert script.run(9) is None or script.run(10) is None
    assert script.scheduler.starved == ["big"]


@pytest.mark.parametrize("lengths", [(1, 2, 3), (16, 1), (7,)])
def test_cut_keeps_exactly_the_rows_asked_for(lengths: tuple[int, ...]) -> None:
    total = sum(lengths)
    for computed in range(total + 1):
        for kept in range(total + 1):
            seq = Sequence(0, "a", Role.THINKER, 0, Pace())
            for length in lengths:
                seq.append(segment(length))
            pool = PagePool(50)
            seq.pages = pool.allocate(-(-total // 4))
            seq.num_scheduled = computed
            seq.advance(computed)
            pool.release(seq.cut(kept, 4))
            assert seq.length == kept
            assert seq.num_computed == min(kept, computed)
            pool.check_integrity([seq.pages])


def test_pending_is_a_queue_of_ready_rows() -> None:
    seq = Sequence(0, "a", Role.THINKER, 0, Pace(), deque([segment(3)]))
    seq.append(Segment(np.zeros((3, 2), np.int64)))  # an encoder still works on it
    assert seq.num_ready(10) == 3
    assert seq.num_pending == 5


def test_lateness_is_how_long_a_listener_waits_for_the_first_or_the_next_sound() -> None:
    pace = Pace()
    assert pace.lateness_ms(1e6) == 0  # nobody waits while the user speaks
    pace.wait(1000, speech=True)
    assert pace.lateness_ms(1700) == 700
    pace.deliver(24_000, 2000)
    assert pace.lateness_ms(2900) == 0
    assert pace.lateness_ms(3250) == 250  # run dry
    pace.is_held = True
    assert pace.lateness_ms(9000) == 0
    pace.listen(0)
    assert pace.lateness_ms(9000) == 0
