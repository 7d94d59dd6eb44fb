"""Reply options: what the settings of a response say to the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.tools import CALL_BEGIN
from streaming.packets import ReplyOptions, SamplingOptions

if TYPE_CHECKING:
    from server.settings import Sampling, Settings


def reply_options(settings: Settings, *, has_speech: bool) -> ReplyOptions:
    """Return how the worker makes a reply under these settings."""
    has_tools = bool(settings.tools) and settings.tool_choice != "none"
    return ReplyOptions(
        speech=settings.speaks and has_speech,
        voice=settings.voice,
        thinker=_sampling(settings.sampling),
        max_text_tokens=settings.max_output_tokens,
        noise_seed=settings.sampling.seed or 0,
        silent_from=CALL_BEGIN if has_tools else None,
    )


def _sampling(asked: Sampling) -> SamplingOptions | None:
    """Return how text is drawn; None as the model does it, if the client leaves that to it."""
    given = (asked.temperature, asked.top_p, asked.top_k, asked.repetition_penalty)
    if all(value is None for value in given):
        return None
    return SamplingOptions(
        1.0 if asked.temperature is None else asked.temperature,
        asked.top_k or 0,
        1.0 if asked.top_p is None else asked.top_p,
        asked.repetition_penalty or 1.0,
        asked.seed or 0,
    )
