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


def _sampling(asked: Sampling) -> SamplingOptions:
    """Return how text is drawn; what the client does not say is left to the model, which may well be greedy."""
    narrows = asked.top_p is not None or asked.top_k is not None
    temperature = 1.0 if asked.temperature is None and narrows else asked.temperature
    return SamplingOptions(
        temperature, asked.top_k, asked.top_p, asked.repetition_penalty, asked.seed
    )
