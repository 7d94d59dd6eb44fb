"""Items as clients describe them: every kind of part, every alias, limits, and snapshots that stay."""

from __future__ import annotations

import copy
from typing import Any

import pybase64
import pytest

from server.items import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    InputImage,
    InputText,
    InputVideo,
    Item,
    ItemReference,
    OutputAudio,
    OutputText,
    SystemMessage,
    UserMessage,
    parse_input,
    parse_item,
    snapshot,
)
from streaming.errors import ClientError
from streaming.pcm import write_wav

PICTURE = "data:image/png;base64,iVBORw=="
PNG = b"\x89PNG"


def message(role: str, *content: object, **members: object) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(content), **members}


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ({"type": "input_text", "text": "a"}, InputText("a")),
        ({"type": "text", "text": ""}, InputText("")),
        ({"type": "input_audio", "audio": "AAE="}, InputAudio(encoded=b"\0\1")),
        ({"type": "audio", "audio": "AAE=", "transcript": "a"}, InputAudio(None, "a", b"\0\1")),
        ({"type": "input_audio", "transcript": "a"}, InputAudio(transcript="a")),
        ({"type": "input_audio", "audio": None, "transcript": None}, InputAudio()),
        (
            {"type": "input_audio", "input_audio": {"data": "AAE=", "format": "pcm16"}},
            InputAudio(encoded=b"\0\1"),
        ),
        ({"type": "input_image", "image_url": PICTURE, "detail": "high"}, InputImage(PNG)),
        ({"type": "input_image", "image_url": "iVBORw=="}, InputImage(PNG)),
        ({"type": "image_url", "image_url": {"url": PICTURE}}, InputImage(PNG)),
        (
            {"type": "input_video", "video_url": "data:video/webm;codecs=vp8;base64,GkU="},
            InputVideo(b"\x1aE", "video/webm"),
        ),
        (
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,GkU="}},
            InputVideo(b"\x1aE", "video/mp4"),
        ),
    ],
)
def test_what_a_user_may_say(part: dict[str, Any], read: object) -> None:
    assert parse_item(message("user", part), "item") == UserMessage("", [read])  # type: ignore[list-item]


def test_a_wav_file_ends_at_its_limit() -> None:
    for num_bytes, param in ((2**20 - 44, None), (2**20 - 42, "item.content.0.input_audio.data")):
        data = {"data": pybase64.b64encode_as_string(write_wav(bytes(num_bytes), 48000))}
        raw = message("user", {"type": "input_audio", "input_audio": data})
        if param is None:
            parse_item(raw, "item")
            continue
        with pytest.raises(ClientError) as caught:
            parse_item(raw, "item")
        assert caught.value.param == param


def test_a_wav_file_is_decoded() -> None:
    wav = write_wav(bytes(4800), 24000)
    data = {"data": pybase64.b64encode_as_string(wav), "format": "wav"}
    item = parse_item(message("user", {"type": "input_audio", "input_audio": data}), "item")
    assert item == UserMessage("", [InputAudio(pcm=bytes(3200))])


@pytest.mark.parametrize(
    ("raw", "item"),
    [
        (
            message("system", {"type": "input_text", "text": "a"}, id="item_1"),
            SystemMessage("item_1", [InputText("a")]),
        ),
        (message("developer", {"type": "text", "text": "a"}), SystemMessage("", [InputText("a")])),
        (
            message(
                "assistant",
                {"type": "output_text", "text": "a"},
                {"type": "text", "text": "b"},
                {"type": "output_audio", "transcript": "c", "audio": "ignored"},
                {"type": "audio"},
                status="in_progress",
                object="realtime.item",
            ),
            AssistantMessage(
                "", [OutputText("a"), OutputText("b"), OutputAudio("c"), OutputAudio("")]
            ),
        ),
        ({"role": "user", "content": "a", "id": ""}, UserMessage("", [InputText("a")])),
        ({"type": "message", "role": "user", "content": None, "id": None}, UserMessage("")),
        (
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"},
            FunctionCall("", "f", "c", "{}"),
        ),
        ({"type": "function_call", "name": "f", "call_id": "c"}, FunctionCall("", "f", "c", "")),
        (
            {"type": "function_call_output", "id": "x" * 128, "call_id": "c", "output": ""},
            FunctionCallOutput("x" * 128, "c", ""),
        ),
    ],
)
def test_kinds_of_items(raw: dict[str, Any], item: Item) -> None:
    before = copy.deepcopy(raw)
    assert parse_item(raw, "item") == item
    assert raw == before


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        ("a", "invalid_value", ""),
        ({}, "missing_required_parameter", ".type"),
        ({"type": "mcp_call"}, "invalid_value", ".type"),
        ({"type": "message"}, "missing_required_parameter", ".role"),
        (message("tool"), "invalid_value", ".role"),
        (message("user", id=7), "invalid_value", ".id"),
        (message("user", id="x" * 129), "invalid_value", ".id"),
        (message("user", "a"), "invalid_value", ".content.0"),
        (message("user", {}), "missing_required_parameter", ".content.0.type"),
        (message("user", {"type": "output_text"}), "invalid_value", ".content.0.type"),
        (message("user", {"type": "text"}), "missing_required_parameter", ".content.0.text"),
        (message("user", {"type": "text", "text": 7}), "invalid_value", ".content.0.text"),
        (
            message("user", {"type": "text", "text": "x" * 131073}),
            "invalid_value",
            ".content.0.text",
        ),
        (
            message("user", *[{"type": "text", "text": "x" * 65537}] * 2),
            "invalid_value",
            ".content",
        ),
        (message("user", {"type": "audio", "audio": "?"}), "invalid_value", ".content.0.audio"),
        (
            message("user", {"type": "audio", "input_audio": {"data": "", "format": "mp3"}}),
            "invalid_value",
            ".content.0.input_audio.format",
        ),
        (
            message("user", {"type": "audio", "input_audio": {"data": "UklGRg=="}}),
            "invalid_value",
            ".content.0.input_audio.data",
        ),
        (
            message("user", {"type": "input_image"}),
            "missing_required_parameter",
            ".content.0.image_url",
        ),
        (
            message("user", {"type": "input_image", "image_url": "https://a/b.png"}),
            "invalid_value",
            ".content.0.image_url",
        ),
        (
            message("user", {"type": "input_image", "image_url": "data:image/png;base64,?"}),
            "invalid_image",
            ".content.0.image_url",
        ),
        (
            message("user", {"type": "input_image", "image_url": 7}),
            "invalid_value",
            ".content.0.image_url",
        ),
        (
            message("user", {"type": "image_url", "image_url": {"url": "A" * 11184816}}),
            "image_too_large",
            ".content.0.image_url.url",
        ),
        (
            message("user", {"type": "input_video", "video_url": "data:video/avi;base64,GkU="}),
            "unsupported_media_type",
            ".content.0.video_url",
        ),
        (
            message("assistant", {"type": "input_image", "image_url": PICTURE}),
            "invalid_value",
            ".content.0.type",
        ),
        ({"type": "function_call", "call_id": "c"}, "missing_required_parameter", ".name"),
        ({"type": "function_call", "name": "f"}, "missing_required_parameter", ".call_id"),
        (
            {"type": "function_call_output", "call_id": "c"},
            "missing_required_parameter",
            ".output",
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": {}},
            "invalid_value",
            ".output",
        ),
    ],
)
def test_errors_name_the_place(raw: object, code: str, param: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_item(raw, "item")
    assert (caught.value.code, caught.value.param) == (code, f"item{param}")


def test_input_may_refer_to_items() -> None:
    raw = [{"type": "item_reference", "id": "a"}, message("user")]
    assert parse_input(raw, "input") == (ItemReference("a"), UserMessage(""))
    with pytest.raises(ClientError) as caught:
        parse_input([message("user"), {"type": "item_reference"}], "input")
    assert caught.value.param == "input.1.id"


@pytest.mark.parametrize(
    "item",
    [
        UserMessage("a", [InputAudio(b"x", None)]),
        AssistantMessage("a", [OutputAudio("x")], "in_progress"),
        FunctionCall("a", "f", "c", "{", "in_progress"),
        FunctionCallOutput("a", "c", "x"),
    ],
)
def test_a_snapshot_stays_as_it_is(item: Item) -> None:
    taken, before = snapshot(item), copy.deepcopy(item)
    assert type(taken) is type(item) and taken == item
    item.status = "incomplete"
    if isinstance(item, UserMessage | AssistantMessage):
        for part in item.content:
            part.transcript = "later"  # type: ignore[union-attr]  # all of them have one
        item.content.clear()
    assert taken == before
