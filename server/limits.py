"""Limits: what one session may take, and how long it waits for whom."""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_MS = 60_000
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Section 13 of the protocol; the shell fills it from its configuration."""

    session_ms: int = 60 * MINUTE_MS
    silence_ms: int = 15 * MINUTE_MS
    """Without a message from the client."""
    turn_ms: int = 5 * MINUTE_MS
    """Sound of one user turn."""
    min_commit_ms: int = 100
    max_out_of_band: int = 4
    max_held_events: int = 1_000
    """That wait for the answer of an earlier one."""
    hold_bytes: int = 2 * MIB
    """Unsent, above which the reply is paused."""
    max_faults: int = 20
    """Unreadable messages in `faults_ms`, after which the connection is closed."""
    faults_ms: int = 10_000
    settle_ms: int = 250
    """How long a stopped reply's last figures are waited for, and what was heard of one."""
    truncate_grace_ms: int = 300
    """After an interruption the client may say what was heard; then its last report of playback counts."""
    queue_ms: int = 30_000
    """How long a response waits for a worker."""
    retry_ms: int = 250
    """When a worker that was full is asked again; doubled each time."""
    transcribe_delay_ms: int = 200
    """How long a committed turn waits for its response to be asked for, before it is transcribed."""
    finish_ms: int = 10_000
    """How long the client may take to close after `session.finished`."""
