"""What the server writes: valid for strict clients, never mixed, within its size, the same by template and by table."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, get_args

import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.beta.realtime import realtime_server_event as beta_types
from openai.types.realtime import realtime_server_event as ga_types

from server.dialect import Dialect
from server.events import (
    ContentPartAdded,
    ItemAdded,
    ItemDone,
    ItemRetrieved,
    OutputAudioDelta,
    OutputItemDone,
    ResponseCreated,
    ResponseDone,
    ResponseView,
    ServerEvent,
    SessionUpdated,
    StatusDetails,
)
from server.identity import new_id
from server.items import (
    AssistantMessage,
    FunctionCallOutput,
    InputAudio,
    InputImage,
    InputText,
    InputVideo,
    OutputAudio,
    OutputText,
    SystemMessage,
    UserMessage,
)
from server.render import MAX_MESSAGE_BYTES, NAMES, Renderer
from server.settings import (
    ForcedTool,
    NamedFormat,
    Settings,
    Transcription,
    TurnDetection,
    VideoSettings,
)
from streaming.packets import Usage
from streaming.pcm import Encoding, SoundFormat
from tests.server.examples import (
    CALL,
    IDENTITY,
    PART,
    SERVER_EXAMPLES,
    SETTINGS,
    TOOL,
    USAGE,
    VOICES,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

OURS = ("input_video_buffer.", "session.finished", "transcription_session.updated")
"""Beginnings of names that the SDKs do not know."""
NOT_IN_BETA = ("input_audio_buffer.timeout_triggered",)


def kinds(module: Any) -> dict[str, type[BaseModel]]:
    """The SDK's classes by event type."""
    (union, *_) = get_args(module.RealtimeServerEvent)
    found: dict[str, type[BaseModel]] = {}
    for model in get_args(union):
        (name,) = get_args(model.model_fields["type"].annotation)
        found[name] = model
    return found


SDK = {
    Dialect.GA: kinds(ga_types),
    Dialect.BETA: kinds(beta_types),
    Dialect.DASHSCOPE: kinds(beta_types),
}

RICH = dataclasses.replace(
    SETTINGS,
    speaks=False,
    input_format=NamedFormat(SoundFormat(Encoding.ULAW, 8000), "g711_ulaw"),
    output_format=NamedFormat(SoundFormat(Encoding.ALAW, 8000), "g711_alaw"),
    turn_detection=TurnDetection(type="semantic_vad", eagerness="low", interrupt_response=False),
    transcription=Transcription("whisper-1", "en", "names"),
    noise_reduction="near_field",
    tools=(TOOL,),
    tool_choice=ForcedTool("look_up"),
    max_output_tokens=100,
    video=VideoSettings(),
    delivery="binary",
)
OFF = dataclasses.replace(
    SETTINGS, instructions=None, turn_detection=None, tool_choice="required", speed=1.5
)
ITEMS = (
    UserMessage("item_1", [InputText("hi"), InputAudio(transcript="hi"), InputImage(b"x")]),
    UserMessage("item_2"),
    SystemMessage("item_3", [InputText("hi")]),
    AssistantMessage("item_4", [OutputText("hi"), OutputAudio("hi")], "incomplete"),
    CALL,
    FunctionCallOutput("item_5", "call_C1", "sunny"),
)
FATES = (
    ResponseView("resp_1", "completed", RICH, None, output=ITEMS, usage=USAGE),
    ResponseView(
        "resp_2",
        "incomplete",
        OFF,
        "conv_1",
        StatusDetails("max_output_tokens"),
        metadata={"a": "b"},
    ),
    ResponseView(
        "resp_3",
        "failed",
        OFF,
        "conv_1",
        StatusDetails(error_code="server_error", error_message="no"),
    ),
    ResponseView("resp_4", "cancelled", OFF, "conv_1", StatusDetails("client_cancelled")),
)
EVENTS: tuple[ServerEvent, ...] = (
    *SERVER_EXAMPLES,
    SessionUpdated(RICH),
    SessionUpdated(OFF),
    SessionUpdated(Settings.default(Dialect.BETA, VOICES)),
    *(ItemAdded("item_0", item) for item in ITEMS),
    *(OutputItemDone("resp_1", 1, item) for item in ITEMS),
    ContentPartAdded(*PART, "text", "hi"),
    *(ResponseDone(view) for view in FATES),
)


def render(event: ServerEvent, dialect: Dialect) -> dict[str, Any] | None:
    messages = Renderer(dialect, IDENTITY).render(event)
    return json.loads(messages[0]) if messages else None


def test_every_event_has_an_example() -> None:
    assert {type(event) for event in SERVER_EXAMPLES} == set(get_args(ServerEvent)) == set(NAMES)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_strict_clients_can_read_every_event(event: ServerEvent, dialect: Dialect) -> None:
    shown = render(event, dialect)
    if shown is None or shown["type"].startswith(OURS):
        return
    if dialect.is_flat:
        if shown["type"] in NOT_IN_BETA:
            return
        shown = as_beta_types_have_it(shown)
    SDK[dialect][shown["type"]].model_validate(shown, strict=True)


def as_beta_types_have_it(shown: dict[str, Any]) -> dict[str, Any]:
    """The same event with the few things changed that the beta types list and no service keeps to."""
    for place in (shown.get("session"), shown.get("response")):
        if place and place.get("output_audio_format") == "pcm24":
            place["output_audio_format"] = "pcm16"
    for item in (shown.get("item"), *shown.get("response", {}).get("output", ())):
        # A client of the beta sees a picture only if it made one.
        if item and "content" in item:
            item["content"] = [part for part in item["content"] if part["type"] != "input_image"]
    if (session := shown.get("session")) is not None:
        if isinstance(session["tool_choice"], dict):
            session["tool_choice"] = session["tool_choice"]["name"]
        session["model"] = "gpt-realtime"
        session["tools"] = [tool | tool.get("function", {}) for tool in session["tools"]]
    return shown


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_dialects_are_never_mixed(event: ServerEvent) -> None:
    ga, beta, dashscope = (json.dumps(render(event, dialect)) for dialect in Dialect)
    for flat in (beta, dashscope):
        assert 'output_audio"' not in flat and 'output_text"' not in flat
        assert "output_audio." not in flat and "output_text." not in flat
        assert "output_modalities" not in flat and "conversation.item.added" not in flat
    assert '"audio", "transcript"' not in ga or "content_part" in ga
    assert "response.audio" not in ga and "response.text" not in ga and '"modalities"' not in ga


@pytest.mark.parametrize("dialect", Dialect)
def test_only_what_a_dialect_has_is_sent(dialect: Dialect) -> None:
    missing = {type(event).__name__ for event in SERVER_EXAMPLES if render(event, dialect) is None}
    assert missing == ({"ConversationCreated"} if dialect is Dialect.GA else {"ItemDone"})


@pytest.mark.parametrize("dialect", Dialect)
@given(
    sound=st.binary(max_size=64).map(lambda pcm: pcm[: len(pcm) // 2 * 2]),
    names=st.tuples(st.text(max_size=9), st.text(max_size=9)),
    indexes=st.tuples(st.integers(0, 999), st.integers(0, 9)),
)
def test_template_and_table_write_the_same_delta(
    dialect: Dialect, sound: bytes, names: tuple[str, str], indexes: tuple[int, int]
) -> None:
    event = OutputAudioDelta(*names, *indexes, sound)
    renderer = Renderer(dialect, IDENTITY)
    (text,) = renderer.render(event)
    (binary,) = renderer.render(event, "binary")
    assert isinstance(binary, bytes)
    header, _, payload = binary.partition(b"\n")
    shown, shown_binary = json.loads(text), json.loads(header)
    assert shown.pop("event_id") != shown_binary.pop("event_id")
    delta = shown.pop("delta")
    assert shown == shown_binary
    assert pybase64.b64decode(delta, validate=True) == payload == sound
    name = NAMES[OutputAudioDelta]
    assert shown == {
        "type": name if dialect is Dialect.GA else name.replace("output_", ""),
        "response_id": names[0],
        "item_id": names[1],
        "output_index": indexes[0],
        "content_index": indexes[1],
    }


def test_a_part_change_or_a_dialect_change_reaches_the_next_delta() -> None:
    renderer = Renderer(Dialect.GA, IDENTITY)
    first = renderer.render(OutputAudioDelta(*PART, b"ab"))
    renderer.dialect = Dialect.BETA
    second = renderer.render(OutputAudioDelta(*PART, b"ab"))
    third = renderer.render(OutputAudioDelta("resp_R2", *PART[1:], b"ab"))
    types = [json.loads(messages[0])["type"] for messages in (first, second, third)]
    assert types == ["response.output_audio.delta", "response.audio.delta", "response.audio.delta"]
    assert json.loads(third[0])["response_id"] == "resp_R2"


def test_long_sound_becomes_several_messages_of_whole_samples() -> None:
    sound = bytes(range(256)) * 4000
    for delivery in ("base64", "binary"):
        messages = Renderer(Dialect.GA, IDENTITY).render(OutputAudioDelta(*PART, sound), delivery)
        assert len(messages) == 6 and max(map(len, messages)) <= MAX_MESSAGE_BYTES
        if delivery == "base64":
            pieces = [pybase64.b64decode(json.loads(message)["delta"]) for message in messages]
        else:
            pieces = [
                message.partition(b"\n")[2] for message in messages if isinstance(message, bytes)
            ]
        assert b"".join(pieces) == sound and all(len(piece) % 2 == 0 for piece in pieces)


def test_ids_are_unique_and_short() -> None:
    renderer = Renderer(Dialect.GA, IDENTITY)
    ids = [json.loads(renderer.render(event)[0])["event_id"] for event in SERVER_EXAMPLES[2:20]]
    made = [new_id(kind) for kind in ("event", "sess", "conv", "item", "resp", "call")]
    assert len({*ids, *made}) == len(ids) + len(made)
    for one in (*ids, *made):
        kind, _, letters = one.partition("_")
        assert (
            len(one) <= 32 and 16 <= len(letters) <= 24 and letters.isalnum() and letters.isascii()
        )


@pytest.mark.parametrize("dialect", Dialect)
def test_media_are_not_echoed(dialect: Dialect) -> None:
    marked = b"marked media" * 20
    parts = [InputAudio(marked, "x", marked), InputImage(marked), InputVideo(marked, "video/mp4")]
    item = UserMessage("item_1", parts)
    for event in (ItemAdded(None, item), ItemDone(None, item), OutputItemDone("r", 0, item)):
        text = json.dumps(render(event, dialect))
        assert pybase64.b64encode(marked[:9]).decode() not in text and "image_url" not in text


@pytest.mark.parametrize(
    ("encoding", "rate", "num_bytes"),
    [(Encoding.PCM16, 24000, 4800), (Encoding.PCM16, 16000, 3200), (Encoding.ULAW, 8000, 800)],
)
def test_retrieved_sound_comes_in_the_input_format(
    encoding: Encoding, rate: int, num_bytes: int
) -> None:
    item = UserMessage("item_1", [InputAudio(bytes(3200))])  # 100 ms
    event = ItemRetrieved(item, NamedFormat(SoundFormat(encoding, rate), "x"))
    shown = render(event, Dialect.GA)
    assert shown is not None
    assert len(pybase64.b64decode(shown["item"]["content"][0]["audio"])) == num_bytes


@given(
    num_bytes=st.integers(0, 300_000),
    num_parts=st.integers(0, 3),
    num_letters=st.integers(0, 120_000),
)
def test_retrieved_items_fit_whatever_they_hold(
    num_bytes: int, num_parts: int, num_letters: int
) -> None:
    parts = [InputText("x" * num_letters), *(InputAudio(bytes(num_bytes * 2)),) * num_parts]
    settings = NamedFormat(SoundFormat(Encoding.PCM16, 16000), "pcm16")
    event = ItemRetrieved(UserMessage("i" * 128, parts), settings)
    (message,) = Renderer(Dialect.GA, IDENTITY).render(event)
    assert len(message) <= MAX_MESSAGE_BYTES
    if num_parts == 1 and num_letters == 0 and 0 < num_bytes < 190_000:
        assert "audio" in json.loads(message)["item"]["content"][1]


counts = st.integers(0, 10**6)


@given(usage=st.builds(Usage, *(counts,) * 8), dialect=st.sampled_from(Dialect))
def test_usage_adds_up(usage: Usage, dialect: Dialect) -> None:
    view = dataclasses.replace(FATES[0], usage=usage)
    done = render(ResponseDone(view), dialect)
    assert done is not None
    shown = done["response"]["usage"]
    of_input, of_output = shown["input_token_details"], shown["output_token_details"]
    names = ("text_tokens", "audio_tokens", "image_tokens")
    assert shown["total_tokens"] == shown["input_tokens"] + shown["output_tokens"]
    assert shown["input_tokens"] == sum(of_input[name] for name in names)
    assert of_input["cached_tokens"] == sum(of_input["cached_tokens_details"].values())
    assert shown["output_tokens"] == sum(of_output.values())
    if dialect is Dialect.DASHSCOPE:
        assert shown["input_tokens_details"] == of_input


def test_usage_is_there_when_done_and_only_then() -> None:
    view = dataclasses.replace(FATES[3], usage=None)
    done, created = (
        render(ResponseDone(view), Dialect.GA),
        render(ResponseCreated(FATES[0]), Dialect.GA),
    )
    assert done is not None and created is not None
    assert done["response"]["usage"]["total_tokens"] == 0 and created["response"]["usage"] is None
