"""Settings: both spellings, merges in any order, null, clamps, and nothing applied on an error."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialect import Dialect
from server.events import SessionUpdated
from server.render import MAX_MESSAGE_BYTES, Renderer
from server.session_object import session_object
from server.settings import (
    ForcedTool,
    Sampling,
    Settings,
    Tool,
    Transcription,
    TurnDetection,
    VideoSettings,
    Voices,
)
from server.settings_parsing import (
    SESSION_READERS,
    apply_response_overrides,
    apply_session_update,
)
from streaming.errors import ClientError
from streaming.pcm import Encoding, SoundFormat
from streaming.vad import VadSettings
from tests.server.examples import IDENTITY, VOICES

GA, BETA, DASHSCOPE = Dialect
BEFORE = Settings.default(GA, VOICES, "Be brief.")


def update(raw: dict[str, Any], dialect: Dialect = GA, before: Settings = BEFORE) -> Settings:
    return apply_session_update(before, raw, dialect, VOICES)


def audio_in(**members: object) -> dict[str, Any]:
    return {"audio": {"input": members}}


def audio_out(**members: object) -> dict[str, Any]:
    return {"audio": {"output": members}}


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
SPELLINGS: tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    ({"output_modalities": ["text"]}, {"modalities": ["text"]}, {"speaks": False}),
    ({"output_modalities": ["audio"]}, {"modalities": ["text", "audio"]}, {"speaks": True}),
    (audio_out(voice="ETHAN"), {"voice": {"id": "onyx"}}, {"voice": "Ethan"}),
    (audio_out(voice="nobody"), {"voice": "Coral"}, {"voice": "Chelsie"}),
    (audio_out(speed=9), {"speed": 1.5}, {"speed": 1.5}),
    (audio_in(turn_detection=None), {"turn_detection": {"type": "none"}}, {"turn_detection": None}),
    (
        audio_in(turn_detection={"type": "semantic_vad", "eagerness": "high"}),
        {"turn_detection": {"type": "semantic_vad", "eagerness": "high", "threshold": None}},
        {
            "turn_detection": TurnDetection(
                type="semantic_vad", eagerness="high", silence_duration_ms=400
            )
        },
    ),
    (
        audio_in(turn_detection={"threshold": -1, "silence_duration_ms": 9e9}),
        {"turn_detection": {"type": "server_vad", "threshold": 0, "silence_duration_ms": 6000}},
        {"turn_detection": TurnDetection(threshold=0.05, silence_duration_ms=6000)},
    ),
    (
        audio_in(turn_detection={"idle_timeout_ms": 6000, "interrupt_response": False}),
        {"turn_detection": {"idle_timeout_ms": 6000.5, "interrupt_response": False}},
        {"turn_detection": TurnDetection(idle_timeout_ms=6000, interrupt_response=False)},
    ),
    (
        audio_in(transcription={"model": "whisper-1", "language": "en"}),
        {"input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": None}},
        {"transcription": Transcription("whisper-1", "en")},
    ),
    (
        audio_in(noise_reduction={"type": "far_field"}),
        {"input_audio_noise_reduction": {"type": "far_field"}},
        {"noise_reduction": "far_field"},
    ),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
        {"tools": (Tool("f", None, SCHEMA),)},
    ),
    (
        {"tool_choice": {"type": "function", "name": "f"}},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": ForcedTool("f")},
    ),
    (
        {"max_output_tokens": 100_000},
        {"max_response_output_tokens": 4096},
        {"max_output_tokens": 4096},
    ),
    ({"max_output_tokens": 12}, {"max_tokens": 12}, {"max_output_tokens": 12}),
    ({"max_output_tokens": "inf"}, {"max_response_output_tokens": "inf"}, {}),
)


@pytest.mark.parametrize(("nested", "flat", "changed"), SPELLINGS)
@pytest.mark.parametrize("dialect", Dialect)
def test_both_spellings_mean_the_same(
    nested: dict[str, Any], flat: dict[str, Any], changed: dict[str, Any], dialect: Dialect
) -> None:
    wanted = replace(BEFORE, **changed)
    if dialect is DASHSCOPE and "idle_timeout_ms" in str(flat):  # no silence named: its default
        detection = replace(changed["turn_detection"], silence_duration_ms=800)
        wanted = replace(wanted, turn_detection=detection)
    assert update(nested, dialect) == update(flat, dialect) == wanted


@pytest.mark.parametrize(
    ("written", "dialect", "encoding", "rate"),
    [
        ("pcm16", GA, Encoding.PCM16, 24000),
        ("pcm16", BETA, Encoding.PCM16, 24000),
        ("pcm16", DASHSCOPE, Encoding.PCM16, 16000),
        ("pcm", DASHSCOPE, Encoding.PCM16, 16000),
        ("pcm24", DASHSCOPE, Encoding.PCM16, 24000),
        ({"type": "audio/pcm"}, GA, Encoding.PCM16, 24000),
        ({"type": "audio/pcm", "rate": 24000}, DASHSCOPE, Encoding.PCM16, 24000),
        ({"type": "audio/pcm", "rate": 48000}, GA, Encoding.PCM16, 48000),
        ({"type": "pcm", "sample_rate": 16000}, DASHSCOPE, Encoding.PCM16, 16000),
        ({"type": "pcm", "sample_rate": 16000}, GA, Encoding.PCM16, 16000),
        ({"type": "audio/pcmu"}, GA, Encoding.ULAW, 8000),
        ({"type": "audio/pcma", "rate": 24000}, GA, Encoding.ALAW, 8000),
        ("g711_ulaw", BETA, Encoding.ULAW, 8000),
        ("g711_alaw", DASHSCOPE, Encoding.ALAW, 8000),
    ],
)
def test_what_an_input_format_means(
    written: object, dialect: Dialect, encoding: Encoding, rate: int
) -> None:
    before = Settings.default(dialect, VOICES)
    nested = update(audio_in(format=written), dialect, before)
    assert nested == update({"input_audio_format": written}, dialect, before)
    assert nested.input_format.sound == SoundFormat(encoding, rate)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("name", ["pcm", "pcm16", "pcm24"])
def test_sound_goes_out_at_24_khz_by_every_name(name: str, dialect: Dialect) -> None:
    settings = update({"output_audio_format": name}, dialect)
    assert settings.output_format.sound == SoundFormat(Encoding.PCM16, 24000)


def test_a_bare_sample_rate_is_the_inputs() -> None:
    assert update({"sample_rate": 8000}).input_format.sound.rate == 8000
    both = {"input_audio_format": "pcm", "sample_rate": 48000}
    assert update(both, DASHSCOPE).input_format.sound.rate == 48000
    with_ulaw = update({"input_audio_format": "g711_ulaw", "sample_rate": 8000})
    assert with_ulaw.input_format.sound == SoundFormat(Encoding.ULAW, 8000)


def test_defaults_of_dialects() -> None:
    dashscope = Settings.default(DASHSCOPE, VOICES)
    assert dashscope.input_format.sound.rate == 16000 and dashscope.transcription is not None
    assert dashscope.turn_detection == TurnDetection(silence_duration_ms=800)
    for dialect in (GA, BETA):
        settings = Settings.default(dialect, VOICES)
        assert settings.input_format.sound.rate == 24000 and settings.transcription is None
        assert settings.turn_detection == TurnDetection() and settings.voice == "Chelsie"


def test_turn_detection_is_what_the_detector_is_set_to() -> None:
    detection = update(
        {"turn_detection": {"threshold": 0.7, "prefix_padding_ms": 10}}
    ).turn_detection
    assert detection is not None
    assert detection.to_vad() == VadSettings(0.7, 10, 500)


def test_video_is_merged_and_shown_once_set() -> None:
    first = update({"video": {"input": {"fps": 0.5, "representation_compact": True}}})
    second = update(
        {"video": {"input": {"max_frames": 9999, "audio_track": "ignore"}}}, before=first
    )
    assert second.video == VideoSettings(fps=0.5, max_frames=64, audio_track="ignore")
    assert BEFORE.video is None and BEFORE.frames == VideoSettings()
    for dialect in Dialect:
        assert "video" not in session_object(BEFORE, IDENTITY, dialect)
        assert "video" in session_object(second, IDENTITY, dialect)


def test_sampling_is_clamped() -> None:
    raw = {"temperature": -1, "top_p": 7, "top_k": 50, "repetition_penalty": 1.05, "seed": 3.0}
    assert update(raw).sampling == Sampling(0.0, 1.0, 50, 1.05, None, 3)


# ---- null and unknown


NO_EFFECT = (
    *("instructions", "voice", "speed", "temperature", "tools", "tool_choice", "modalities"),
    *(
        "input_audio_format",
        "output_audio_format",
        "max_output_tokens",
        "sample_rate",
        "audio",
        "video",
    ),
)


@pytest.mark.parametrize("name", NO_EFFECT)
def test_null_leaves_a_setting_alone(name: str) -> None:
    assert update({name: None}) == BEFORE


def test_null_switches_off_only_what_can_be_off() -> None:
    on = update({**audio_in(transcription={}, noise_reduction={"type": "near_field"})})
    assert on.transcription is not None and on.noise_reduction and on.turn_detection
    nested = update(
        audio_in(transcription=None, noise_reduction=None, turn_detection=None), before=on
    )
    flat = ("turn_detection", "input_audio_transcription", "input_audio_noise_reduction")
    off = replace(on, transcription=None, noise_reduction=None, turn_detection=None)
    assert nested == update(dict.fromkeys(flat), before=on) == off


IGNORED = {
    "model": "gpt-realtime",
    "tracing": "auto",
    "prompt": {"id": "x"},
    "truncation": {"type": "retention_ratio", "retention_ratio": 0.5},
    "include": ["item.input_audio_transcription.logprobs"],
    "reasoning": {},
    "parallel_tool_calls": True,
    "smooth_output": None,
    "enable_search": True,
    "search_options": {},
    "translation": {},
    "client_secret": {},
    "nonsense": [1, {}],
    "type": "realtime",
    "id": 7,
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_has_no_effect_is_no_error(name: str) -> None:
    assert update({name: IGNORED[name]}) == BEFORE


def test_an_empty_instruction_clears() -> None:
    assert update({"instructions": ""}).instructions == ""


# ---- errors


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        ({"type": "transcription"}, "unsupported_session_type", "type"),
        ({"type": "x"}, "invalid_value", "type"),
        ({"type": []}, "invalid_value", "type"),
        ({"instructions": 7}, "invalid_value", "instructions"),
        ({"instructions": "x" * 65537}, "invalid_value", "instructions"),
        ({"audio": []}, "invalid_value", "audio"),
        ({"audio": {"input": 7}}, "invalid_value", "audio.input"),
        (audio_in(turn_detection=True), "invalid_value", "audio.input.turn_detection"),
        (
            audio_in(turn_detection={"type": "x"}),
            "invalid_value",
            "audio.input.turn_detection.type",
        ),
        ({"turn_detection": {"threshold": "1"}}, "invalid_value", "turn_detection.threshold"),
        (
            {"turn_detection": {"create_response": 1}},
            "invalid_value",
            "turn_detection.create_response",
        ),
        (
            {"turn_detection": {"type": "semantic_vad", "eagerness": "x"}},
            "invalid_value",
            "turn_detection.eagerness",
        ),
        (audio_in(format="mp3"), "invalid_value", "audio.input.format"),
        (audio_in(format={"type": "x"}), "invalid_value", "audio.input.format.type"),
        (audio_in(format={"rate": 7}), "invalid_value", "audio.input.format.rate"),
        ({"sample_rate": 1e9}, "invalid_value", "sample_rate"),
        ({"modalities": []}, "invalid_value", "modalities"),
        ({"modalities": "audio"}, "invalid_value", "modalities"),
        (audio_out(voice=7), "invalid_value", "audio.output.voice"),
        (audio_out(voice={}), "missing_required_parameter", "audio.output.voice.id"),
        (audio_out(delivery="x"), "invalid_value", "audio.output.delivery"),
        ({"temperature": float("nan")}, "invalid_value", "temperature"),
        ({"temperature": True}, "invalid_value", "temperature"),
        ({"max_output_tokens": "many"}, "invalid_value", "max_output_tokens"),
        ({"tools": {}}, "invalid_value", "tools"),
        ({"tools": [{}] * 129}, "invalid_value", "tools"),
        ({"tools": [{"name": "f", "description": "x" * 65536}]}, "invalid_value", "tools"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.name"),
        ({"tools": [{"function": {"name": ""}}]}, "invalid_value", "tools.0.function.name"),
        ({"tools": [{"name": "f", "parameters": []}]}, "invalid_value", "tools.0.parameters"),
        ({"tools": [{"name": "f"}, {"type": "mcp"}]}, "unsupported_tool_type", "tools.1.type"),
        ({"tool_choice": "maybe"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "mcp"}}, "unsupported_tool_type", "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "missing_required_parameter", "tool_choice.name"),
        ({"video": {"input": {"audio_track": 1}}}, "invalid_value", "video.input.audio_track"),
        ({"input_audio_transcription": "x"}, "invalid_value", "input_audio_transcription"),
    ],
)
def test_errors_name_the_path(raw: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ClientError) as caught:
        update({"speed": 1.2, **raw})
    assert (caught.value.code, caught.value.param) == (code, f"session.{param}")


SECRET = "s3cr3t"
WORDS = (
    *(SECRET, [SECRET], [{SECRET: SECRET}], [{"type": SECRET}], {SECRET: SECRET}),
    *(
        {name: SECRET}
        for name in ("type", "rate", "id", "eagerness", "threshold", "function", "fps")
    ),
    *({name: [SECRET]} for name in ("model", "language", "prompt", "name", "audio_track")),
)


@pytest.mark.parametrize("path", SESSION_READERS)
def test_errors_never_quote_the_client(path: tuple[str, ...]) -> None:
    num_refused = 0
    for words in WORDS:
        raw: object = words
        for name in reversed(path):
            raw = {name: raw}
        assert isinstance(raw, dict)
        try:
            update(raw)
        except ClientError as fault:
            num_refused += 1
            assert SECRET not in f"{fault} {fault.facts}"
    assert num_refused > 0


# ---- laws

disjoint = st.permutations(
    [
        {"instructions": "a"},
        audio_out(voice="Ethan"),
        audio_out(speed=1.1),
        audio_in(transcription={"model": "m"}),
        {"input_audio_transcription": {"language": "en"}},
        audio_in(turn_detection=None),
        {"tools": [{"name": "f"}]},
        {"temperature": 0.5},
        {"top_k": 3},
        {"video": {"input": {"fps": 1}}},
        {"video": {"input": {"max_frames": 7}}},
        {"input_audio_format": "g711_ulaw"},
        {"output_modalities": ["text"], "unknown": 1},
    ]
)


def merge(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The object that says what both say."""
    merged = dict(into)
    for name, value in more.items():
        inner = merged.get(name)
        merged[name] = (
            merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return merged


@given(disjoint)
def test_disjoint_updates_commute_and_merge(updates: list[dict[str, Any]]) -> None:
    settings, whole = BEFORE, dict[str, Any]()
    for raw in updates:
        settings, whole = update(raw, before=settings), merge(whole, raw)
    assert settings == update(whole)
    assert update(whole, before=settings) == settings


texts = st.text(max_size=4)
KNOWN_NAMES = ("type", "rate", "model", "name", "function", "threshold", "id")
KNOWN_VALUES = ("audio", "inf", "pcm", "server_vad")
names = st.sampled_from(KNOWN_NAMES) | texts
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
things: st.SearchStrategy[object] = st.recursive(
    scalars | st.sampled_from(KNOWN_VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


def members(*names: str, **others: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the members, whatever they hold."""
    return st.fixed_dictionaries({}, optional={**dict.fromkeys(names, things), **others})


FLAT = (
    *(*NO_EFFECT, "turn_detection", "input_audio_transcription", "input_audio_noise_reduction"),
    *("top_k", "seed", "repetition_penalty"),
)
sessions = members(
    *FLAT,
    audio=things
    | members(
        input=members("format", "turn_detection", "transcription"),
        output=members("format", "voice", "speed", "delivery"),
    ),
)


@given(sessions, st.sampled_from(Dialect))
def test_any_update_gives_settings_that_can_be_shown_or_an_error(
    raw: dict[str, Any], dialect: Dialect
) -> None:
    for apply in (apply_session_update, apply_response_overrides):
        try:
            settings = apply(BEFORE, raw, dialect, VOICES)
        except ClientError as fault:
            assert fault.param is not None and fault.param.split(".")[0] in ("session", "response")
        else:
            assert apply(settings, raw, dialect, VOICES) == settings
            if settings.turn_detection is not None:
                settings.turn_detection.to_vad()
            for shown in Dialect:
                msgspec.json.encode(session_object(settings, IDENTITY, shown))


@pytest.mark.parametrize("dialect", Dialect)
def test_what_a_session_shows_sets_another_to_the_same(dialect: Dialect) -> None:
    """Clients send back what they read."""
    for (nested, _, _), more in itertools.product(
        SPELLINGS, ({}, {"video": {"input": {"fps": 1}}})
    ):
        settings = update({**nested, **more}, dialect, Settings.default(dialect, VOICES, "a"))
        if settings.transcription is not None and settings.transcription.model is None:
            settings = replace(settings, transcription=Transcription(IDENTITY.model))
        # What stands for "none set" becomes set, and G.711 and PCM are shown by one name each.
        sampling = replace(settings.sampling, temperature=None)
        shown = session_object(settings, IDENTITY, dialect)
        again = update(shown, dialect, Settings.default(dialect, VOICES))
        assert replace(again, sampling=sampling, output_format=settings.output_format) == settings
        assert again.output_format.sound == settings.output_format.sound


@pytest.mark.parametrize(
    ("written", "nested", "flat"),
    [
        ({"type": "audio/pcm", "rate": 48000}, {"type": "audio/pcm", "rate": 48000}, "pcm16"),
        ("pcm", {"type": "audio/pcm", "rate": 24000}, "pcm"),
        ({"type": "audio/pcmu", "rate": 8000}, {"type": "audio/pcmu"}, "g711_ulaw"),
        ("g711_alaw", {"type": "audio/pcma"}, "g711_alaw"),
    ],
)
def test_how_formats_are_shown(written: object, nested: dict[str, Any], flat: str) -> None:
    settings = update({"input_audio_format": written, "output_audio_format": written})
    audio: Any = session_object(settings, IDENTITY, GA)["audio"]
    assert audio["input"]["format"] == audio["output"]["format"] == nested
    beta, dashscope = (session_object(settings, IDENTITY, d) for d in (BETA, DASHSCOPE))
    assert beta["input_audio_format"] == beta["output_audio_format"] == flat
    assert dashscope["output_audio_format"] == ("pcm24" if "pcm" in flat else flat)


def test_the_largest_session_fits_a_message() -> None:
    worst = update(
        {
            "instructions": "\0" * (65536 // 6),
            "tools": [{"name": "f", "description": "x" * 65400}],
            "input_audio_transcription": {
                "model": "\0" * 256,
                "language": "x" * 256,
                "prompt": "x" * 16384,
            },
        }
    )
    for dialect in Dialect:
        (message,) = Renderer(dialect, IDENTITY).render(SessionUpdated(worst))
        assert len(message) <= MAX_MESSAGE_BYTES


# ---- one response


def test_a_response_overrides_the_session_for_itself() -> None:
    raw = {
        "instructions": "once",
        "output_modalities": ["text"],
        "tool_choice": None,
        "tools": [],
        "voice": "ethan",
        "turn_detection": None,
        "max_output_tokens": 7,
    }
    assert apply_response_overrides(BEFORE, raw, GA, VOICES) == replace(
        BEFORE, instructions="once", speaks=False, voice="Ethan", max_output_tokens=7
    )
    with pytest.raises(ClientError) as caught:
        apply_response_overrides(BEFORE, audio_out(format="x"), GA, VOICES)
    assert caught.value.param == "response.audio.output.format"


# ---- voices


@pytest.mark.parametrize(
    ("names", "asked", "answer"),
    [
        (("Chelsie", "Ethan"), "eThAn", "Ethan"),
        (("Chelsie", "Ethan"), "onyx", "Ethan"),
        (("Ethan", "Chelsie"), "anything", "Chelsie"),
        (("Ada", "Bob"), "onyx", "Ada"),
        (("Ada", "Bob"), "BOB", "Bob"),
        (("Ada", "Alloy"), "alloy", "Alloy"),
        (("Ada",), "", "Ada"),
        ((), "anyone", "Chelsie"),
    ],
)
def test_every_name_has_a_voice(names: tuple[str, ...], asked: str, answer: str) -> None:
    assert Voices(names).resolve(asked) == answer
