"""What runs next and how much of it: pure Python, no clock, no tensors; equal inputs give equal plans.

A plan is one forward of one sub-model. The most urgent session chooses which one; everyone else who waits for the same
kind of work joins. Urgency, in this order:

    1. playouts that run dry within `guard_ms`, the driest first
    2. first packets (and every reply nobody has heard of yet): due now, the longest waiting first
    3. all other playouts and what is heard while a user speaks, by the moment it is due

A reply that is held, or whose next window could put it more than `max_lead_ms` ahead of its playback, is not runnable.
Within one session the later stage goes first, so that what is begun gets out; the Thinker is then one row ahead of the
Talker.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streaming.engine.pages import OutOfPages
from streaming.engine.sequence import Job, Phase, Role, Sequence, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streaming.engine.pages import PagePool, PrefixCache
    from streaming.engine.sequence import Pace

Urgency = tuple[int, float]

# Later stages first.
ORDER = {
    (Role.CODEC, Phase.DECODE): 0,
    (Role.TALKER, Phase.DECODE): 1,
    (Role.TALKER, Phase.PREFILL): 2,
    (Role.THINKER, Phase.DECODE): 3,
    (Role.THINKER, Phase.PREFILL): 4,
    (Role.AUDIO, Phase.ENCODE): 5,
    (Role.VISION, Phase.ENCODE): 6,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one step, and how far ahead of playback a reply may be."""

    max_batch: int
    prefill_tokens: int
    job_sizes: Mapping[Role, int]
    """Most that jobs of a call may add up to; one job may be larger."""
    max_lead_ms: float
    guard_ms: float
    window_ms: float
    """Most sound that one call can add to a reply."""
    page_size: int
    reserve_pages: int
    """Prefill leaves this many pages to those who are speaking."""
    fill_batches: bool
    """Let less urgent sessions join: free on a GPU, where a step reads the weights whatever its size; not on a CPU."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A sequence's share of a plan: rows start…start+length-1 of it."""

    seq: Sequence
    start: int
    length: int

    @property
    def draws_token(self) -> bool:
        """The last row is one to sample from: always in a decode, and at the end of a committed prompt."""
        seq = self.seq
        return not seq.pending or (seq.wants_token and self.length == seq.num_pending)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward of one sub-model."""

    role: Role
    phase: Phase
    entries: tuple[Entry, ...] = ()
    jobs: tuple[Job, ...] = ()

    @property
    def size(self) -> int:
        return len(self.entries) + len(self.jobs)

    @property
    def session_ids(self) -> tuple[str, ...]:
        ids = [e.seq.session_id for e in self.entries] + [j.session_id for j in self.jobs]
        return tuple(dict.fromkeys(ids))


@dataclass(slots=True, eq=False)
class Member:
    """Everything of one session that can be planned."""

    session_id: str
    number: int
    """Grows with every session that joins: the highest is the youngest."""
    pace: Pace
    sequences: list[Sequence]
    jobs: dict[Role, deque[Job]] = field(default_factory=dict)
    last_turn: int = -1
    """Grows with every time that anyone is served: among equals, who has waited longest goes first."""


@dataclass(frozen=True, slots=True)
class _Work:
    urgency: Urgency
    order: int
    role: Role
    phase: Phase
    group: tuple[object, ...]
    member: Member
    seq: Sequence | None

    @property
    def key(self) -> tuple[Urgency, int, int, int]:
        return self.urgency, self.order, self.member.last_turn, self.member.number


class Scheduler:
    """Owns the sequences and the page pools."""

    def __init__(
        self,
        limits: Limits,
        pools: Mapping[Role, PagePool],
        prefixes: Mapping[Role, PrefixCache] | None = None,
    ) -> None:
        self.limits = limits
        self.pools = pools
        self.prefixes = prefixes or {}
        self.members: dict[str, Member] = {}
        self.starved: list[str] = []
        """Sessions that the last plan passed over for want of pages, the youngest last."""
        self.busy_roles: set[Role] = set()
        """Sub-models that are at work beside the step loop: nothing is planned for them."""
        self._next_number = 0
        self._num_served = 0

    def add(self, session_id: str, pace: Pace, sequences: list[Sequence]) -> None:
        assert session_id not in self.members
        self.members[session_id] = Member(session_id, self._next_number, pace, sequences)
        self._next_number += 1

    def add_job(self, job: Job) -> None:
        self.members[job.session_id].jobs.setdefault(job.role, deque()).append(job)

    def drop_jobs(self, session_id: str, *roles: Role) -> None:
        for role in roles:
            self.members[session_id].jobs.pop(role, None)

    def remove(self, session_id: str) -> None:
        """Forget a session and free its pages."""
        member = self.members.pop(session_id)
        for seq in member.sequences:
            self.pools[seq.role].release(seq.pages)
            seq.pages = []

    def cut(self, seq: Sequence, length: int) -> None:
        """Shorten a sequence and free the pages it no longer needs."""
        self.pools[seq.role].release(seq.cut(length, self.limits.page_size))

    def plan(self, now_ms: float) -> StepPlan | None:
        """Choose the next step and reserve the pages it writes; None if nothing can run now."""
        self.starved = []
        work = sorted(self._runnable(now_ms), key=lambda w: w.key)
        while work:
            first = work[0]
            kind = (first.role, first.phase, first.group)
            joined = [
                w for w in work if (w.role, w.phase, w.group) == kind and self._joins(w, first)
            ]
            plan = self._fill(first, joined)
            if plan is not None:
                return plan
            work = [w for w in work if (w.role, w.phase, w.group) != kind]
        return None

    def commit(self, plan: StepPlan) -> None:
        """Record that the plan has run."""
        for session_id in plan.session_ids:
            self.members[session_id].last_turn = self._num_served
            self._num_served += 1
        for entry in plan.entries:
            entry.seq.advance(entry.length)
        for job in plan.jobs:
            done = self.members[job.session_id].jobs[job.role].popleft()
            assert done is job

    def abandon(self, plan: StepPlan) -> None:
        """Record that the plan has not run; it may be planned again."""
        for entry in plan.entries:
            entry.seq.num_scheduled = 0

    def halve(self, plan: StepPlan) -> StepPlan:
        """Give up the less urgent half of a plan of several; what is left may be run in its place."""
        assert plan.size > 1
        keep = plan.size // 2
        for entry in plan.entries[keep:]:
            entry.seq.num_scheduled = 0
        return StepPlan(plan.role, plan.phase, plan.entries[:keep], plan.jobs[:keep])

    def wake_ms(self, now_ms: float) -> float | None:
        """When the first reply that waits for its playback may go on; None if none waits."""
        times = [
            m.pace.due_ms + self.limits.window_ms - self.limits.max_lead_ms
            for m in self.members.values()
            if not m.pace.is_held
            and self._is_ahead(m.pace, now_ms)
            and any(self._works_of(m, now_ms))
        ]
        return min(times, default=None)

    def has_runnable(self, now_ms: float) -> bool:
        return next(self._runnable(now_ms), None) is not None

    def youngest(self, session_ids: tuple[str, ...] | list[str]) -> str:
        return max(session_ids, key=lambda i: self.members[i].number)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every page is free or held by exactly those who say so."""
        for role, pool in self.pools.items():
            held = [s.pages for m in self.members.values() for s in m.sequences if s.role is role]
            pool.check_integrity(
                held + (self.prefixes[role].held() if role in self.prefixes else [])
            )

    def _runnable(self, now_ms: float) -> Iterator[_Work]:
        for member in self.members.values():
            if not self._must_wait(member.pace, now_ms):
                yield from self._works_of(member, now_ms)

    def _works_of(self, member: Member, now_ms: float) -> Iterator[_Work]:
        urgency = self._urgency(member.pace, now_ms)
        for role, jobs in member.jobs.items():
            if jobs and role not in self.busy_roles:
                phase = Phase.DECODE if role is Role.CODEC else Phase.ENCODE
                yield self._work(urgency, member, role, phase, jobs[0].group, None)
        for seq in member.sequences:
            if seq.pending:
                if seq.num_ready(1):
                    yield self._work(urgency, member, seq.role, Phase.PREFILL, (), seq)
            elif seq.decode is not None:
                yield self._work(urgency, member, seq.role, Phase.DECODE, (), seq)

    def _work(
        self,
        urgency: Urgency,
        member: Member,
        role: Role,
        phase: Phase,
        group: tuple[object, ...],
        seq: Sequence | None,
    ) -> _Work:
        return _Work(urgency, ORDER[role, phase], role, phase, group, member, seq)

    def _urgency(self, pace: Pace, now_ms: float) -> Urgency:
        if pace.stage is Stage.WAITING:
            return 1, pace.due_ms
        if pace.stage is Stage.PLAYING and pace.due_ms - now_ms < self.limits.guard_ms:
            return 0, pace.due_ms
        return 2, pace.due_ms

    def _must_wait(self, pace: Pace, now_ms: float) -> bool:
        return pace.is_held or self._is_ahead(pace, now_ms)

    def _is_ahead(self, pace: Pace, now_ms: float) -> bool:
        # A lead below a hundredth of a millisecond is a rounding error, not a lead.
        room = self.limits.max_lead_ms - self.limits.window_ms + 0.01
        return pace.has_lead_limit and pace.lead_ms(now_ms) > room

    def _joins(self, work: _Work, first: _Work) -> bool:
        return self.limits.fill_batches or work.urgency[0] <= first.urgency[0]

    def _fill(self, first: _Work, joined: list[_Work]) -> StepPlan | None:
        if first.seq is None:
            return StepPlan(first.role, first.phase, jobs=self._take_jobs(first, joined))
        entries = self._take_entries(first.phase, joined)
        return StepPlan(first.role, first.phase, entries) if entries else None

    def _take_jobs(self, first: _Work, joined: list[_Work]) -> tuple[Job, ...]:
        room = self.limits.job_sizes[first.role]
        taken: list[Job] = []
        for work in joined:
            # A window changes the state that the session's next window starts from: one each.
            depth = 1 if first.role is Role.CODEC else len(work.member.jobs[first.role])
            for job in list(work.member.jobs[first.role])[:depth]:
                if job.group != first.group or (taken and job.size > room):
                    break
                taken.append(job)
                room -= job.size
            if len(taken) >= self.limits.max_batch:
                break
        return tuple(taken)

    def _take_entries(self, phase: Phase, joined: list[_Work]) -> tuple[Entry, ...]:
        room = self.limits.prefill_tokens
        entries: list[Entry] = []
        for work in joined:
            seq = work.seq
            assert seq is not None
            length = 1 if phase is Phase.DECODE else seq.num_ready(room)
            if not length or len(entries) == self.limits.max_batch:
                break
            if not self._reserve(seq, length, phase):
                self.starved.append(seq.session_id)
                continue
            seq.num_scheduled = length
            entries.append(Entry(seq, seq.num_computed, length))
            room -= length if phase is Phase.PREFILL else 0
        return tuple(entries)

    def _reserve(self, seq: Sequence, length: int, phase: Phase) -> bool:
        """Give a sequence the pages it needs for `length` more rows; False if there are too few."""
        page_size = self.limits.page_size
        missing = -(-(seq.num_computed + length) // page_size) - len(seq.pages)
        if missing <= 0:
            return True
        pool = self.pools[seq.role]
        spare = self.limits.reserve_pages if phase is Phase.PREFILL else 0
        while pool.num_free < missing + spare and self._evict(seq.role):
            pass
        if pool.num_free < missing + spare:
            return False
        try:
            seq.pages += pool.allocate(missing, seq.pages[-1] if seq.pages else None)
        except OutOfPages:  # pragma: no cover - the count above forbids it
            return False
        return True

    def _evict(self, role: Role) -> bool:
        return role in self.prefixes and self.prefixes[role].evict()
