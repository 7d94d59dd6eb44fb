"""Engine: commands in, replies out; one step is one forward of one sub-model for everyone who waits for it.

Synchronous, one thread, no clock of its own: who drives it says what time it is. Faults stay where they belong: bad
input fails a turn, a fault in a step fails the sessions of that step.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent import futures
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.attention import preferred_page_size
from model.mel import LogMel
from streaming.engine.codec_stage import WindowContent
from streaming.engine.conversation import Conversation, TurnState
from streaming.engine.pages import IntegrityError, PagePool, PrefixCache
from streaming.engine.pictures import Pictures, decode_pictures
from streaming.engine.runner import EncodeContent, Runner, StepOutput
from streaming.engine.scheduler import Limits, Scheduler, StepPlan
from streaming.engine.sequence import SAMPLES_PER_MS, Phase, Role, Segment
from streaming.engine.shared import Shared
from streaming.errors import RequestFailed
from streaming.packets import (
    AppendImage,
    AppendPair,
    Capacity,
    CloseSession,
    Command,
    OpenSession,
    Reply,
    SessionFailed,
    SessionOpened,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq
    from concurrent.futures import Future

    from model.omni import Omni
    from streaming.engine.config import EngineConfig
    from streaming.engine.conversation import TurnCommand
    from streaming.engine.graphs import Capture

log = logging.getLogger(__name__)

OUT_OF_MEMORY_PAUSE_MS = 60_000


class EngineDead(RuntimeError):
    """The device or the bookkeeping can no longer be trusted: the worker must be started anew."""


class Engine:
    """Many conversations on one checkpoint."""

    def __init__(
        self,
        omni: Omni,
        config: EngineConfig,
        capture: Capture | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`capture`: see `Runner`. `wake`: called from any thread when there is work again.

        Raises:
            ValueError: settings that do not fit the checkpoint.
        """
        limit = omni.config.thinker.decoder.max_position_embeddings
        wanted = preferred_page_size(omni.model.thinker.model.attend)
        config = replace(config, page_size=config.page_size or wanted)
        self.omni, self.config = omni, config
        self.context_tokens = min(config.context_tokens or limit, limit)
        pages_per_lane = -(-self.context_tokens // config.page_size)
        self.num_pages = config.num_pages or pages_per_lane * config.num_lanes
        roles = [Role.THINKER, Role.TALKER] if omni.config.has_speech else [Role.THINKER]
        pools = {role: PagePool(self.num_pages) for role in roles}
        self._prefixes = {
            r: PrefixCache(p, config.page_size, config.max_prefixes) for r, p in pools.items()
        }
        self.scheduler = Scheduler(self._limits(), pools, self._prefixes)
        self.runner = Runner(omni, config, self.num_pages, self.context_tokens, capture)
        self.conversations: dict[str, Conversation] = {}
        self.num_steps = 0
        self._free_lanes = deque(range(config.num_lanes))
        self._unshared: dict[str, tuple[int, ...]] = {}
        """System prompts that are not in the prefix cache yet, by the session that computes them."""
        self._num_opened = 0
        self._wake = wake
        self._sounding: tuple[StepPlan, Future[list[bytes]]] | None = None
        """Windows that the codec makes beside the step loop."""
        self._sacrificed_ms: float | None = None
        """When a session last paid for memory that was missing."""
        self._outbox: list[Reply] = []
        audio = omni.config.thinker.audio
        self._shared = Shared(
            omni,
            config,
            self.context_tokens,
            self.scheduler,
            self.runner,
            LogMel(audio.num_mel_bins, audio.block_frames),
            self._outbox.append,
        )

    @property
    def capacity(self) -> Capacity:
        voices = tuple(self.omni.voices)
        config = self.config
        return Capacity(
            config.num_lanes, self.num_pages, config.page_size, self.context_tokens, voices
        )

    def has_work(self, now_ms: float) -> bool:
        """There is something to do or to wait for without any command: call `step`."""
        return self._sounding is not None or self.can_step(now_ms)

    def can_step(self, now_ms: float) -> bool:
        """A step would do something at once. While only the codec's thread is at work, it would wait for that."""
        is_made = self._sounding is not None and self._sounding[1].done()
        return is_made or bool(self._outbox) or self.scheduler.has_runnable(now_ms)

    @property
    def is_busy(self) -> bool:
        """A reply is being made; for status reports, from any thread."""
        return any(c.state is TurnState.REPLYING for c in list(self.conversations.values()))

    def lateness_ms(self, now_ms: float) -> float:
        """How long the most neglected reply has been due; for status reports, from any thread."""
        paces = [c.pace for c in list(self.conversations.values())]
        return max((pace.lateness_ms(now_ms) for pace in paces), default=0.0)

    def wake_ms(self, now_ms: float) -> float | None:
        """When a reply that waits for its playback may go on; None if only a command can bring work."""
        return self.scheduler.wake_ms(now_ms)

    def submit(self, command: Command | Pictures, now_ms: float) -> None:
        """Take one command. What it answers leaves with the next `step`.

        Pictures that nobody has decoded yet are decoded here.
        """
        if isinstance(command, AppendPair | AppendImage):
            command = decode_pictures(command, self.config.max_image_pixels)
        match command:
            case OpenSession():
                self._open(command)
            case CloseSession():
                self._close(command.session_id)
            case _:
                self._receive(command, now_ms)

    def step(self, now_ms: float) -> list[Reply]:
        """Plan, run, commit; return every reply that became ready. Waits if all there is to do is in the making.

        Raises:
            EngineDead: nothing more can be computed here.
        """
        if self._sounding is not None and not self.can_step(now_ms):
            futures.wait([self._sounding[1]])
        self._collect_sound(now_ms)
        plan = self.scheduler.plan(now_ms)
        if plan is not None:
            self._run(plan, now_ms)
        elif self.scheduler.starved:
            self._fail_starved()
        replies = list(self._outbox)
        self._outbox.clear()
        return replies

    def check_integrity(self) -> None:
        """Raises IntegrityError if a page or a lane has been lost or is held twice."""
        self.scheduler.check_integrity()
        used = [c.lane for c in self.conversations.values()]
        if sorted([*used, *self._free_lanes]) != list(range(self.config.num_lanes)):
            raise IntegrityError(
                f"lanes {used} in use and {list(self._free_lanes)} free do not add up"
            )

    def _limits(self) -> Limits:
        config, codec = self.config, self.omni.model.token2wav
        window_ms = 0.0
        if codec is not None:
            codes = codec.planner.schedule.max_blocks * codec.planner.block_codes
            # The rest of a reply: a full window and all but one code of the next leave together.
            window_ms = 2 * codes * codec.config.samples_per_code / SAMPLES_PER_MS
        if window_ms >= config.max_lead_ms:
            raise ValueError(
                f"max_lead_ms {config.max_lead_ms} must be above {window_ms:.0f}, the most sound that one "
                "codec call can add; raise it or shorten the windows"
            )
        is_gpu = self.omni.device.type == "cuda"
        block_frames = self.omni.config.thinker.audio.block_frames
        return Limits(
            max_batch=config.num_lanes,
            prefill_tokens=config.prefill_tokens,
            job_sizes={
                Role.AUDIO: config.encode_blocks * block_frames,
                Role.VISION: config.encode_patches,
                Role.CODEC: 1 << 30,
            },
            max_lead_ms=config.max_lead_ms,
            guard_ms=config.guard_ms,
            window_ms=window_ms,
            page_size=config.page_size,
            reserve_pages=config.num_lanes,
            fill_batches=is_gpu,
        )

    # ---- sessions

    def _open(self, command: OpenSession) -> None:
        session_id = command.session_id
        if session_id in self.conversations:
            self._refuse(session_id, "session_exists", "this session is open already")
            return
        if not self._free_lanes:
            self._refuse(session_id, "worker_full", f"all {self.config.num_lanes} places are taken")
            return
        number = self._num_opened
        try:
            opened = Conversation(
                session_id, number, self._free_lanes[0], command.settings, self._shared
            )
        except (RequestFailed, ValueError) as fault:
            code = fault.code if isinstance(fault, RequestFailed) else "invalid_settings"
            self._refuse(session_id, code, str(fault))
            return
        needed = -(-len(opened.prompt.ids) // self.config.page_size) + 1
        if any(pool.num_free < needed and not self._make_room(needed) for pool in self._pools()):
            self._refuse(session_id, "worker_full", "too few pages are free for the system prompt")
            return
        self._num_opened += 1
        self._free_lanes.popleft()
        self.conversations[session_id] = opened
        self.scheduler.add(session_id, opened.pace, opened.prompt.sequences)
        self._use_prefix(opened)
        self._outbox.append(SessionOpened(session_id))

    def _close(self, session_id: str) -> None:
        closed = self.conversations.pop(session_id, None)
        if closed is None:
            return
        self.scheduler.remove(session_id)
        self._unshared.pop(session_id, None)
        self._free_lanes.append(closed.lane)
        if not self.conversations:
            self.check_integrity()

    def _fail(self, session_id: str, code: str, message: str) -> None:
        self._outbox.append(SessionFailed(session_id, code, message))
        self._close(session_id)

    def _refuse(self, session_id: str, code: str, message: str) -> None:
        """A session that could not be opened; one of that name that is open lives on."""
        self._outbox.append(SessionFailed(session_id, code, message))

    def _receive(self, command: TurnCommand, now_ms: float) -> None:
        conversation = self.conversations.get(command.session_id)
        if conversation is None:
            # The session failed or was closed a moment ago, and its gateway has not heard of it yet.
            log.debug("packet for an unknown session kind=%s", type(command).__name__)
            return
        conversation.receive(command, now_ms)

    def _pools(self) -> list[PagePool]:
        return list(self.scheduler.pools.values())

    def _make_room(self, needed: int) -> bool:
        """Give up unused prefixes until `needed` pages are free in every pool."""
        while any(pool.num_free < needed for pool in self._pools()):
            num_evicted = sum(cache.evict() for cache in self._prefixes.values())
            if not num_evicted:
                return False
        return True

    # ---- prefixes

    def _use_prefix(self, opened: Conversation) -> None:
        """Take over the keys and values of a system prompt that another session has computed."""
        ids = opened.prompt.ids
        found = [self._prefixes[s.role].lookup(ids) for s in opened.prompt.sequences]
        if not all(found):
            for seq, pages in zip(opened.prompt.sequences, found, strict=True):
                self.scheduler.pools[seq.role].release(pages)
            self._unshared[opened.session_id] = ids
            return
        for seq, pages in zip(opened.prompt.sequences, found, strict=True):
            self._adopt(seq.role, pages, seq.pages)
            seq.skip(len(pages) * self.config.page_size)

    def _adopt(self, role: Role, shared: list[int], pages: list[int]) -> None:
        """Share pages where attention reads tables; copy them where it reads runs, so that a run it stays."""
        if self.omni.device.type == "cuda":
            pages += shared
            return
        pool = self.scheduler.pools[role]
        pages += pool.allocate(len(shared))
        self.runner.copy_pages(role, shared, pages)
        pool.release(shared)

    def _offer_prefixes(self, plan: StepPlan) -> None:
        for session_id in plan.session_ids:
            ids = self._unshared.get(session_id)
            conversation = self.conversations.get(session_id)
            if ids is None or conversation is None:
                continue
            if all(s.num_computed >= len(ids) for s in conversation.prompt.sequences):
                for seq in conversation.prompt.sequences:
                    self._prefixes[seq.role].insert(ids, seq.pages)
                del self._unshared[session_id]

    # ---- steps

    def _run(self, plan: StepPlan, now_ms: float) -> None:
        if plan.role is Role.CODEC and self.runner.codec and self.runner.codec.has_thread:
            self._guard(plan, lambda: self._start_sound(plan))
        else:
            self._guard(plan, lambda: self._run_fitting(plan, now_ms))

    def _guard(self, plan: StepPlan, work: Callable[[], None]) -> None:
        """Do the work of a plan; a fault in it fails the plan's sessions and nobody else's."""
        try:
            work()
        except (IntegrityError, EngineDead):
            raise
        except Exception as fault:
            log.exception("step failed role=%s phase=%s", plan.role.name, plan.phase.name)
            self._fail_step(plan, fault)

    def _start_sound(self, plan: StepPlan) -> None:
        """Let the codec's thread make the windows of a plan, while steps of everything else go on."""
        self.scheduler.commit(plan)
        self.scheduler.busy_roles.add(Role.CODEC)
        made = self.runner.start_windows(plan)
        self._sounding = plan, made
        made.add_done_callback(lambda _: self._wake())

    def _collect_sound(self, now_ms: float) -> None:
        if self._sounding is None or not self._sounding[1].done():
            return
        (plan, made), self._sounding = self._sounding, None
        self.scheduler.busy_roles.discard(Role.CODEC)
        self._guard(plan, lambda: self._finish_sound(plan, made, now_ms))

    def _finish_sound(self, plan: StepPlan, made: Future[list[bytes]], now_ms: float) -> None:
        self._deliver_sound(plan, made.result(), now_ms)
        self.num_steps += 1

    def _deliver_sound(self, plan: StepPlan, sounds: list[bytes], now_ms: float) -> None:
        for job, pcm in zip(plan.jobs, sounds, strict=True):
            assert isinstance(job.content, WindowContent)
            owner, conversation = job.content.owner, self.conversations.get(job.session_id)
            # The reply may have been cancelled, its session closed, its lane given away in the meantime.
            if conversation is not None and conversation.reply is owner and not owner.is_over:
                conversation.window_done(pcm, job.content.is_last, now_ms)

    def _run_fitting(self, plan: StepPlan, now_ms: float) -> None:
        """Run a plan, or its more urgent half if it does not fit the memory; if that does not either, one session pays.

        What was left out is planned again.
        """
        try:
            output = self.runner.run(plan)
        except torch.OutOfMemoryError:
            self._free_memory(plan)
            if plan.size == 1:
                self._sacrifice(plan, now_ms)
                return
            plan = self.scheduler.halve(plan)
            try:
                output = self.runner.run(plan)
            except torch.OutOfMemoryError:
                self._free_memory(plan)
                self._sacrifice(plan, now_ms)
                return
        self._commit(plan, output, now_ms)
        self.num_steps += 1

    def _free_memory(self, plan: StepPlan) -> None:
        log.warning("out of memory role=%s sessions=%d", plan.role.name, len(plan.session_ids))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _sacrifice(self, plan: StepPlan, now_ms: float) -> None:
        """Fail the youngest session of a plan that did not fit; twice in a minute, there is no hope for the others."""
        self.scheduler.abandon(plan)
        before, self._sacrificed_ms = self._sacrificed_ms, now_ms
        youngest = self.scheduler.youngest(plan.session_ids)
        self._fail(youngest, "out_of_memory", "the worker ran out of memory; try again later")
        if before is not None and now_ms - before < OUT_OF_MEMORY_PAUSE_MS:
            raise EngineDead("out of memory twice in a minute")

    def _fail_step(self, plan: StepPlan, fault: Exception) -> None:
        """Give up the sessions of a plan that raised; the others go on."""
        for session_id in plan.session_ids:
            if session_id in self.conversations:
                self._fail(session_id, "server_error", "an internal error ended the session")
        if _is_sticky(fault):
            raise EngineDead("the device no longer answers") from fault
        self.scheduler.check_integrity()

    def _fail_starved(self) -> None:
        """Nothing runs for want of pages: the youngest session that waits for some gives up its own."""
        youngest = self.scheduler.youngest(self.scheduler.starved)
        self._fail(
            youngest, "out_of_pages", "the worker's conversation memory is full; try again later"
        )

    def _commit(self, plan: StepPlan, output: StepOutput, now_ms: float) -> None:
        segments = self._talker_segments(plan, output)
        self.scheduler.commit(plan)
        if plan.phase is Phase.ENCODE:
            for job, rows in zip(plan.jobs, output.rows, strict=True):
                assert isinstance(job.content, EncodeContent)
                job.content.segment.rows = rows
        elif plan.role is Role.CODEC:
            self._deliver_sound(plan, output.pcm, now_ms)
        else:
            self._commit_tokens(plan, output, segments, now_ms)
        if plan.phase is Phase.PREFILL and self._unshared:
            self._offer_prefixes(plan)

    def _commit_tokens(
        self, plan: StepPlan, output: StepOutput, segments: Seq[Segment | None], now_ms: float
    ) -> None:
        for i, (entry, token) in enumerate(zip(plan.entries, output.tokens, strict=True)):
            conversation = self.conversations[entry.seq.session_id]
            if plan.phase is Phase.PREFILL:
                if plan.role is Role.THINKER:
                    conversation.thinker_prefilled(segments[i], token, now_ms)
                continue
            assert token is not None
            if plan.role is Role.THINKER:
                conversation.thinker_decoded(token, now_ms)
            else:
                conversation.talker_decoded(token, now_ms)

    def _talker_segments(self, plan: StepPlan, output: StepOutput) -> list[Segment | None]:
        """What the Talker is fed for a Thinker prefill: the same positions, the Thinker's rows."""
        if not output.rows or plan.role is not Role.THINKER:
            return [None] * len(plan.entries)
        segments: list[Segment | None] = []
        for entry, rows in zip(plan.entries, output.rows, strict=True):
            pieces = entry.seq.next_pieces(entry.length)
            positions = [p.segment.positions[:, p.start : p.stop] for p in pieces]
            segments.append(Segment(np.concatenate(positions, axis=1), rows=rows))
        return segments


def _is_sticky(fault: Exception) -> bool:
    """A CUDA fault that leaves the context unusable."""
    return isinstance(fault, RuntimeError) and "CUDA error" in str(fault)
