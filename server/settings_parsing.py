"""How the session and response objects that clients send change settings: both spellings, one table.

`null` leaves a setting as it is, except where it switches something off (`NULL_SWITCHES_OFF`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from server.fields import (
    read_choice,
    read_flag,
    read_list,
    read_name,
    read_number,
    read_object,
    read_text,
    read_whole,
    refuse,
    require,
)
from server.settings import (
    EAGERNESS,
    NOISE_REDUCTION,
    SEMANTIC_SILENCE_MS,
    TOOL_CHOICES,
    VAD_TYPES,
    ForcedTool,
    NamedFormat,
    Settings,
    Tool,
    ToolChoice,
    Transcription,
    TurnDetection,
    Voices,
    default_silence_ms,
    input_rate,
)
from streaming.errors import ClientError
from streaming.media import OUTPUT_SAMPLE_RATE
from streaming.pcm import Encoding, SoundFormat
from streaming.resample import require_rate

if TYPE_CHECKING:
    from server.dialect import Dialect

MAX_INSTRUCTIONS_BYTES = 64 * 1024
MAX_TOOLS_BYTES = 64 * 1024
MAX_TOOLS = 128
MAX_OUTPUT_TOKENS = 4096
MAX_LABEL = 256
"""Characters of names that are only echoed."""
MAX_PROMPT_BYTES = 16 * 1024
G711_RATE = 8000


@dataclass(frozen=True, slots=True)
class _Context:
    """What the meaning of a member depends on beside itself."""

    dialect: Dialect
    voices: Voices


def apply_session_update(
    settings: Settings, raw: Mapping[str, object], dialect: Dialect, voices: Voices
) -> Settings:
    """Return the settings after the `session` of a `session.update`, in either spelling.

    Args:
        settings: before.
        raw: the session object as it came.
        dialect: after its correction; says what a format without a rate means.
        voices: of the model.

    Raises:
        ClientError: a member is wrong; `param` begins with `session.`.
    """
    _require_conversation(raw.get("type"))
    return _apply(settings, raw, "session", SESSION_READERS, _Context(dialect, voices))


def apply_response_overrides(
    settings: Settings, raw: Mapping[str, object], dialect: Dialect, voices: Voices
) -> Settings:
    """Return the settings of one response, from the `response` of a `response.create`; null members are absent.

    Raises:
        ClientError: a member is wrong; `param` begins with `response.`.
    """
    return _apply(settings, raw, "response", RESPONSE_READERS, _Context(dialect, voices))


def _require_conversation(kind: object) -> None:
    if kind == "transcription":
        raise ClientError(
            "unsupported_session_type",
            "Transcription-only sessions are not supported; use type 'realtime' and switch transcription on.",
            param="session.type",
        )
    if kind not in (None, "realtime"):
        refuse("session.type", "'realtime'")


def _apply(
    settings: Settings, raw: Mapping[str, object], root: str, readers: _Readers, context: _Context
) -> Settings:
    for path, reader in readers.items():
        value = _member(raw, path, root)
        if value is _ABSENT or (value is None and reader not in NULL_SWITCHES_OFF):
            continue
        settings = reader(settings, value, ".".join((root, *path)), context)
    return settings


_ABSENT = object()


def _member(raw: Mapping[str, object], path: tuple[str, ...], root: str) -> object:
    """The value at a path, or `_ABSENT`; an object on the way may be null."""
    members = raw
    for depth, name in enumerate(path[:-1], 1):
        inner = members.get(name)
        if inner is None:
            return _ABSENT
        members = read_object(inner, ".".join((root, *path[:depth])))
    return members.get(path[-1], _ABSENT)


# ---- one reader per setting: the settings, with the value that stands at `where`


def _instructions(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    return replace(settings, instructions=read_text(value, where, MAX_INSTRUCTIONS_BYTES))


def _modalities(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    wanted = read_list(value, where, 8)
    if "audio" not in wanted and "text" not in wanted:
        refuse(where, "an array with 'audio' or 'text'")
    return replace(settings, speaks="audio" in wanted)


def _voice(settings: Settings, value: object, where: str, context: _Context) -> Settings:
    if isinstance(value, dict):
        value, where = require(value, "id", where), f"{where}.id"
    if not isinstance(value, str):
        refuse(where, "a string or an object with 'id'")
    return replace(settings, voice=context.voices.resolve(value))


def _speed(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    return replace(settings, speed=read_number(value, where, 0.25, 1.5))


def _delivery(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    return replace(settings, delivery=read_choice(value, where, ("base64", "binary")))


def _max_output_tokens(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    if isinstance(value, str):
        read_choice(value, where, ("inf",))
        return replace(settings, max_output_tokens=None)
    return replace(settings, max_output_tokens=read_whole(value, where, 1, MAX_OUTPUT_TOKENS))


# ---- sound


FORMATS: Mapping[str, tuple[str, Encoding, int | None]] = {
    "audio/pcm": ("pcm16", Encoding.PCM16, None),
    "pcm16": ("pcm16", Encoding.PCM16, None),
    "pcm": ("pcm", Encoding.PCM16, None),
    "pcm24": ("pcm24", Encoding.PCM16, OUTPUT_SAMPLE_RATE),
    "audio/pcmu": ("g711_ulaw", Encoding.ULAW, G711_RATE),
    "g711_ulaw": ("g711_ulaw", Encoding.ULAW, G711_RATE),
    "audio/pcma": ("g711_alaw", Encoding.ALAW, G711_RATE),
    "g711_alaw": ("g711_alaw", Encoding.ALAW, G711_RATE),
}
"""Name in flat session objects, encoding and rate by what clients write; no rate: the dialect's."""


def _input_format(settings: Settings, value: object, where: str, context: _Context) -> Settings:
    return replace(settings, input_format=_read_format(value, where, input_rate(context.dialect)))


def _output_format(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    return replace(settings, output_format=_read_format(value, where, OUTPUT_SAMPLE_RATE))


def _input_rate(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    before = settings.input_format
    rate = _read_rate(value, where)
    if before.sound.encoding is not Encoding.PCM16:
        return settings
    return replace(
        settings, input_format=NamedFormat(SoundFormat(Encoding.PCM16, rate), before.name)
    )


def _read_format(value: object, where: str, usual_rate: int) -> NamedFormat:
    if isinstance(value, str):
        return _format(read_choice(value, where, tuple(FORMATS)), usual_rate)
    members = read_object(value, where)
    kind = read_choice(members.get("type") or "audio/pcm", f"{where}.type", tuple(FORMATS))
    for name in ("rate", "sample_rate"):
        if (rate := members.get(name)) is not None:
            usual_rate = _read_rate(rate, f"{where}.{name}")
    return _format(kind, usual_rate)


def _format(kind: str, usual_rate: int) -> NamedFormat:
    name, encoding, rate = FORMATS[kind]
    return NamedFormat(SoundFormat(encoding, rate or usual_rate), name)


def _read_rate(value: object, where: str) -> int:
    rate = read_whole(value, where)
    require_rate(rate, where)
    return rate


def _noise_reduction(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    kind = None if value is None else read_object(value, where).get("type")
    if kind is None:
        return replace(settings, noise_reduction=None)
    wanted = read_choice(kind, f"{where}.type", NOISE_REDUCTION)
    return replace(settings, noise_reduction=wanted)


def _transcription(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    if value is None:
        return replace(settings, transcription=None)
    members = read_object(value, where)
    asked = settings.transcription or Transcription()
    if (model := members.get("model")) is not None:
        asked = replace(asked, model=read_name(model, f"{where}.model", MAX_LABEL))
    if (language := members.get("language")) is not None:
        asked = replace(asked, language=read_text(language, f"{where}.language", MAX_LABEL))
    if (prompt := members.get("prompt")) is not None:
        asked = replace(asked, prompt=read_text(prompt, f"{where}.prompt", MAX_PROMPT_BYTES))
    return replace(settings, transcription=asked)


# ---- turn detection


def _turn_detection(settings: Settings, value: object, where: str, context: _Context) -> Settings:
    return replace(settings, turn_detection=_read_turn_detection(value, where, context.dialect))


def _read_turn_detection(value: object, where: str, dialect: Dialect) -> TurnDetection | None:
    if value is None:
        return None
    # A null member is as good as none.
    members = {name: v for name, v in read_object(value, where).items() if v is not None}
    if (kind := members.get("type")) == "none":
        return None
    shared = TurnDetection(
        create_response=read_flag(members.get("create_response", True), f"{where}.create_response"),
        interrupt_response=read_flag(
            members.get("interrupt_response", True), f"{where}.interrupt_response"
        ),
    )
    if read_choice(kind or "server_vad", f"{where}.type", VAD_TYPES) == "semantic_vad":
        eagerness = read_choice(members.get("eagerness", "auto"), f"{where}.eagerness", EAGERNESS)
        silence_ms = SEMANTIC_SILENCE_MS[eagerness]
        return replace(
            shared, type="semantic_vad", eagerness=eagerness, silence_duration_ms=silence_ms
        )

    def whole(name: str, otherwise: int, lowest: int, highest: int) -> int:
        return read_whole(members.get(name, otherwise), f"{where}.{name}", lowest, highest)

    return replace(
        shared,
        threshold=read_number(members.get("threshold", 0.5), f"{where}.threshold", 0.05, 0.95),
        prefix_padding_ms=whole("prefix_padding_ms", 300, 0, 5000),
        silence_duration_ms=whole("silence_duration_ms", default_silence_ms(dialect), 100, 6000),
        idle_timeout_ms=whole("idle_timeout_ms", 0, 1000, 3_600_000)
        if "idle_timeout_ms" in members
        else None,
    )


# ---- tools


def _tools(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    entries = read_list(value, where, MAX_TOOLS)
    if len(msgspec.json.encode(entries)) > MAX_TOOLS_BYTES:
        refuse(where, f"at most {MAX_TOOLS_BYTES} bytes of tools")
    return replace(
        settings,
        tools=tuple(_read_tool(entry, f"{where}.{n}") for n, entry in enumerate(entries)),
    )


def _read_tool(value: object, where: str) -> Tool:
    members = read_object(value, where)
    _require_function(members, where)
    if (nested := members.get("function")) is not None:
        where = f"{where}.function"
        members = read_object(nested, where)
    description = members.get("description")
    parameters = members.get("parameters")
    return Tool(
        name=read_name(require(members, "name", where), f"{where}.name", MAX_LABEL),
        description=None
        if description is None
        else read_text(description, f"{where}.description", MAX_TOOLS_BYTES),
        parameters={} if parameters is None else read_object(parameters, f"{where}.parameters"),
    )


def _tool_choice(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    return replace(settings, tool_choice=_read_tool_choice(value, where))


def _read_tool_choice(value: object, where: str) -> ToolChoice:
    if not isinstance(value, dict):
        return read_choice(value, where, TOOL_CHOICES)
    _require_function(value, where)
    if (nested := value.get("function")) is not None:
        where = f"{where}.function"
        value = read_object(nested, where)
    return ForcedTool(read_name(require(value, "name", where), f"{where}.name", MAX_LABEL))


def _require_function(members: dict[str, object], where: str) -> None:
    if members.get("type", "function") != "function":
        raise ClientError(
            "unsupported_tool_type",
            "Only tools of type 'function' are supported.",
            param=f"{where}.type",
        )


# ---- sampling and video: numbers with a range each


def _sampling(name: str, lowest: float, highest: float) -> _Reader:
    def read(settings: Settings, value: object, where: str, _: _Context) -> Settings:
        changes: dict[str, Any] = {name: read_number(value, where, lowest, highest)}
        return replace(settings, sampling=replace(settings.sampling, **changes))

    return read


def _whole_sampling(name: str, lowest: int, highest: int) -> _Reader:
    def read(settings: Settings, value: object, where: str, _: _Context) -> Settings:
        changes: dict[str, Any] = {name: read_whole(value, where, lowest, highest)}
        return replace(settings, sampling=replace(settings.sampling, **changes))

    return read


def _video(settings: Settings, value: object, where: str, _: _Context) -> Settings:
    members = read_object(value, where)
    changes: dict[str, Any] = {}  # numbers and one choice
    if (fps := members.get("fps")) is not None:
        changes["fps"] = read_number(fps, f"{where}.fps", 0.1, 30.0)
    if (track := members.get("audio_track")) is not None:
        changes["audio_track"] = read_choice(track, f"{where}.audio_track", ("append", "ignore"))
    for name, (lowest, highest) in VIDEO_RANGES.items():
        if (number := members.get(name)) is not None:
            changes[name] = read_whole(number, f"{where}.{name}", lowest, highest)
    return replace(settings, video=replace(settings.frames, **changes))


VIDEO_RANGES: Mapping[str, tuple[int, int]] = {
    "max_frames": (1, 64),
    "lookback_ms": (0, 30_000),
    "max_pixels": (3_136, 1_003_520),
}

_Reader = Callable[[Settings, object, str, _Context], Settings]
_Readers = Mapping[tuple[str, ...], _Reader]

NULL_SWITCHES_OFF: frozenset[_Reader] = frozenset(
    {_turn_detection, _transcription, _noise_reduction}
)
# In both tables the later entry wins if a client sends two spellings: the nested ones, then, are last.
RESPONSE_READERS: _Readers = {
    ("instructions",): _instructions,
    ("modalities",): _modalities,
    ("output_modalities",): _modalities,
    ("voice",): _voice,
    ("audio", "output", "voice"): _voice,
    ("output_audio_format",): _output_format,
    ("audio", "output", "format"): _output_format,
    ("tools",): _tools,
    ("tool_choice",): _tool_choice,
    ("max_tokens",): _max_output_tokens,
    ("max_response_output_tokens",): _max_output_tokens,
    ("max_output_tokens",): _max_output_tokens,
    ("temperature",): _sampling("temperature", 0.0, 2.0),
    ("top_p",): _sampling("top_p", 0.01, 1.0),
    ("top_k",): _whole_sampling("top_k", 0, 1000),
    ("repetition_penalty",): _sampling("repetition_penalty", 0.5, 2.0),
    ("presence_penalty",): _sampling("presence_penalty", -2.0, 2.0),
    ("seed",): _whole_sampling("seed", 0, 2**31 - 1),
}
SESSION_READERS: _Readers = {
    **RESPONSE_READERS,
    ("input_audio_format",): _input_format,
    ("sample_rate",): _input_rate,
    ("audio", "input", "format"): _input_format,
    ("speed",): _speed,
    ("audio", "output", "speed"): _speed,
    ("turn_detection",): _turn_detection,
    ("audio", "input", "turn_detection"): _turn_detection,
    ("input_audio_transcription",): _transcription,
    ("audio", "input", "transcription"): _transcription,
    ("input_audio_noise_reduction",): _noise_reduction,
    ("audio", "input", "noise_reduction"): _noise_reduction,
    ("audio", "output", "delivery"): _delivery,
    ("video", "input"): _video,
}
