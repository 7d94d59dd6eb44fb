"""Packets survive the trip whole; what is no packet is named as such."""

from __future__ import annotations

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import LinkError
from streaming.media import ClipKind, ClipStart, FramePair, MediaChunk, VideoFrame
from streaming.packets import (
    MAX_PACKET_BYTES,
    PROTOCOL,
    AppendChunk,
    AudioDelta,
    Capacity,
    CloseSession,
    Command,
    CommitTurn,
    DoneReason,
    Hello,
    OpenSession,
    Reply,
    ReplyOptions,
    SamplingOptions,
    SessionSettings,
    TextDelta,
    Usage,
    decode_command,
    decode_reply,
    encode_packet,
    require_protocol,
)

STRATEGIES: dict[object, st.SearchStrategy[object]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=50),
    DoneReason: st.sampled_from(DoneReason),
    ClipKind: st.sampled_from(ClipKind),
}


def values_of(kind: object) -> st.SearchStrategy[object]:
    """Any value of a field's type, structs by their own fields."""
    if kind in STRATEGIES:
        return STRATEGIES[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if arguments:
        return st.one_of([values_of(one) for one in arguments])
    if kind is type(None):
        return st.none()
    assert isinstance(kind, type) and issubclass(kind, msgspec.Struct), kind
    return st.builds(kind, *(values_of(hint) for hint in typing.get_type_hints(kind).values()))


@given(values_of(Command))
def test_every_command_survives_the_trip(command: Command) -> None:
    assert decode_command(encode_packet(command)) == command


@given(values_of(Reply))
def test_every_reply_survives_the_trip(reply: Reply) -> None:
    assert decode_reply(encode_packet(reply)) == reply


@given(st.binary(max_size=200))
def test_garbage_is_a_link_error(body: bytes) -> None:
    with pytest.raises(LinkError):
        decode_command(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x91\xa1\x80",  # a tag that is not UTF-8
        b"\x92\xacCloseSession\xa1\x80",  # a session id that is not UTF-8
        b"\x91" * 100_000,  # nested deeper than any stack
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
    ],
)
def test_hostile_bodies_are_link_errors(body: bytes) -> None:
    with pytest.raises(LinkError):
        decode_command(body)


@given(values_of(Command), st.data())
def test_cut_packets_are_link_errors(command: Command, data: st.DataObject) -> None:
    body = encode_packet(command)
    with pytest.raises(LinkError, match="could not be read"):
        decode_command(body[: data.draw(st.integers(0, len(body) - 1))])


def test_commands_and_replies_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(LinkError):
        decode_reply(encode_packet(CloseSession("s")))
    with pytest.raises(LinkError):
        decode_command(encode_packet(TextDelta("s", 1, "hello")))


def test_unknown_fields_are_refused_as_protocol_numbers_must_match() -> None:
    with pytest.raises(LinkError):
        decode_command(msgspec.msgpack.encode(["CloseSession", "s", "extra"]))


def test_everything_below_session_level_names_its_turn() -> None:
    session_level = {"OpenSession", "CloseSession", "SessionOpened", "SessionFailed"}
    link_level = {"Hello", "Loading", "Ready", "WorkerStatus"}
    for packet in (*typing.get_args(Command), *typing.get_args(Reply)):
        fields = packet.__struct_fields__
        if packet.__name__ in link_level:
            assert "session_id" not in fields
        elif packet.__name__ in session_level:
            assert fields[0] == "session_id" and "turn_id" not in fields
        else:
            assert fields[:2] == ("session_id", "turn_id"), packet


def test_the_layout_on_the_wire_is_this() -> None:
    """A change here is a change of the protocol: raise `PROTOCOL`."""
    layout = {
        packet.__name__: packet.__struct_fields__
        for packet in (*typing.get_args(Command), *typing.get_args(Reply))
    }
    structs = (
        ReplyOptions, SamplingOptions, SessionSettings, Usage, Capacity, ClipStart, FramePair, MediaChunk, VideoFrame,
    )  # fmt: skip
    layout |= {struct.__name__: struct.__struct_fields__ for struct in structs}
    text = "\n".join(f"{name} {' '.join(fields)}" for name, fields in sorted(layout.items()))
    assert (PROTOCOL, text) == (3, WIRE_3)


WIRE_3 = """\
AppendChunk session_id turn_id chunk
AppendImage session_id turn_id image
AppendPair session_id turn_id pair
AppendText session_id turn_id text role
AudioDelta session_id turn_id start_sample pcm
CancelTurn session_id turn_id heard_samples
Capacity num_lanes num_pages page_size context_tokens voices
ClipStart kind start_sample
CloseSession session_id
CommitTurn session_id turn_id options
FramePair index frames
Hello protocol build model
HoldTurn session_id turn_id is_held
InputRefused session_id turn_id code message
Loading stage progress
MediaChunk index start_sample pcm is_last
OpenClip session_id turn_id start
OpenSession session_id settings
Ready capacity
ReplyOptions speech \
voice thinker talker max_text_tokens max_codes noise_seed silent_from
ReportPlayed session_id turn_id played_samples
SamplingOptions temperature top_k top_p repetition_penalty seed
SessionFailed session_id code message
SessionOpened session_id
SessionSettings system_prompt voice
TextDelta session_id turn_id text
TruncateTurn session_id turn_id heard_samples
TurnDone session_id turn_id reason usage code message
TurnTruncated session_id turn_id heard_samples text
Usage input_text_tokens input_audio_tokens input_image_tokens \
cached_text_tokens cached_audio_tokens cached_image_tokens output_text_tokens output_audio_tokens
VideoFrame capture_sample jpeg
WorkerStatus step_count last_step_age_ms has_work num_sessions num_pages_free memory_bytes lateness_ms"""


def test_media_travels_as_raw_bytes() -> None:
    pcm = bytes(range(256)) * 100
    assert len(encode_packet(AudioDelta("session", 7, 0, pcm))) < len(pcm) + 40


def test_oversize_packets_do_not_leave() -> None:
    chunk = MediaChunk(0, 0, bytes(MAX_PACKET_BYTES), is_last=True)
    with pytest.raises(LinkError, match="AppendChunk of .* the limit is 33554432"):
        encode_packet(AppendChunk("s", 1, chunk))


def test_other_protocol_numbers_are_refused_with_both() -> None:
    require_protocol(Hello(PROTOCOL, "b", "m"))
    with pytest.raises(LinkError, match=f"protocol {PROTOCOL + 1}.*speaks {PROTOCOL};"):
        require_protocol(Hello(PROTOCOL + 1, "b", "m"))


def test_defaults_stand_for_the_models_own_values() -> None:
    assert OpenSession("s").settings == SessionSettings(system_prompt=None, voice=None)
    assert CommitTurn("s", 1).options == ReplyOptions(speech=True, thinker=None, talker=None)
