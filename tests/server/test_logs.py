"""Log lines: an allow-list, and sinks that break without breaking us."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from server import logs
from server.logs import FIELDS, JsonLines, QueuedLines, json_logs, say


def written(record: logging.LogRecord) -> dict[str, object]:
    line: dict[str, object] = json.loads(JsonLines().format(record))
    return line


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("server.door", logging.INFO, "f", 1, "session opened", None, None)
    setattr(made, FIELDS, fields)
    return made


def test_a_line_has_what_an_operator_needs() -> None:
    line = written(record(session="sess_1", worker=0))
    assert line["event"] == "session opened" and line["level"] == "info"
    assert (line["session"], line["worker"]) == ("sess_1", 0)
    assert str(line["time"]).endswith("+00:00")


@pytest.mark.parametrize(
    "name", ["audio", "text", "transcript", "key", "token", "query", "headers"]
)
def test_what_is_not_on_the_list_cannot_be_written(name: str) -> None:
    assert "marked" not in json.dumps(written(record(**{name: "marked"})))


def test_a_full_disk_is_counted_and_nothing_else() -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    handler = QueuedLines(Full())
    handler.start()
    handler.emit(record())
    handler.stop()
    assert handler.num_dropped == 1


def test_a_sink_that_blocks_does_not_block_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LINES", 3)
    goes_on = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            goes_on.wait(10)
            return len(text)

    handler = QueuedLines(Stuck())
    handler.start()
    for _ in range(10):
        handler.emit(record())
    assert handler.num_dropped >= 6  # three wait, one is being written
    goes_on.set()
    handler.stop()


def test_while_it_lasts_it_is_the_only_handler_and_quiets_those_who_tell_too_much() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    with json_logs("DEBUG", stream):
        logging.getLogger("uvicorn.error").info("GET /v1/realtime?api-key=marked")
        logging.getLogger("websockets").debug("< TEXT marked")
        try:
            try:
                _ = {}["what somebody said"]  # type: ignore[var-annotated]
            except KeyError as error:
                raise ExceptionGroup("said", [ValueError("what somebody said")]) from error
        except ExceptionGroup:
            say(logging.getLogger("server.x"), "fault", logging.ERROR, has_trace=True, code=1011)
    assert (root.handlers[:], root.level) == before
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["code"] == 1011
    trace = json.loads(line)["trace"]
    assert [x for x in trace.splitlines() if not x.startswith(" ")] == [
        "KeyError", "ValueError", "ExceptionGroup",
    ]  # fmt: skip
    assert f'File "{__file__}"' in trace
