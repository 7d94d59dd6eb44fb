"""Run: callers against targets, level after level, in one process, on one clock; and the search for the most callers.

Several targets take turns: each level is cut into rounds, and in each round every target is called for an equal time,
one after the other. What disturbs the machine disturbs them alike, so ratios hold where absolute times do not.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from benchmarks.load.caller import Caller, CallFault, Line, Stage
from benchmarks.load.clips import find_clips, load_clip
from benchmarks.load.lag import LagProbe
from benchmarks.load.records import LevelRecord
from benchmarks.load.slo import Outcome, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load.clips import Clip
    from benchmarks.load.records import Run, TurnRecord
    from benchmarks.load.scenario import Scenario
    from benchmarks.load.slo import Slo

REDIAL_S = 2.0
MAX_CALL_ERRORS = 100
PICTURE_SIZE = (320, 240)
NUM_PICTURES = 16


@dataclass(frozen=True, slots=True)
class Target:
    """A server to be called."""

    name: str
    line: Line


class Progress(Protocol):
    """Who is told how it goes."""

    def begin(self, target: str, num_callers: int, duration_s: float) -> None: ...
    def turn(self, turn: TurnRecord) -> None: ...
    def call_error(self, words: str) -> None: ...
    def lag(self, lag_ms: float) -> None: ...
    def end(self, level: LevelRecord) -> None: ...


@dataclass(slots=True)
class Load:
    """Everything that stays the same over a run."""

    scenario: Scenario
    run: Run
    progress: Progress
    clips: dict[str, list[Clip]]
    pictures: list[bytes]
    rounds: int = 1
    max_turns: int | None = None
    """Per caller and round; None: as many as the time allows."""
    _pieces: list[LevelRecord] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        scenario: Scenario,
        run: Run,
        progress: Progress,
        *,
        rounds: int = 1,
        max_turns: int | None = None,
    ) -> Load:
        """Read every file before the first call. Raises ClipFault."""
        clips = {
            group.name: [load_clip(path, scenario.rate) for path in find_clips(group.clips)]
            for group in scenario.callers
        }
        needs_pictures = any(group.video_fps for group in scenario.callers)
        pictures = draw_pictures() if needs_pictures else []
        return cls(scenario, run, progress, clips, pictures, rounds, max_turns)

    async def warm_up(self, targets: Sequence[Target]) -> None:
        """One turn with each target, thrown away: the first turn of a process is not what is being measured.

        Raises:
            CallFault: a target does not answer.
        """
        for target in targets:
            probe = LagProbe(time.perf_counter)
            turns: list[TurnRecord] = []
            stage = self._stage(target, probe, time.perf_counter(), turns.append, max_turns=1)
            caller = Caller(0, self.scenario.cast(1)[0], stage, random.Random(self.run.seed))
            try:
                await caller.call()
            except CallFault as fault:
                raise CallFault(f"{target.name} ({target.line.url}): {fault}") from None

    async def level(self, targets: Sequence[Target], num_callers: int, duration_s: float) -> None:
        """Call every target with so many callers for so long each; records go into the run."""
        pieces: dict[str, list[LevelRecord]] = {target.name: [] for target in targets}
        for round_ in range(self.rounds):
            for target in targets:
                seed = f"{self.run.seed}/{num_callers}/{round_}"
                piece = await self._piece(target, num_callers, duration_s / self.rounds, seed)
                pieces[target.name].append(piece)
        for target in targets:
            level = merge(pieces[target.name])
            self.run.levels.append(level)
            self.progress.end(level)

    async def _piece(
        self, target: Target, num_callers: int, duration_s: float, seed: str
    ) -> LevelRecord:
        self.progress.begin(target.name, num_callers, duration_s)
        probe = LagProbe(time.perf_counter)
        errors: list[str] = []

        def take(turn: TurnRecord) -> None:
            turn.target, turn.num_callers = target.name, num_callers
            self.run.turns.append(turn)
            self.progress.turn(turn)
            self.progress.lag(1000 * (probe.lags_s[-1] if probe.lags_s else 0))

        begun_s = time.perf_counter()
        ramp_s = self.scenario.ramp_s if num_callers > 1 else 0.0
        stage = self._stage(target, probe, begun_s + ramp_s + duration_s, take, self.max_turns)
        async with asyncio.TaskGroup() as tasks:
            probing = tasks.create_task(probe.run(), name="lag probe")
            async with asyncio.TaskGroup() as calls:
                for number, behaviour in enumerate(self.scenario.cast(num_callers)):
                    # The same seed for every target: they hear the same words in the same order.
                    caller = Caller(number, behaviour, stage, random.Random(f"{seed}/{number}"))
                    delay_s = ramp_s * number / num_callers
                    calls.create_task(self._keep_calling(caller, delay_s, errors))
            generator = probe.report()
            probing.cancel()
        return LevelRecord(
            target.name,
            num_callers,
            round(time.perf_counter() - begun_s, 2),
            generator,
            errors,
            round(os.getloadavg()[0], 2),
        )

    async def _keep_calling(self, caller: Caller, delay_s: float, errors: list[str]) -> None:
        await asyncio.sleep(delay_s)
        while not caller.is_done:
            try:
                await caller.call()
            except CallFault as fault:
                if len(errors) < MAX_CALL_ERRORS:
                    errors.append(str(fault))
                self.progress.call_error(str(fault))
                if time.perf_counter() + REDIAL_S >= caller.stage.until_s:
                    return
                await asyncio.sleep(REDIAL_S)

    def _stage(
        self,
        target: Target,
        probe: LagProbe,
        until_s: float,
        on_turn: object,
        max_turns: int | None,
    ) -> Stage:
        return Stage(
            scenario=self.scenario,
            line=target.line,
            clips=self.clips,
            pictures=self.pictures,
            clock=time.perf_counter,
            probe=probe,
            until_s=until_s,
            on_turn=on_turn,  # type: ignore[arg-type]  # TurnRecord to None, of two makes
            max_turns=max_turns,
        )

    async def search(
        self, target: Target, slo: Slo, duration_s: float, most: int
    ) -> tuple[int, list[int]]:
        """Find the most callers with which the objectives are kept: double until they break, then halve the interval.

        Returns:
            That number, 0 if not even one caller keeps them; and every number that was tried, in order.
        """
        tried: list[int] = []

        async def keeps(num_callers: int) -> bool:
            tried.append(num_callers)
            await self.level([target], num_callers, duration_s)
            level = self.run.levels[-1]
            verdict = judge(slo, self.run.of(target.name, num_callers), level)
            return verdict.outcome is Outcome.KEPT

        kept, broken = 0, most + 1
        num_callers = 1
        while kept < most:
            if await keeps(num_callers):
                kept = num_callers
            else:
                broken = num_callers
            num_callers = next_to_try(kept, broken, most)
            if num_callers == 0:
                break
        return kept, tried


def next_to_try(kept: int, broken: int, most: int) -> int:
    """The number of callers to try next, 0 when `kept` is the answer.

    Args:
        kept: most callers so far with which the objectives were kept; 0 for none.
        broken: fewest with which they were not; `most + 1` for none.
    """
    if broken - kept <= 1:
        return 0
    if broken > most:
        return min(most, max(1, 2 * kept))
    return (kept + broken) // 2


def merge(pieces: Sequence[LevelRecord]) -> LevelRecord:
    """Rounds of one level as one record; of the generator's figures the worst."""
    first = pieces[0]
    generators = [piece.generator for piece in pieces]
    worst = type(first.generator)(
        lag_p50_ms=max(g.lag_p50_ms for g in generators),
        lag_p99_ms=max(g.lag_p99_ms for g in generators),
        lag_max_ms=max(g.lag_max_ms for g in generators),
        late_p99_ms=max(g.late_p99_ms for g in generators),
        cpu_share=max(g.cpu_share for g in generators),
    )
    return LevelRecord(
        first.target,
        first.num_callers,
        round(sum(piece.duration_s for piece in pieces), 2),
        worst,
        [error for piece in pieces for error in piece.call_errors],
        max(piece.load_average for piece in pieces),
    )


def draw_pictures() -> list[bytes]:
    """JPEG pictures as a camera would send them: something moves, and there is noise; about 20 kB each."""
    width, height = PICTURE_SIZE
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    made = []
    for k in range(NUM_PICTURES):
        angle = 2 * math.pi * k / NUM_PICTURES
        middle_x = width * (0.5 + 0.3 * math.cos(angle))
        middle_y = height * (0.5 + 0.3 * math.sin(angle))
        ball = np.hypot(x - middle_x, y - middle_y) < height / 6
        room = np.stack((x * 255 / width, y * 255 / height, np.full_like(x, 90)), axis=-1)
        room[ball] = (230, 60, 40)
        noisy = np.clip(room + rng.normal(0, 8, room.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=80)
        made.append(file.getvalue())
    return made
