"""Codec tokens to mel by solving the flow, a whole clip or a window at a time, with everything
exact cached.

A window holds new blocks, whose mel becomes final, and look-ahead blocks, whose mel is provisional:
they are solved so that the last new block sees its future, and solved again when that future is
complete. Of the blocks before the window only keys and values of the one block next to it are
needed, in the back-looking layers, once per evaluation: `DitState`.

              ┌ remembered ┐┌────── window ──────┐
    …  b-2      b-1           b     b+1     b+2     b+3  …
              keys, values    └─ new ─┘   look-ahead
                              (kept)  └→ remembered for the next window

What is cached: per voice `condition`; per code id the input projection; per distinct solver time
every modulation.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.codec.dit import Dit, Modulation, PastBlock, TimeModulations
from model.codec.solver import integrate, time_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.codec.voice import Voice
    from model.config import SolverConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(slots=True)
class DitState:
    """What windows remember, per lane.

    `kv` [L, evaluations, back-looking layers, rows, block, 2, H, D] holds keys (not rotated) and
    values of the last new block; it is NaN where nothing has been remembered.
    """

    kv: Tensor
    has_past: list[bool]

    def reset(self, lanes: Sequence[int]) -> None:
        for lane in lanes:
            self.has_past[lane] = False


class FlowSampler:
    """Solve the flow of one network with one solver.

    Build it after the weights are loaded and in place; weights that change afterwards need a new
    one.
    """

    def __init__(self, dit: Dit, solver: SolverConfig) -> None:
        self.dit, self.solver = dit, solver
        self.plan = time_plan(solver)
        self._back_layers = sorted(set(dit.config.look_backward_layers))
        with torch.no_grad():
            # Computed once, so computed in float32 whatever the weights are.
            self._linears = [block.packed_linears() for block in dit.blocks]
            self._modulations = _modulations(dit, self.plan.times)
            mel_columns, _, code_columns, _ = dit.input_embed.split_weight()
            self._mel_weight = mel_columns.contiguous()
            table = dit.text_embed.codec_embed.weight.float() @ code_columns.float().T
            self._code_table = table.to(self.dtype)

    @property
    def device(self) -> torch.device:
        return self._mel_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.proj_out.weight.dtype

    def condition(self, voice: Voice) -> Tensor:
        """What `voice` adds to every frame of the network's input, per row: [rows, C].

        The second row is the unconditioned one, complete with its constant code 0: speaker vector
            of a silent
        reference (which is not zero), `cond` of zeros.
        """
        embed = self.dit.input_embed
        cond = voice.cond.to(self.device, torch.float32)
        ref_mel = voice.ref_mel.to(self.device, torch.float32)
        with torch.no_grad():
            encoder = _in_float32(embed.spk_encoder)
            _, speaker_columns, _, cond_columns = (w.float() for w in embed.split_weight())
            bias = embed.proj.bias.float()
            rows = [
                F.linear(encoder(ref_mel[None])[0], speaker_columns, bias) + cond_columns @ cond
            ]
            if self.solver.num_rows == 2:
                silent = encoder(torch.zeros_like(ref_mel)[None])[0]
                code = self._code_table[0].float()
                rows.append(F.linear(silent, speaker_columns, bias) + code)
            return torch.stack(rows).to(self.dtype)

    def init_state(self, num_lanes: int) -> DitState:
        config = self.dit.config
        shape = (
            num_lanes, self.solver.num_evaluations, len(self._back_layers), self.solver.num_rows,
            config.block_size, 2, config.num_attention_heads, config.head_dim,
        )  # fmt: skip
        kv = torch.full(shape, math.nan, device=self.device, dtype=self.dtype)
        return DitState(kv, [False] * num_lanes)

    def sample(self, codes: Tensor, noise: Tensor, conditions: Tensor) -> Tensor:
        """Decode a whole clip at once: the published definition.

        Args:
            codes: [B, n], at most `max_position_embeddings` mel frames' worth.
            noise: [B, n · repeats, M] float32, standard normal.
            conditions: one `condition` per row, [B, rows, C].

        Returns:
            mel [B, n · repeats, M] float32.
        """
        self.dit.check_codes(codes)
        return self._solve(codes, noise, conditions, None)

    def solve_window(
        self,
        codes: Tensor,
        noise: Tensor,
        conditions: Tensor,
        state: DitState,
        lanes: Sequence[int],
        num_new_blocks: int | None,
    ) -> Tensor:
        """Solve the next window of some lanes that are all at the start of their clip, or all past
        it.

        Nothing here depends on the absolute position, so lanes at different times batch; codes are
        not checked (that would wait for the device).

        Args:
            codes: [B, n] of new and look-ahead blocks; whole blocks, unless it is the last window.
            noise: [B, n · repeats, M] float32, standard normal, of these very mel frames.
            conditions: one `condition` per row, [B, rows, C].
            num_new_blocks: how many leading blocks become final; None for the last window, all of
                which is.

        Returns:
            mel [B, n · repeats, M] float32: final, then provisional.

        Raises:
            ValueError: the window is not cut between blocks, or the lanes are not in phase.
        """
        block_codes, num_codes = self.dit.config.block_codes, codes.shape[1]
        if num_new_blocks is not None and (
            num_codes % block_codes or not 0 < num_new_blocks * block_codes <= num_codes
        ):
            raise ValueError(
                f"a window of {num_codes} codes with {num_new_blocks} new blocks is not cut "
                f"between blocks of {block_codes}; only the last window may be"
            )
        has_past = {state.has_past[lane] for lane in lanes}
        if len(has_past) != 1:
            raise ValueError(f"lanes {list(lanes)} are not in phase: only some have a past")
        rows = torch.tensor(list(lanes)).to(state.kv.device, non_blocking=True)
        mel = self.compute_window(
            codes, noise, conditions, state.kv, rows, num_new_blocks, has_past=has_past.pop()
        )
        for lane in lanes:
            state.has_past[lane] = num_new_blocks is not None
        return mel

    def compute_window(
        self,
        codes: Tensor,
        noise: Tensor,
        conditions: Tensor,
        kv: Tensor,
        rows: Tensor,
        num_new_blocks: int | None,
        *,
        has_past: bool,
    ) -> Tensor:
        """Do the device's part of `solve_window`, unchecked: for capture in a graph.

        `rows` [B] are the lanes, as a tensor beside `kv`. The caller keeps `has_past` in step.
        """
        kept = None
        if num_new_blocks is not None:
            block = self.dit.config.block_size
            kept = slice((num_new_blocks - 1) * block, num_new_blocks * block)
        past = _PastWindow(kv, rows, kept, has_past)
        return self._solve(codes, noise, conditions, past)

    def _solve(
        self, codes: Tensor, noise: Tensor, conditions: Tensor, past: _PastWindow | None
    ) -> Tensor:
        dit, guidance = self.dit, self.solver.guidance
        num_rows = self.solver.num_rows
        bias = self._input_bias(codes, conditions)
        past_frames = dit.config.block_size if past is not None and past.has_past else 0
        geometry = dit.geometry(noise.shape[1], past_frames)

        def velocity(evaluation: int, x: Tensor) -> Tensor:
            h = F.linear(x.to(self.dtype), self._mel_weight)[:, None] + bias  # [B, rows, T, C]
            modulations = self._modulations[self.plan.time_of_evaluation[evaluation]]
            v = dit.run_layers(
                h.flatten(0, 1),
                modulations,
                geometry,
                self._linears,
                self._past_by_layer(past, evaluation),
            )
            v = v.float().view(-1, num_rows, *v.shape[1:])
            if num_rows == 1:
                return v[:, 0]
            return torch.add(v[:, 0], v[:, 0] - v[:, 1], alpha=guidance)

        return integrate(velocity, noise * dit.config.noise_scale, self.solver, self.plan)

    def _input_bias(self, codes: Tensor, conditions: Tensor) -> Tensor:
        """Everything of the embedded input that is not noisy mel: [B, rows, T, C]."""
        coded = self._code_table[codes].repeat_interleave(self.dit.config.repeats, dim=1)
        conditioned = coded + conditions[:, :1]
        if self.solver.num_rows == 1:
            return conditioned[:, None]
        return torch.stack([conditioned, conditions[:, 1:].expand_as(conditioned)], dim=1)

    def _past_by_layer(
        self, past: _PastWindow | None, evaluation: int
    ) -> list[PastBlock | None] | None:
        if past is None:
            return None
        by_layer: list[PastBlock | None] = [None] * self.dit.config.num_hidden_layers
        for slot, layer in enumerate(self._back_layers):
            by_layer[layer] = _RememberedBlock(past, evaluation, slot)
        return by_layer


@dataclass(frozen=True, slots=True)
class _PastWindow:
    """One window's view of the state: which lanes, and which frames of it are remembered."""

    kv: Tensor
    rows: Tensor
    kept: slice | None
    has_past: bool


@dataclass(frozen=True, slots=True)
class _RememberedBlock(PastBlock):
    window: _PastWindow
    evaluation: int
    slot: int

    def exchange(self, kv: Tensor) -> Tensor | None:
        window, table = self.window, self.window.kv
        where = (window.rows, self.evaluation, self.slot)
        past = table[where].flatten(0, 1) if window.has_past else None
        if window.kept is not None:
            kept = kv[:, window.kept]
            table[where] = kept.reshape(len(window.rows), -1, *kept.shape[1:])
        return past


def _modulations(dit: Dit, times: Sequence[float]) -> list[TimeModulations]:
    """What each time does to the network, as vectors ready for use."""
    t = torch.tensor(times, dtype=torch.float32, device=dit.proj_out.weight.device)
    dtype = dit.proj_out.weight.dtype
    time = _in_float32(dit.time_embed)(t)
    norm_out = _in_float32(dit.norm_out)(time)
    layers: list[tuple[Tensor, ...]] = []
    for block in dit.blocks:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = _in_float32(block.attn_norm)(time)
        parts = (shift, 1 + scale, gate, ff_shift, 1 + ff_scale, ff_gate)
        layers.append(tuple(p.to(dtype).contiguous() for p in parts))
    out_scale, out_shift = ((1 + norm_out[0]).to(dtype), norm_out[1].to(dtype))
    return [
        TimeModulations(
            tuple(Modulation(*(p[i] for p in parts)) for parts in layers),
            out_scale[i],
            out_shift[i],
        )
        for i in range(len(times))
    ]


def _in_float32(module: ModuleT) -> ModuleT:
    weight = next(module.parameters())
    return module if weight.dtype == torch.float32 else copy.deepcopy(module).float()
