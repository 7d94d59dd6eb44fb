"""EngineConfig: everything a worker is told at start, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from model.config import ConfigError, SolverConfig

Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "bf16", "fp16", "fp32"]
Weights = Literal["plain", "int8"]


class EngineConfigError(ValueError):
    """A setting cannot be used; the message names it and what it may be."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and limits of one worker.

    Args:
        model: checkpoint folder or hub name.
        num_lanes: sessions at the same time.
        page_size: key-value positions per page; 0 takes what the attention kernel wants.
        num_pages: pages of Thinker and of Talker each; None gives every lane a full context.
        context_tokens: longest conversation; None is the checkpoint's limit.
        prefill_tokens: most rows of one prefill step; what a playing session may have to wait for.
        encode_blocks: most 2-second blocks of sound that one call encodes.
        encode_patches: most picture patches that one call encodes.
        max_text_tokens: most text tokens of one reply.
        max_codes: most codec tokens of one reply.
        max_lead_ms: a reply further ahead of its playback waits.
        guard_ms: a playout that runs dry within this time goes before everything else.
        codec_solver: `method:points:guidance` of the codec's flow, `euler:5:0` say; empty is the checkpoint's own.
        max_prefixes: system prompts whose pages are kept for the next session.
        use_codec_thread: make sound beside the step loop, on a core of its own; without effect on a GPU.
        use_graphs: replay decode steps as CUDA graphs; without effect on a CPU.
        threads: of torch on a CPU; more than one stalls small kernels on a busy machine.
    """

    model: str = ""
    device: Device = "cpu"
    dtype: Dtype = "auto"
    weights: Weights = "plain"
    num_lanes: int = 16
    page_size: int = 0
    num_pages: int | None = None
    context_tokens: int | None = None
    prefill_tokens: int = 128
    encode_blocks: int = 8
    encode_patches: int = 16_384
    max_text_tokens: int = 1024
    max_codes: int = 4096
    max_lead_ms: int = 3000
    guard_ms: int = 300
    codec_solver: str = ""
    max_prefixes: int = 16
    max_image_pixels: int = 40_000_000
    use_codec_thread: bool = True
    use_graphs: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        for name in (
            "num_lanes", "prefill_tokens", "encode_blocks", "encode_patches", "max_text_tokens",
            "max_codes", "max_image_pixels", "threads",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise EngineConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        _ = self.solver
        for name in ("guard_ms", "max_prefixes", "page_size"):
            if getattr(self, name) < 0:
                raise EngineConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("num_pages", "context_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineConfigError(f"{name} is {value}; it must be at least 1, or left out")

    @property
    def solver(self) -> SolverConfig | None:
        """`codec_solver` parsed; None for the checkpoint's own. Raises EngineConfigError."""
        if not self.codec_solver:
            return None
        try:
            method, points, guidance = self.codec_solver.split(":")
            return SolverConfig(
                cast("Literal['rk4', 'euler']", method), int(points), float(guidance)
            )
        except (ValueError, ConfigError) as fault:
            raise EngineConfigError(
                f"codec_solver is {self.codec_solver!r}; it must be method:points:guidance such as "
                f"euler:5:0 ({fault})"
            ) from None
