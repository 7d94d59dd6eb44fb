"""Keys, pages, secrets and the REST part, on a server that asks for a key."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.house import STAND_IN, House
from tests.server.media.files import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.house import Caller

KEY = "marked-key-5e1f"
SIGNING_KEY = "marked-signing-77aa"
WORDS = "marked words that somebody said"
INSTRUCTIONS = "marked instructions"
CORS_HEADERS = {"headers": "authorization, api-key, content-type", "methods": "GET, POST"}
CORS = ("origin", *CORS_HEADERS)
REPLY = "marked words of a reply"
PICTURE = "marked comment of a picture"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(
        worker_command=STAND_IN,
        model="stand-in",
        api_keys=f"ana={KEY}",
        secret_key=SIGNING_KEY,
        origins="https://good.example.com",
        demo=True,
        failed_keys_per_minute=30,
        log_level="DEBUG",
    )
    try:
        yield made.wait_ready()
    finally:
        made.close()


def knock(house: House, query: str = "", **options: Any) -> tuple[str, int]:
    """What a caller is told first, and how it ends: a close code, a status, or 0 if the door stays open."""

    async def scene() -> tuple[str, int]:
        try:
            async with house.call(query, **options) as caller:
                try:
                    event = await caller.next()
                except ConnectionClosed:
                    return caller.socket.close_reason or "", caller.socket.close_code or 0
                if event["type"] != "error":
                    return event["type"], 0
                with pytest.raises(ConnectionClosed):
                    await caller.next()
                assert (
                    caller.socket.close_reason == f"invalid_request_error.{event['error']['code']}"
                )
                return event["error"]["code"], caller.socket.close_code or 0
        except InvalidStatus as refusal:
            return "", refusal.response.status_code

    return asyncio.run(scene())


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


@pytest.mark.parametrize(
    "options",
    [
        bearer(KEY),
        {"additional_headers": {"api-key": KEY}},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{KEY}"]},
    ],
)
def test_a_key_opens_wherever_it_stands(locked: House, options: dict[str, Any]) -> None:
    assert knock(locked, **options) == ("session.created", 0)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("", bearer("wrong")),
        ("", bearer("ek_made.up")),
        (f"?api-key={KEY}", {}),  # off unless configured: addresses are logged
        ("", {"subprotocols": ["realtime"]}),
    ],
)
def test_f31_a_wrong_key_is_told_in_an_event(
    locked: House, query: str, options: dict[str, Any]
) -> None:
    assert knock(locked, query, **options) == ("invalid_api_key", 3000)


@pytest.mark.parametrize(
    ("origin", "is_admitted"),
    [
        ("https://good.example.com", True),
        ("http://127.0.0.1:PORT", True),
        ("https://good.example.com.evil.com", False),
        ("http://good.example.com", False),
        ("http://127.0.0.1:1", False),
        ("null", False),
    ],
)
def test_f31_pages(locked: House, origin: str, is_admitted: bool) -> None:
    given = origin.replace("PORT", str(locked.port))
    told = knock(locked, origin=given, **bearer(KEY))
    assert told == (("session.created", 0) if is_admitted else ("origin_refused", 1008))


@pytest.mark.parametrize(
    ("query", "code"),
    [("?intent=transcription", "unsupported_session_type"), ("?call_id=x", "invalid_value")],
)
def test_what_is_impossible_is_told_in_an_event(locked: House, query: str, code: str) -> None:
    assert knock(locked, query, **bearer(KEY)) == (code, 4000)


@pytest.mark.parametrize(
    "path", ["/v1/realtime/", "/realtime", "/openai/v1/realtime", "/openai/realtime?api-version=1"]
)
def test_every_path_leads_to_a_session(locked: House, path: str) -> None:
    async def scene() -> str:
        from websockets.asyncio.client import connect

        url = f"ws://127.0.0.1:{locked.port}{path}"
        async with connect(url, compression=None, **bearer(KEY)) as socket:
            return str(json.loads(await socket.recv())["type"])

    assert asyncio.run(scene()) == "session.created"


def test_the_subprotocol_realtime_is_chosen_and_no_other(locked: House) -> None:
    async def scene(*offered: str) -> str | None:
        async with locked.call(subprotocols=list(offered), **bearer(KEY)) as caller:
            return caller.socket.subprotocol

    assert asyncio.run(scene("openai-beta.realtime-v1", "realtime")) == "realtime"
    assert asyncio.run(scene("openai-beta.realtime-v1")) is None


def test_unknown_paths_answer_in_json(locked: House) -> None:
    status, body, _ = locked.http("/v1/nothing")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
    status, body, headers = locked.http("/v1/realtime")
    assert (status, json.loads(body)["error"]["code"]) == (426, "upgrade_required")
    assert headers["upgrade"] == "websocket"

    async def scene() -> tuple[int, bytes]:
        from websockets.asyncio.client import connect

        with pytest.raises(InvalidStatus) as refusal:
            async with connect(f"ws://127.0.0.1:{locked.port}/v2/other"):
                pass
        return refusal.value.response.status_code, refusal.value.response.body

    status, content = asyncio.run(scene())
    assert (status, json.loads(content)["error"]["code"]) == (404, "not_found")


def test_a_client_secret_opens_sockets_with_its_settings_and_nothing_else(locked: House) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    wanted = {"session": {"type": "realtime", "instructions": INSTRUCTIONS}}
    status, body, _ = locked.http("/v1/realtime/client_secrets", wanted, headers)
    assert status == 200, body
    secret = json.loads(body)
    assert secret["value"].startswith("ek_")
    assert secret["session"]["instructions"] == INSTRUCTIONS

    async def scene() -> None:
        protocols = ["realtime", f"openai-insecure-api-key.{secret['value']}"]
        async with locked.call(subprotocols=protocols) as caller:
            created = await caller.until("session.created")
            assert created["session"]["instructions"] == INSTRUCTIONS

    asyncio.run(scene())
    again = {"Authorization": f"Bearer {secret['value']}"}
    assert locked.http("/v1/realtime/client_secrets", {}, again)[0] == 401


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 5}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": True}}, "expires_after.seconds"),
        ({"session": []}, "session"),
        ({"session": {"type": "realtime", "audio": {"output": {"speed": "x"}}}}, None),
        ([], None),
    ],
)
def test_secrets_with_wrong_wishes_are_refused(
    locked: House, body: object, param: str | None
) -> None:
    status, text, _ = locked.http(
        "/v1/realtime/client_secrets", body, {"Authorization": f"Bearer {KEY}"}
    )
    assert status == 400
    assert param is None or json.loads(text)["error"]["param"] == param


def test_beta_sessions_models_and_what_is_not_served(locked: House) -> None:
    headers = {"api-key": KEY}
    status, body, _ = locked.http("/openai/v1/realtime/sessions", {"voice": "alloy"}, headers)
    assert status == 200, body
    assert json.loads(body)["client_secret"]["value"].startswith("ek_")
    status, body, _ = locked.http("/v1/models", headers=headers)
    assert [m["id"] for m in json.loads(body)["data"]] == ["stand-in"]
    assert locked.http("/v1/models/stand-in", headers=headers)[0] == 200
    assert locked.http("/v1/models/other", headers=headers)[0] == 404
    assert locked.http("/v1/models")[0] == 401
    status, body, _ = locked.http("/v1/realtime/calls", {}, headers)
    assert (status, json.loads(body)["error"]["code"]) == (404, "unsupported_endpoint")


def test_metrics_are_for_this_machine_or_a_key(locked: House) -> None:
    assert locked.http("/metrics")[0] == 200
    assert locked.http("/metrics", headers={"X-Forwarded-For": "192.0.2.1"})[0] == 404
    both = {"X-Forwarded-For": "192.0.2.1", "Authorization": f"Bearer {KEY}"}
    assert locked.http("/metrics", headers=both)[0] == 200


def test_the_demo_page_is_served_with_what_keeps_strangers_out(locked: House) -> None:
    status, body, headers = locked.http("/")
    assert status == 200 and "<script" in body
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["permissions-policy"] == "microphone=(self), camera=(self)"
    assert headers["cache-control"] == "no-cache"
    _, _, headers = locked.http("/main.js")
    assert headers["content-type"].startswith("text/javascript")
    status, body, _ = locked.http("/../server/cli.py")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")


def test_a_stranger_cannot_say_that_he_calls_for_another(locked: House) -> None:
    forwarded = bearer(KEY)["additional_headers"] | {"X-Forwarded-For": "192.0.2.99"}
    assert knock(locked, additional_headers=forwarded) == ("session.created", 0)
    assert "192.0.2.99" not in locked.text


def test_f31_guessing_is_slowed_down(locked: House) -> None:
    """The last to use this house: it lets nobody in from here any more."""
    told = [knock(locked, **bearer(f"guess-{n}")) for n in range(40)]
    assert told[-1] == ("", 429)
    assert locked.http("/v1/models", headers={"api-key": "guess"})[0] == 429


def write_keys(file: Path, *names: str) -> None:
    file.write_text("".join(f"{name}=key-of-{name}\n" for name in names))


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    write_keys(file, "ana", "bo")
    return file


@pytest.fixture(scope="module")
def strict(keys_file: Path) -> Iterator[House]:
    """Behind a proxy on this machine, with small limits."""
    made = House(
        worker_command=STAND_IN,
        model="stand-in",
        api_keys_file=keys_file,
        origins="https://good.example.com",
        trusted_proxies="127.0.0.1",
        strict_model_names=True,
        sessions_per_address=2,
        sessions_per_key=3,
        failed_keys_per_minute=3,
    )
    try:
        yield made.wait_ready()
    finally:
        made.close()


def seen(name: str, address: str) -> dict[str, Any]:
    """A caller as the proxy tells of him. Every test has its own addresses."""
    headers = {"Authorization": f"Bearer key-of-{name}", "X-Forwarded-For": address}
    return {"additional_headers": headers}


@pytest.mark.parametrize(
    ("inside", "refused", "admitted"),
    [
        # Two of one address; two more would be too many of the key, too.
        ([("ana", "192.0.2.1")] * 2, ("bo", "192.0.2.1"), ("bo", "192.0.2.2")),
        (
            [("bo", f"192.0.2.{n}") for n in (11, 12, 13)],
            ("bo", "192.0.2.14"),
            ("ana", "192.0.2.14"),
        ),
    ],
)
def test_sessions_of_an_address_and_of_a_key_are_counted(
    strict: House,
    inside: list[tuple[str, str]],
    refused: tuple[str, str],
    admitted: tuple[str, str],
) -> None:
    strict.wait_until(lambda: strict.figure("parley_sessions") == 0)

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            for name, address in inside:
                caller = await stack.enter_async_context(strict.call(**seen(name, address)))
                await caller.until("session.created")
            assert await asyncio.to_thread(knock, strict, **seen(*refused)) == ("", 429)
            told = await asyncio.to_thread(knock, strict, **seen(*admitted))
            assert told == ("session.created", 0)

    asyncio.run(scene())
    strict.wait_until(lambda: strict.figure("parley_sessions") == 0)
    assert knock(strict, **seen(*refused)) == ("session.created", 0)


def test_a_trusted_proxy_says_who_calls(strict: House) -> None:
    assert knock(strict, **seen("ana", "192.0.2.21")) == ("session.created", 0)
    strict.wait_for_line(r'"session opened".*"address": "192\.0\.2\.21"', 5)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?model=other", ("model_not_found", 4000)),
        ("?model=stand-in", ("session.created", 0)),
        ("", ("session.created", 0)),
    ],
)
def test_strict_model_names(strict: House, query: str, told: tuple[str, int]) -> None:
    assert knock(strict, query, **seen("ana", "192.0.2.31")) == told


def test_f31_a_page_that_keeps_trying_is_refused_cheaply_and_locks_nobody_out(
    strict: House,
) -> None:
    page = seen("ana", "192.0.2.41") | {"origin": "https://evil.example.com"}
    told = [knock(strict, **page) for _ in range(5)]
    assert told == [("origin_refused", 1008)] * 3 + [("", 403)] * 2
    assert knock(strict, **seen("ana", "192.0.2.41")) == ("session.created", 0)


@pytest.mark.parametrize(
    ("origin", "may_read"),
    [("https://good.example.com", True), ("https://evil.example.com", False)],
)
def test_pages_of_configured_origins_may_ask_for_secrets(
    strict: House, origin: str, may_read: bool
) -> None:
    path, named = "/v1/realtime/client_secrets", {"Origin": origin}
    with_key = named | {"Authorization": "Bearer key-of-ana", "X-Forwarded-For": "192.0.2.51"}
    asked = strict.http(path, headers=named, method="OPTIONS")
    made = strict.http(path, {}, with_key)
    assert (asked[0], made[0]) == (204, 200)
    for _, _, headers in (asked, made):
        allowed = {name: headers.get(f"access-control-allow-{name}") for name in CORS}
        assert allowed == ({"origin": origin} | CORS_HEADERS if may_read else dict.fromkeys(CORS))
        assert headers["vary"] == "origin"


def test_f31_a_withdrawn_key_ends_its_sessions_and_no_other(strict: House, keys_file: Path) -> None:
    async def scene() -> None:
        ana, bo = seen("ana", "192.0.2.61"), seen("bo", "192.0.2.62")
        async with strict.call(**ana) as stays, strict.call(**bo) as leaves:
            await leaves.until("session.created")
            write_keys(keys_file, "ana")
            with pytest.raises(ConnectionClosed):
                await leaves.until(
                    "response.done"
                )  # which never comes; the file is read every 15 s
            closed = leaves.socket.close_code, leaves.socket.close_reason
            assert closed == (3000, "invalid_request_error.invalid_api_key")
            assert (await stays.ask("Still there?"))["status"] == "completed"
        told = await asyncio.to_thread(knock, strict, **bo)
        assert told == ("invalid_api_key", 3000)
        write_keys(keys_file, "ana", "bo")

    asyncio.run(scene())


def marked_jpeg() -> bytes:
    """A picture that goes as it is, its mark in a comment."""
    plain, comment = picture("JPEG"), PICTURE.encode()
    return plain[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + plain[2:]


def traces_of(mark: str) -> set[str]:
    """A mark as it may stand somewhere: plain, or within base64 however it is aligned."""
    shifted = (base64.b64encode(bytes(n) + mark.encode()).decode()[4:-4] for n in range(3))
    return {mark, *shifted}


def codes_heard(caller: Caller) -> set[str]:
    return {event["error"]["code"] for event in caller.heard if event["type"] == "error"}


def test_f32_no_secret_is_in_any_log_figure_or_stack() -> None:
    sound = (WORDS * 40).encode()[:1600]
    house = House(
        ["--words", REPLY, "--fault", "odd", "--pace", "20"],
        worker_command=STAND_IN,
        model="stand-in",
        api_keys=f"ana={KEY}",
        secret_key=SIGNING_KEY,
        allow_query_key=True,
        log_level="DEBUG",
    )

    async def say_everything(caller: Caller) -> None:
        await caller.configure(instructions=INSTRUCTIONS)
        await caller.append(sound)
        await caller.socket.send(b'{"type":"input_image_buffer.append"}\n' + sound)
        await caller.socket.send(b'{"type":"input_image_buffer.append"}\n' + marked_jpeg())
        head = b'{"type":"input_video_buffer.append","format":"video/webm","last":true}'
        film = head + b"\n\x1a\x45\xdf\xa3" + sound
        await caller.socket.send(film)
        await caller.socket.send('{"type": "response.create", "' + WORDS + '": ')
        await caller.send("session.update", session={"type": WORDS})
        await caller.send(WORDS)
        await caller.send("conversation.item.delete", item_id=WORDS)
        await caller.ask(WORDS)
        assert caller.text_heard() == REPLY
        while "media_decode_error" not in (errors := codes_heard(caller)):
            await caller.next()
        assert {"invalid_image", "invalid_json"} <= errors

    async def fail_within(caller: Caller) -> None:
        """The second reply cannot be handled: the session ends, and a trace is written."""
        await caller.type(WORDS)
        await caller.send("response.create")
        with pytest.raises(ConnectionClosed):
            await caller.until("response.done")
        assert caller.socket.close_code == 1011

    async def outlive_the_worker(caller: Caller) -> None:
        await caller.type(WORDS)
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
        os.kill(house.worker_pid, signal.SIGABRT)  # as the supervisor does: it writes its stacks
        assert (await caller.until("response.done"))["response"]["status"] == "failed"

    async def scene(secret: str) -> None:
        async with house.call(f"?api-key={KEY}", origin=None) as caller:
            await say_everything(caller)
            await fail_within(caller)
        protocols = ["realtime", f"openai-insecure-api-key.{secret}"]
        async with house.call(subprotocols=protocols) as caller:
            await outlive_the_worker(caller)

    try:
        house.wait_ready()
        headers = {"Authorization": f"Bearer {KEY}"}
        wanted = {"session": {"type": "realtime", "instructions": INSTRUCTIONS}}
        status, body, _ = house.http("/v1/realtime/client_secrets", wanted, headers)
        assert status == 200
        secret = json.loads(body)["value"]
        asyncio.run(scene(secret))
        knock(house, **bearer(f"{KEY}-wrong"))
        knock(house, **bearer(f"{secret}-wrong"))
        knock(house, origin="null", **bearer(KEY))
        figures = house.http("/metrics")[1]
        assert house.figure("parley_session_faults_total") == 1
    finally:
        house.close()
    written = house.text + figures
    told = ['"session opened"', '"session fault"', '"trace"', "Fatal Python error: Aborted"]
    assert [phrase for phrase in told if phrase not in written] == []
    marks = [KEY, SIGNING_KEY, WORDS, INSTRUCTIONS, REPLY, PICTURE, "ek_", *secret[3:].split(".")]
    assert [x for mark in marks for x in traces_of(mark) if x and x in written] == []
