"""Codec tokens to sound: windows of the flow, then the vocoder, joined without a lost or repeated
sample.

The flow and the vocoder see only a window, so streamed sound is not the whole-clip decode to the
last bit; it is a pure function of codes, voice, seed and schedule, and its distance to
`decode_whole_clip` is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.codec.dit import Dit
from model.codec.noise import NoiseSource
from model.codec.sampler import DitState, FlowSampler
from model.codec.vocoder import Vocoder
from model.streaming import StreamingModule
from model.windows import Progress, WindowPlan, WindowPlanner, WindowSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.codec.voice import Voice
    from model.config import SolverConfig, Token2WavConfig


@dataclass(slots=True)
class Reply:
    """Host side of one lane: whose noise, how far."""

    noise: NoiseSource
    progress: Progress
    num_codes: int


@dataclass(slots=True)
class DecoderState:
    """State per lane. `codes` stays on the host, where codec tokens are known anyway to see the
    stop token.
    """

    dit: DitState
    conditions: Tensor  # [L, rows, C]
    codes: Tensor  # [L, max_held_codes] int64, CPU; those of no window yet, from the left
    mel: Tensor  # [L, max_held_frames, M]; the newest final mel frames, from the right
    replies: list[Reply | None]

    def reset(self, lanes: Sequence[int]) -> None:
        """Forget reply, voice and seed of these lanes; `assign` starts the next one."""
        self.dit.reset(lanes)
        for lane in lanes:
            self.replies[lane] = None


class CodecDecoder(StreamingModule[DecoderState]):
    """The codec decoder. Parameters carry the published names, so `token2wav.` of a checkpoint
    loads as it is.

    Build, load, put in place, `prepare()`; then per reply `assign` a lane its voice and seed,
    `step` codes as they come, `flush`.
    """

    def __init__(
        self,
        config: Token2WavConfig,
        solver: SolverConfig | None = None,
        schedule: WindowSchedule | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.solver = solver or config.solver
        dit = config.dit
        self.planner = WindowPlanner(schedule or WindowSchedule(), dit.block_codes, dit.repeats)
        self.code2wav_dit_model = Dit(dit)
        self.code2wav_bigvgan_model = Vocoder(config.bigvgan)
        self._sampler: FlowSampler | None = None

    def prepare(self) -> None:
        """Cache what derives from the weights; call once after loading, and again if they
        change.
        """
        self.code2wav_bigvgan_model.prepare()
        self._sampler = FlowSampler(self.code2wav_dit_model, self.solver)

    @property
    def sampler(self) -> FlowSampler:
        if self._sampler is None:
            raise RuntimeError("the codec decoder is not prepared; call prepare() after loading")
        return self._sampler

    def condition(self, voice: Voice) -> Tensor:
        """What the network needs of a voice, [rows, C]; compute once per voice and keep."""
        return self.sampler.condition(voice)

    def init_state(self, num_lanes: int) -> DecoderState:
        sampler, dit = self.sampler, self.config.dit
        rows = (num_lanes, self.solver.num_rows, dit.hidden_size)
        held = (num_lanes, self.planner.max_held_frames, dit.mel_dim)
        return DecoderState(
            dit=sampler.init_state(num_lanes),
            conditions=torch.zeros(rows, device=sampler.device, dtype=sampler.dtype),
            codes=torch.zeros(num_lanes, self.planner.max_held_codes, dtype=torch.int64),
            mel=torch.zeros(held, device=sampler.device),
            replies=[None] * num_lanes,
        )

    def assign(self, state: DecoderState, lane: int, condition: Tensor, seed: int) -> None:
        """Start a reply on a clean lane, spoken by the voice behind `condition` from the noise of
        `seed`.
        """
        state.reset([lane])
        state.conditions[lane] = condition
        noise = NoiseSource(seed, self.config.dit.mel_dim)
        state.replies[lane] = Reply(noise, Progress(), 0)

    def phase(self, state: DecoderState, lane: int) -> tuple[int, ...]:
        """Lanes of equal phase may be stepped in one call, however far each has come."""
        reply = self._reply(state, lane)
        return self.planner.phase(reply.progress, reply.num_codes)

    def step(self, x: Tensor, state: DecoderState, lanes: Sequence[int]) -> Tensor:
        """Take codec tokens [B, n] (on the host, or this waits for the device); return PCM [B,
        samples] float32.

        Raises:
            ValueError: a token is not in the table, a lane has no voice, or the lanes are not in
                phase.
        """
        replies = self._replies(state, lanes)
        self.code2wav_dit_model.check_codes(x)
        held = replies[0].num_codes - replies[0].progress.codes_done
        codes = torch.cat([state.codes[list(lanes), :held], x.to("cpu", torch.int64)], dim=1)
        for reply in replies:
            reply.num_codes += x.shape[1]
        pcm, codes = self._run_windows(codes, state, lanes, is_last=False)
        state.codes[list(lanes), : codes.shape[1]] = codes
        return pcm

    def flush(self, state: DecoderState, lanes: Sequence[int]) -> Tensor:
        """Return the rest of the sound and clear the lanes, voices included.

        Raises:
            ValueError: a lane has no voice, or the lanes are not in phase.
        """
        reply = self._replies(state, lanes)[0]
        held = reply.num_codes - reply.progress.codes_done
        pcm, _ = self._run_windows(state.codes[list(lanes), :held], state, lanes, is_last=True)
        state.reset(lanes)
        return pcm

    def forward(self, codes: Tensor, conditions: Tensor, seeds: Sequence[int]) -> Tensor:
        """Decode complete replies [B, n] by the same windows: PCM [B, n · samples_per_code]."""
        lanes = range(codes.shape[0])
        state = self.init_state(len(lanes))
        for lane in lanes:
            self.assign(state, lane, conditions[lane], seeds[lane])
        return torch.cat([self.step(codes, state, lanes), self.flush(state, lanes)], dim=1)

    def decode_whole_clip(self, codes: Tensor, conditions: Tensor, seeds: Sequence[int]) -> Tensor:
        """Decode complete replies as the reference does, every frame seeing the whole clip; the
        measure of `forward`.
        """
        if not codes.shape[1]:
            return conditions.new_zeros(codes.shape[0], 0, dtype=torch.float32)
        num_frames = codes.shape[1] * self.config.dit.repeats
        sources = [NoiseSource(seed, self.config.dit.mel_dim) for seed in seeds]
        noise = torch.stack([s.frames(0, num_frames) for s in sources]).to(self.sampler.device)
        mel = self.sampler.sample(codes.to(noise.device), noise, conditions)
        return self.code2wav_bigvgan_model.synthesize(mel, 0, 0)

    def _run_windows(
        self, codes: Tensor, state: DecoderState, lanes: Sequence[int], *, is_last: bool
    ) -> tuple[Tensor, Tensor]:
        """Run every window that the waiting `codes` allow; return PCM and the codes that still
        wait.
        """
        replies = self._replies(state, lanes)
        pieces = [state.mel.new_zeros(len(lanes), 0)]
        while True:
            planned = [self.planner.next_window(r.progress, r.num_codes, is_last) for r in replies]
            plans = [plan for plan in planned if plan is not None]
            if not plans:
                return torch.cat(pieces, dim=1), codes
            # Equal phase: every lane has a plan, and they differ in where they start alone.
            plan = plans[0]
            pieces.append(self._run(plans, codes[:, : plan.num_codes], state, lanes))
            codes = codes[:, plan.num_new :]
            for reply, own in zip(replies, plans, strict=True):
                reply.progress = own.after

    def _run(
        self, plans: Sequence[WindowPlan], codes: Tensor, state: DecoderState, lanes: Sequence[int]
    ) -> Tensor:
        """Solve one window and vocode what it released."""
        plan, repeats = plans[0], self.config.dit.repeats
        device, rows = state.mel.device, _on_device(lanes, state.mel.device)
        mel = state.mel[rows]  # frames up to `origin`
        origin = plan.start_code * repeats
        held = mel.shape[1]
        if plan.num_codes:
            starts = [p.start_code * repeats for p in plans]
            noise = torch.stack(
                [
                    self._reply(state, lane).noise.frames(f, f + plan.num_codes * repeats)
                    for f, lane in zip(starts, lanes, strict=True)
                ]
            )
            solved = self.sampler.solve_window(
                codes.to(device, non_blocking=True),
                noise.to(device, non_blocking=True),
                state.conditions[rows],
                state.dit,
                lanes,
                None if plan.is_last else plan.num_new // self.config.dit.block_codes,
            )
            mel = torch.cat([mel, solved], dim=1)
        num_final = plan.final_frames - origin
        state.mel[rows] = mel[:, num_final : num_final + held]
        if plan.first_frame == plan.last_frame:
            return mel.new_zeros(len(lanes), 0)
        return self.code2wav_bigvgan_model.synthesize(
            mel[:, plan.left_frame - origin + held : plan.right_frame - origin + held],
            plan.first_frame - plan.left_frame,
            plan.right_frame - plan.last_frame,
        )

    def _replies(self, state: DecoderState, lanes: Sequence[int]) -> list[Reply]:
        phases = {self.phase(state, lane) for lane in lanes}
        if len(phases) != 1 or len(set(lanes)) != len(lanes):
            raise ValueError(
                f"lanes {list(lanes)} must be distinct and in phase to share a call; "
                "group them by phase()"
            )
        return [self._reply(state, lane) for lane in lanes]

    def _reply(self, state: DecoderState, lane: int) -> Reply:
        reply = state.replies[lane]
        if reply is None:
            raise ValueError(
                f"lane {lane} has no voice; call assign() before its first codec token"
            )
        return reply


def _on_device(lanes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(lanes)).to(device, non_blocking=True)
