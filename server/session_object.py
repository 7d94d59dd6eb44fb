"""Session objects: settings as a dialect shows them. Strict clients parse these, so a shape here is a promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.dialect import Dialect
from server.settings import ForcedTool
from streaming.pcm import Encoding

if TYPE_CHECKING:
    from server.identity import Identity
    from server.settings import (
        NamedFormat,
        Settings,
        Tool,
        ToolChoice,
        Transcription,
        TurnDetection,
        VideoSettings,
    )

Members = dict[str, object]

USUAL_TEMPERATURE = 0.8
"""Shown where none is set: flat objects must have a number."""


def session_object(settings: Settings, identity: Identity, dialect: Dialect) -> Members:
    """Return the session object for events and REST answers."""
    shown = _flat(settings, identity, dialect) if dialect.is_flat else _nested(settings, identity)
    if settings.video is not None:
        shown["video"] = {"input": _video(settings.video)}
    return shown


def nested_format(named: NamedFormat) -> Members:
    """Return a sound format as GA objects have it; G.711 has no rate."""
    match named.sound.encoding:
        case Encoding.PCM16:
            return {"type": "audio/pcm", "rate": named.sound.rate}
        case Encoding.ULAW:
            return {"type": "audio/pcmu"}
        case Encoding.ALAW:
            return {"type": "audio/pcma"}


def flat_output_format(named: NamedFormat, dialect: Dialect) -> str:
    """Return the name of an output format in flat objects."""
    is_pcm = named.sound.encoding is Encoding.PCM16
    return "pcm24" if is_pcm and dialect is Dialect.DASHSCOPE else named.name


def modalities(settings: Settings, dialect: Dialect) -> list[str]:
    """Return what replies consist of; GA does not name the transcript beside the sound."""
    if not settings.speaks:
        return ["text"]
    return ["text", "audio"] if dialect.is_flat else ["audio"]


def max_output_tokens(settings: Settings) -> int | str:
    """Return the limit as clients write it."""
    return "inf" if settings.max_output_tokens is None else settings.max_output_tokens


def temperature(settings: Settings) -> float:
    """Return the temperature that flat objects show."""
    own = settings.sampling.temperature
    return USUAL_TEMPERATURE if own is None else own


def _nested(settings: Settings, identity: Identity) -> Members:
    output: Members = {
        "format": nested_format(settings.output_format),
        "voice": settings.voice,
        "speed": settings.speed,
    }
    if settings.delivery != "base64":
        output["delivery"] = settings.delivery
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": identity.session_id,
        "model": identity.model,
        "output_modalities": modalities(settings, Dialect.GA),
        "instructions": settings.instructions or "",
        "tools": [_tool(tool) for tool in settings.tools],
        "tool_choice": _tool_choice(settings.tool_choice),
        "max_output_tokens": max_output_tokens(settings),
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "include": None,
        "expires_at": identity.expires_at,
        "audio": {
            "input": {
                "format": nested_format(settings.input_format),
                "transcription": _transcription(settings.transcription, identity),
                "noise_reduction": _noise_reduction(settings),
                "turn_detection": _turn_detection(settings.turn_detection, Dialect.GA),
            },
            "output": output,
        },
    }


def _flat(settings: Settings, identity: Identity, dialect: Dialect) -> Members:
    tool = _wrapped_tool if dialect is Dialect.DASHSCOPE else _tool
    shown: Members = {
        "id": identity.session_id,
        "object": "realtime.session",
        "model": identity.model,
        "expires_at": identity.expires_at,
        "modalities": modalities(settings, dialect),
        "instructions": settings.instructions or "",
        "voice": settings.voice,
        "input_audio_format": settings.input_format.name,
        "output_audio_format": flat_output_format(settings.output_format, dialect),
        "input_audio_noise_reduction": _noise_reduction(settings),
        "input_audio_transcription": _transcription(settings.transcription, identity),
        "turn_detection": _turn_detection(settings.turn_detection, dialect),
        "tools": [tool(one) for one in settings.tools],
        "tool_choice": _tool_choice(settings.tool_choice),
        "temperature": temperature(settings),
        "max_response_output_tokens": max_output_tokens(settings),
        "speed": settings.speed,
        "tracing": None,
    }
    if settings.delivery != "base64":
        shown["audio"] = {"output": {"delivery": settings.delivery}}
    return shown


def _turn_detection(detection: TurnDetection | None, dialect: Dialect) -> Members | None:
    if detection is None:
        return None
    # Clients cancel by themselves where `interrupt_response` is falsy: it must be there.
    shared = {
        "create_response": detection.create_response,
        "interrupt_response": detection.interrupt_response,
    }
    if detection.type == "semantic_vad":
        return {"type": "semantic_vad", "eagerness": detection.eagerness, **shared}
    # Flat objects had no timeout when they were new: they show it only if it is set.
    is_shown = detection.idle_timeout_ms is not None or not dialect.is_flat
    timeout = {"idle_timeout_ms": detection.idle_timeout_ms} if is_shown else {}
    return {
        "type": "server_vad",
        "threshold": detection.threshold,
        "prefix_padding_ms": detection.prefix_padding_ms,
        "silence_duration_ms": detection.silence_duration_ms,
        **timeout,
        **shared,
    }


def _transcription(asked: Transcription | None, identity: Identity) -> Members | None:
    if asked is None:
        return None
    shown: Members = {"model": asked.model or identity.model}
    if asked.language is not None:
        shown["language"] = asked.language
    if asked.prompt is not None:
        shown["prompt"] = asked.prompt
    return shown


def _noise_reduction(settings: Settings) -> Members | None:
    return None if settings.noise_reduction is None else {"type": settings.noise_reduction}


def _tool(tool: Tool) -> Members:
    return {"type": "function", **_function(tool)}


def _wrapped_tool(tool: Tool) -> Members:
    return {"type": "function", "function": _function(tool)}


def _function(tool: Tool) -> Members:
    shown: Members = {"name": tool.name, "parameters": tool.parameters}
    if tool.description is not None:
        shown["description"] = tool.description
    return shown


def _tool_choice(choice: ToolChoice) -> str | Members:
    if isinstance(choice, ForcedTool):
        return {"type": "function", "name": choice.name}
    return choice


def _video(video: VideoSettings) -> Members:
    return {
        "fps": video.fps,
        "max_frames": video.max_frames,
        "lookback_ms": video.lookback_ms,
        "max_pixels": video.max_pixels,
        "audio_track": video.audio_track,
    }
