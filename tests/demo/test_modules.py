"""The pure parts of the page, called in a blank page: no DOM, no devices, no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from tests.demo.peer import Peer

Call = "Callable[[str, str, Any], Any]"


@pytest.fixture(scope="module")
def call(browser: Browser, shared_peer: Peer) -> Iterator[Callable[..., Any]]:
    """`call(module, body, value)` runs `body` with the module as `m` and the value as `x`."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{shared_peer.url}style.css")  # of the page's origin, without its code

    def run(module: str, body: str, value: Any = None) -> Any:
        return page.evaluate(
            f"async (x) => {{ const m = await import('/{module}.js'); {body} }}", value
        )

    yield run
    context.close()


RESAMPLE = """
const [from, to, hz] = x;
const r = new m.Resampler(from, to);
const out = [];
for (let n = 0; n < from / 2; n++) {
  r.push(hz ? Math.sin((2 * Math.PI * hz * n) / from) : 1);
  while (r.ready) out.push(r.pull());
}
return out;
"""


@pytest.mark.parametrize("rates", [(48000, 16000), (44100, 16000), (16000, 16000), (8000, 16000),
                                   (24000, 48000), (24000, 44100), (24000, 16000), (24000, 96000)])  # fmt: skip
def test_resampling_keeps_tones_and_count(call: Any, rates: tuple[int, int]) -> None:
    import numpy as np

    from_rate, to_rate = rates
    tone = np.array(call("worklets/resample", RESAMPLE, [from_rate, to_rate, 1000]))
    assert abs(len(tone) - to_rate / 2) <= 2
    middle = tone[200:-200]
    n = np.arange(len(middle))
    basis = np.stack(
        [np.sin(2 * np.pi * 1000 * n / to_rate), np.cos(2 * np.pi * 1000 * n / to_rate)], 1
    )
    fit, *_ = np.linalg.lstsq(basis, middle, rcond=None)
    assert abs(np.hypot(*fit) - 1) < 0.01
    assert np.abs(middle - basis @ fit).max() < 2e-3  # images and quantised weights, −54 dB
    constant = np.array(call("worklets/resample", RESAMPLE, [from_rate, to_rate, 0]))[200:]
    assert np.abs(constant - 1).max() < 1e-5


def test_resampling_removes_what_the_lower_rate_cannot_hold(call: Any) -> None:
    import numpy as np

    out = np.array(call("worklets/resample", RESAMPLE, [48000, 16000, 11000]))[200:]
    assert np.abs(out).max() < 1e-3


def test_binary_messages_survive_the_way_there_and_back(call: Any) -> None:
    body = """
    const bytes = Uint8Array.from([10, 0, 255, 10, 7]);
    const message = m.encodeBinary({ type: "a", "ü": "\\n" }, bytes.buffer);
    const { event, bytes: back } = m.decodeBinary(message.buffer);
    return [new TextDecoder().decode(message).split("\\n")[0], event, [...new Uint8Array(back)]];
    """
    line, event, back = call("realtime", body)
    assert line == '{"type":"a","ü":"\\n"}'
    assert event == {"type": "a", "ü": "\n"}
    assert back == [10, 0, 255, 10, 7]
    assert call(
        "realtime", "try { m.decodeBinary(new ArrayBuffer(3)) } catch (e) { return e.message }"
    )


def test_back_off_doubles_to_its_limit_with_jitter(call: Any) -> None:
    waits = call(
        "realtime", "return [0, 0.5, 1].map((r) => [0, 1, 2, 3, 4, 9].map((n) => m.backOff(n, r)))"
    )
    assert waits[1] == [500, 1000, 2000, 4000, 5000, 5000]
    assert waits[0] == [350, 700, 1400, 2800, 3500, 3500]
    assert waits[2][0] == 650


@pytest.mark.parametrize(
    ("code", "reason", "is_final", "words"),
    [
        (1006, "", False, "reconnecting"), (1001, "Server is shutting down.", False, ""),
        (1011, "server_error", False, ""), (1012, "service_restart", False, ""), (1013, "overloaded", False, ""),
        (1008, "slow_consumer", True, "too slow"), (1008, "origin_refused", True, "address"),
        (1008, "what", True, "(what)."), (1009, "", True, "too large"),
        (3000, "invalid_request_error.invalid_api_key", True, "access key"),
        (4000, "invalid_request_error.model_not_found", True, "model"),
        (4000, "invalid_request_error.other", True, "(invalid_request_error.other)."),
        (4001, "replaced", True, "another"),
    ],
)  # fmt: skip
def test_close_codes_retry_or_say_why_not(
    call: Any, code: int, reason: str, is_final: bool, words: str
) -> None:
    verdict = call("realtime", "return m.judgeClose(...x)", [code, reason])
    assert verdict["isFinal"] is is_final
    assert words in verdict["sentence"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (0, None, "not answering"), (200, {}, "places are taken"), (503, {"status": "loading"}, "loading."),
        (503, {"status": "loading", "eta_s": 11.2}, "(about 12 s)"),
        (503, {"status": "draining", "places": 0}, "restarting"),
        (503, None, "loading"),
    ],
)  # fmt: skip
def test_readiness_becomes_a_sentence(call: Any, status: int, body: Any, words: str) -> None:
    assert words in call("realtime", "return m.judgeReadiness(...x)", [status, body])["sentence"]


def test_every_state_can_be_left_and_reached(call: Any) -> None:
    table, sentences = call("conversation", "return [m.NEXT, m.SENTENCES]")
    assert set(table) == set(sentences)
    reached = {follow for row in table.values() for follow in row.values()}
    assert reached == set(table)
    for state, row in table.items():
        if state != "idle":
            assert row["end"] == "idle"


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("start granted ready hear ask sound rest", "listening"),
        ("start granted ready hear ask sound hear ask", "thinking"),
        ("start granted ready ask sound pause sound rest", "listening"),
        ("start granted lost ready", "listening"),
        ("start granted ready lost ready hear", "hearing"),
        ("start granted ready lost fail start", "asking"),
        ("start fail type ready ask", "thinking"),
        ("hear sound rest ask", "idle"),
        ("start granted ready hear sound", "hearing"),
    ],
)
def test_paths_through_the_states(call: Any, path: str, state: str) -> None:
    assert call("conversation", "return x.split(' ').reduce(m.nextState, 'idle')", path) == state


def test_captions_advance_with_the_sound_and_end_with_it(call: Any) -> None:
    text = "One, two, three. Then a longer sentence follows."
    at = [
        call("conversation", "return m.spokenLength(...x)", [text, ms, 3000, True])
        for ms in range(0, 3100, 100)
    ]
    assert at[0] == 0
    assert at == sorted(at)
    assert at[-1] == len(text)
    assert all(length in (0, len(text)) or text[length] == " " for length in at)
    # Before all is there, text that is far ahead of its sound waits for it.
    assert call("conversation", "return m.spokenLength(...x)", [text, 400, 400, False]) < 12


def test_captions_count_characters_not_code_units(call: Any) -> None:
    text = "今天海面很平静。👋🏽 再见"
    lengths = {
        call("conversation", "return m.spokenLength(...x)", [text, ms, 2000, True])
        for ms in range(0, 2001, 50)
    }
    assert max(lengths) == len(text.encode("utf-16-le")) // 2
    assert len(lengths) > 6  # a syllable at a time, not a sentence


def test_a_new_session_is_told_what_was_said(call: Any) -> None:
    body = """
    const j = new m.Journal();
    j.open("a", "user", { text: "Hello?", isDone: true });
    j.open("b", "assistant", { text: "Hello, how are you" });
    j.cut(j.find("b"), "Hello, how", 700);
    j.open("c", "user", { pictures: ["data:image/jpeg;base64,AA"], isDone: true });
    j.open("d", "user"); // still being said
    return [j.replay(), j.toText(), JSON.parse(j.toJson()).turns];
    """
    events, text, turns = call("conversation", body)
    assert [event["item"]["id"] for event in events] == ["a", "b", "c"]
    assert [event["item"]["content"][0]["type"] for event in events] == [
        "input_text",
        "output_text",
        "input_image",
    ]
    assert events[1]["item"]["content"][0]["text"] == "Hello, how"
    assert "Parley: Hello, how —\n" in text
    assert turns[1]["interrupted_at_ms"] == 700


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello", "en"),
        ("今天", "zh"),
        ("こんにちは、今日", "ja"),
        ("안녕", "ko"),
        ("Привет", "ru"),
        ("مرحبا", "ar"),
        ("नमस्ते", "hi"),
    ],
)
def test_the_script_of_a_caption_names_its_language(call: Any, text: str, language: str) -> None:
    assert call("conversation", "return m.languageOf(x)", text) == language


def test_ids_are_legal_and_differ(call: Any) -> None:
    ids = call("conversation", "return Array.from({ length: 50 }, m.newId)")
    assert len(set(ids)) == 50
    assert all(name.startswith("item_") and name[5:].isalnum() and len(name) <= 32 for name in ids)
