"""Records made by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.load.records import GeneratorRecord, LevelRecord, Packet, Run, TurnRecord

QUIET = GeneratorRecord(
    lag_p50_ms=0.3, lag_p99_ms=2.0, lag_max_ms=5.0, late_p99_ms=3.0, cpu_share=0.1
)
STALLED = GeneratorRecord(
    lag_p50_ms=0.3, lag_p99_ms=90.0, lag_max_ms=200.0, late_p99_ms=120.0, cpu_share=0.1
)


def turn(**fields: Any) -> TurnRecord:
    """A turn that went well, but for what is given."""
    usual: dict[str, Any] = {
        "index": 0, "clip": "question-uk", "speech_s": 2.0, "status": "completed", "target": "ours", "num_callers": 1,
        "decided_ms": 520.0, "response_ms": 525.0, "first_text_ms": 600.0, "first_audio_ms": 700.0, "audible_ms": 720.0,
        "last_audio_ms": 900.0, "done_ms": 910.0, "audio_s": 0.4, "speed": 2.0, "text": "Good day.",
        "packets": [Packet(700.0, 4800), Packet(900.0, 4800)],
    }  # fmt: skip
    return TurnRecord(**(usual | fields))


def level(
    target: str = "ours",
    num_callers: int = 1,
    generator: GeneratorRecord = QUIET,
    call_errors: list[str] | None = None,
) -> LevelRecord:
    return LevelRecord(target, num_callers, 10.0, generator, call_errors or [])


def run(
    turns: list[TurnRecord], levels: list[LevelRecord], targets: dict[str, str] | None = None
) -> Run:
    return Run(
        scenario="voice",
        started_at="2026-01-02T03:04:05+00:00",
        host="a machine",
        targets=targets or {"ours": "ws://127.0.0.1:8000/v1/realtime"},
        turns=turns,
        levels=levels,
    )
