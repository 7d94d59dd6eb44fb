"""What clients send: every event in, exact errors out, and no word of the client's in them."""

from __future__ import annotations

import json
from typing import Any, get_args

import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import realtime_client_event

from server import events
from server.events import (
    MEDIA_MEMBERS,
    ErrorEvent,
    EventError,
    InputAudioAppend,
    InputImageAppend,
    InputVideoAppend,
    ItemCreate,
    ItemTruncate,
    Picture,
    PlaybackAck,
    ResponseCancel,
    ResponseCreate,
    ResponseRequest,
    parse_binary,
    parse_text,
)
from server.items import InputText, ItemReference, UserMessage
from streaming.errors import ClientError
from tests.server.examples import CLIENT_EXAMPLES, client_message

SECRET = "s3cr3t"
ITEM = CLIENT_EXAMPLES["conversation.item.create"]["item"]


def message(kind: str, **members: object) -> str:
    return json.dumps({"type": kind, **members})


def refusal(text: str | bytes) -> EventError:
    with pytest.raises(EventError) as caught:
        parse_binary(text) if isinstance(text, bytes) else parse_text(text)
    return caught.value


# ---- every event


def test_every_event_has_an_example() -> None:
    names = {kind.model_fields["type"].default for kind in get_args(events.ClientEvent)}
    assert names == set(CLIENT_EXAMPLES)


@pytest.mark.parametrize("kind", CLIENT_EXAMPLES)
def test_every_example_is_read_with_and_without_what_nobody_knows(kind: str) -> None:
    event = parse_text(client_message(kind))
    assert event.type == kind and event.event_id is None
    more = {"type": kind, **CLIENT_EXAMPLES[kind], "event_id": "e", "unknown": {"a": [1]}}
    assert parse_text(json.dumps(more)) == event.model_copy(update={"event_id": "e"})
    assert parse_text(json.dumps(more).encode()).event_id == "e"


def test_the_sdk_writes_the_same_events() -> None:
    (union, *_) = get_args(realtime_client_event.RealtimeClientEvent)
    sdk = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(union)}
    assert set(sdk) - set(CLIENT_EXAMPLES) == set()
    for name, kind in sdk.items():
        written = kind.model_validate_json(client_message(name)).model_dump_json()
        assert parse_text(written).type == name


def test_media_arrive_as_bytes() -> None:
    assert parse_text(message("input_audio_buffer.append", audio="")) == InputAudioAppend(audio=b"")
    image = "data:image/jpeg;base64,/9j/"
    assert parse_text(message("input_image_buffer.append", image=image)) == InputImageAppend(
        image=b"\xff\xd8\xff"
    )
    frames = [{"size": 1, "offset_ms": 0}, {"size": 2, "offset_ms": 500}]
    chunk = message("input_video_buffer.append", video="AAEC", format="Image/JPEG", frames=frames)
    assert parse_text(chunk) == InputVideoAppend(
        video=b"\0\1\2", format="image/jpeg", frames=(Picture(1, 0), Picture(2, 500))
    )


@given(st.binary(max_size=100))
def test_binary_and_text_messages_say_the_same(media: bytes) -> None:
    for kind, member in MEDIA_MEMBERS.items():
        rest = {k: v for k, v in CLIENT_EXAMPLES[kind].items() if k != member}
        text = message(kind, **rest, **{member: pybase64.b64encode_as_string(media)})
        assert parse_binary(message(kind, **rest).encode() + b"\n" + media) == parse_text(text)


def test_times_may_be_fractions_and_are_never_negative() -> None:
    members = {"item_id": "a", "content_index": 0}
    for given_ms, read_ms in ((12.9, 12), (-4, 0), (1e300, 2**53), (7, 7)):
        parsed = parse_text(message("conversation.item.truncate", **members, audio_end_ms=given_ms))
        assert isinstance(parsed, ItemTruncate) and parsed.audio_end_ms == read_ms


def test_null_is_absent() -> None:
    assert parse_text(message("response.create", response=None)) == ResponseCreate()
    ack = message("playback.ack", item_id="a", audio_end_ms=1, content_index=None, event_id=None)
    assert parse_text(ack) == PlaybackAck(item_id="a", audio_end_ms=1)
    assert parse_text(message("response.cancel", response_id="")) == ResponseCancel()
    created = parse_text(message("conversation.item.create", item=ITEM, previous_item_id=""))
    assert isinstance(created, ItemCreate) and created.previous_item_id is None
    chunk = message(
        "input_video_buffer.append",
        video="",
        format="video/mp4",
        stream_id=None,
        last=None,
        seq=None,
    )
    assert parse_text(chunk) == InputVideoAppend(video=b"", format="video/mp4")


def test_a_response_is_read_with_its_input() -> None:
    raw = {
        "conversation": "none",
        "input": [
            {"type": "item_reference", "id": "a"},
            {"type": "message", "role": "user", "content": "b"},
        ],
        "metadata": {"k": "v"},
        "voice": "x",
    }
    assert parse_text(message("response.create", response=raw)) == ResponseCreate(
        response=ResponseRequest(
            "none", (ItemReference("a"), UserMessage("", [InputText("b")])), {"k": "v"}, raw
        )
    )


def test_events_can_be_made_from_values() -> None:
    item = UserMessage("a", [InputText("b")])
    assert ItemCreate(item=item).item is item


# ---- refusals


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[]", "invalid_json", None),
        ('"a"', "invalid_json", None),
        ("null", "invalid_json", None),
        ('{"type":"\\ud800"}', "invalid_json", None),
        ("\ud800", "invalid_json", None),
        ("[" * 5000, "invalid_json", None),
        ("{}", "missing_required_parameter", "type"),
        ('{"type":"nonsense"}', "invalid_value", "type"),
        ('{"type":[1]}', "invalid_value", "type"),
        (message("session.update"), "missing_required_parameter", "session"),
        (message("session.update", session=[]), "invalid_value", "session"),
        (message("input_audio_buffer.append"), "missing_required_parameter", "audio"),
        (message("input_audio_buffer.append", audio="AAA"), "invalid_value", "audio"),
        (message("input_audio_buffer.append", audio="A A="), "invalid_value", "audio"),
        (message("input_audio_buffer.append", audio=7), "invalid_value", "audio"),
        (message("input_image_buffer.append", image="?"), "invalid_image", "image"),
        (message("input_image_buffer.append", image=None), "invalid_value", "image"),
        (
            message("input_image_buffer.append", image="data:image/png,AA=="),
            "invalid_image",
            "image",
        ),
        (message("input_image_buffer.append", image="http://a/b"), "invalid_value", "image"),
        (message("input_video_buffer.append", video=""), "missing_required_parameter", "format"),
        (
            message("input_video_buffer.append", video="", format="a/b"),
            "unsupported_media_type",
            "format",
        ),
        (
            message(
                "input_video_buffer.append", video="AAAA", format="image/jpeg", frames=[{"size": 2}]
            ),
            "invalid_value",
            "frames",
        ),
        (
            message("input_video_buffer.append", video="", format="image/jpeg", frames=[{}]),
            "missing_required_parameter",
            "frames.0.size",
        ),
        (
            message("input_video_buffer.append", video="", format="video/mp4", last="yes"),
            "invalid_value",
            "last",
        ),
        (message("conversation.item.create"), "missing_required_parameter", "item"),
        (message("conversation.item.create", item=[]), "invalid_value", "item"),
        (message("conversation.item.delete", item_id=""), "invalid_value", "item_id"),
        (message("conversation.item.delete", item_id="x" * 129), "invalid_value", "item_id"),
        (
            message("conversation.item.truncate", item_id="a", content_index=0, audio_end_ms="1"),
            "invalid_value",
            "audio_end_ms",
        ),
        (
            message("conversation.item.truncate", item_id="a", content_index=0, audio_end_ms=True),
            "invalid_value",
            "audio_end_ms",
        ),
        (
            '{"type":"playback.ack","item_id":"a","audio_end_ms":NaN}',
            "invalid_value",
            "audio_end_ms",
        ),
        (
            message("response.create", response={"conversation": "x"}),
            "invalid_value",
            "response.conversation",
        ),
        (
            message("response.create", response={"metadata": {"a": 1}}),
            "invalid_value",
            "response.metadata",
        ),
        (
            message("response.create", response={"metadata": {str(n): "" for n in range(17)}}),
            "invalid_value",
            "response.metadata",
        ),
        (
            message("response.create", response={"input": [{"type": "item_reference"}]}),
            "missing_required_parameter",
            "response.input.0.id",
        ),
        (message("session.finish", event_id="x" * 513), "invalid_value", "event_id"),
        (message("session.finish", event_id=7), "invalid_value", "event_id"),
        (b"", "invalid_binary_frame", None),
        (b"\n", "invalid_binary_frame", None),
        (b"\0\1\2\3" * 3000, "invalid_binary_frame", None),
        (b'{"type":"input_audio_buffer.append"}', "invalid_binary_frame", None),
        (b'{"type":"session.update"}\n', "invalid_binary_frame", None),
        (b'["input_audio_buffer.append"]\n', "invalid_binary_frame", None),
        (b'{"type":"input_video_buffer.append"}\nx', "missing_required_parameter", "format"),
        (
            b'{"type":"input_audio_buffer.append","x":"' + b"x" * 4096 + b'"}\nx',
            "invalid_binary_frame",
            None,
        ),
    ],
)
def test_refusals_name_the_member(text: str | bytes, code: str, param: str | None) -> None:
    fault = refusal(text)
    assert (fault.code, fault.param) == (code, param)
    assert fault.message and fault.message.endswith(".")


def test_a_refusal_carries_the_events_id() -> None:
    assert refusal(message("nonsense", event_id="e1")).event_id == "e1"
    assert refusal(message("input_audio_buffer.append", audio=1, event_id="e2")).event_id == "e2"
    assert refusal(b'{"type":"nonsense","event_id":"e3"}\n').event_id == "e3"
    assert refusal('{"type":"nonsense","event_id":').event_id is None
    assert refusal(message("nonsense", event_id="x" * 513)).event_id is None


@pytest.mark.parametrize(
    ("kind", "member", "limit", "code"),
    [
        ("input_audio_buffer.append", "audio", 15 * 2**20, "invalid_value"),
        ("input_image_buffer.append", "image", 8 * 2**20, "image_too_large"),
        ("input_video_buffer.append", "video", 15 * 2**20, "invalid_value"),
    ],
)
def test_media_end_at_their_limit(kind: str, member: str, limit: int, code: str) -> None:
    head = b'{"type":"%s","format":"video/mp4"}\n' % kind.encode()
    parse_binary(head + bytes(limit))
    assert refusal(head + bytes(limit + 1)).code == code
    as_text = pybase64.b64encode_as_string(bytes(limit + 1))
    fault = refusal(message(kind, format="video/mp4", **{member: as_text}))
    assert (fault.code, fault.param) == (code, member)


def test_a_flood_of_values_is_not_read() -> None:
    flood = '{"type":"session.finish","x":[' + "[]," * 250_000 + "[]]}"
    for text in (flood, flood.encode()):
        with pytest.raises(EventError) as caught:
            parse_text(text)
        assert (caught.value.code, caught.value.param) == ("invalid_json", None)
    # Base64 has none of the characters that are counted.
    picture = pybase64.b64encode_as_string(bytes(2**20))
    assert isinstance(
        parse_text(message("input_image_buffer.append", image=picture)), InputImageAppend
    )


def test_an_error_event_says_what_the_fault_knows() -> None:
    fault = EventError(ClientError("invalid_value", "Too long.", param="a.b", limit=3), "e1")
    assert ErrorEvent.of(fault, "other") == ErrorEvent(
        "invalid_value", "Too long. (limit 3)", "a.b", "e1"
    )
    assert ErrorEvent.of(ClientError("invalid_image"), "e2") == ErrorEvent(
        "invalid_image", "invalid_image", None, "e2"
    )


# ---- laws

words = st.text(max_size=4).map(lambda text: SECRET + text)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "auto", "root", "text", "message", "user", "data:image/png;base64,"])
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
MEMBERS = sorted(
    {name for example in CLIENT_EXAMPLES.values() for name in example}
    | {"event_id", "frames", "stream_id", "seq"}
)
PART_TYPES = ("text", "input_text", "input_audio", "image_url", "input_video", SECRET)
contents = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(PART_TYPES)},
        optional={"text": json_values, "audio": json_values, "image_url": json_values},
    )
)
CHANGED = ("type", "role", "content", "input", "metadata", "id", "conversation")


@st.composite
def almost_events(draw: st.DrawFn) -> dict[str, Any]:
    """An example with some members replaced, at any depth."""
    kind = draw(st.sampled_from(sorted(CLIENT_EXAMPLES)))
    event: dict[str, Any] = json.loads(client_message(kind))
    for _ in range(draw(st.integers(0, 3))):
        event[draw(st.sampled_from(MEMBERS))] = draw(json_values)
    for name in ("item", "response"):
        if isinstance(event.get(name), dict) and draw(st.booleans()):
            event[name][draw(st.sampled_from(CHANGED))] = draw(json_values | contents)
    return event


@given(almost_events() | json_values)
def test_whatever_arrives_is_an_event_or_an_error_without_the_clients_words(value: Any) -> None:
    text = json.dumps(value)
    try:
        parse_text(text)
    except EventError as fault:
        assert SECRET not in f"{fault} {fault.code} {fault.message} {fault.param} {fault.facts}"
        assert fault.event_id is None or fault.event_id == value["event_id"]
        assert fault.__cause__ is None and SECRET not in repr(fault.__context__)


WORDS = (
    *(f"{SECRET}?", f"http://{SECRET}", f"data:image/png;base64,{SECRET}?", f"data:{SECRET},"),
    *([SECRET], [{SECRET: SECRET}], {SECRET: SECRET}, {"type": SECRET}, {"role": SECRET}),
    *({"type": "message", "role": "user", "content": [{"type": kind, SECRET: 1, **part}]}
      for kind in (SECRET, "text", "input_audio", "input_image", "input_video")
      for part in ({"text": [SECRET]}, {"audio": f"{SECRET}?"}, {"image_url": f"{SECRET}?"}, {"video_url": SECRET})),
    *({name: SECRET} for name in ("conversation", "input", "metadata")),
    {"metadata": {SECRET: 1}},
)  # fmt: skip


@pytest.mark.parametrize("kind", CLIENT_EXAMPLES)
def test_no_member_leaks(kind: str) -> None:
    num_refused = 0
    for member in ("type", "event_id", *CLIENT_EXAMPLES[kind]):
        for value in WORDS:
            try:
                parse_text(json.dumps({"type": kind, **CLIENT_EXAMPLES[kind], member: value}))
            except EventError as fault:
                num_refused += 1
                assert SECRET not in f"{fault} {fault.facts}" and SECRET not in repr(
                    fault.__context__
                )
    assert num_refused >= len(WORDS)


@given(st.text() | st.binary(), st.binary())
def test_noise_is_an_error(noise: str | bytes, payload: bytes) -> None:
    for parse, received in ((parse_text, noise), (parse_binary, payload)):
        try:
            parse(received)  # type: ignore[operator]  # of its kind
        except EventError:
            pass


@given(almost_events(), st.binary(max_size=9))
def test_almost_binary_messages_never_raise_anything_else(
    header: dict[str, Any], payload: bytes
) -> None:
    try:
        event = parse_binary(json.dumps(header).encode() + b"\n" + payload)
    except EventError as fault:
        assert SECRET not in f"{fault} {fault.param}"
    else:
        assert getattr(event, MEDIA_MEMBERS[event.type]) == payload
