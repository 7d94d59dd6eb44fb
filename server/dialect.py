"""Dialect: how server events are written; what clients send is understood in every spelling anyway."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Dialect(StrEnum):
    """The shapes that clients of the realtime protocols expect."""

    GA = "ga"
    BETA = "beta"
    DASHSCOPE = "dashscope"
    """The beta shape with other defaults: sound comes in at 16 kHz."""

    @property
    def is_flat(self) -> bool:
        """Settings stand side by side in the session object, and names are the beta's."""
        return self is not Dialect.GA


FLAT_KEYS = frozenset(
    {
        "modalities",
        "input_audio_format",
        "output_audio_format",
        "input_audio_transcription",
        "input_audio_noise_reduction",
        "turn_detection",
        "voice",
        "max_response_output_tokens",
        "temperature",
        "smooth_output",
    }
)
"""Any of them at the top level of a session without `type` gives a beta client away."""


def choose_dialect(
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    subprotocols: Iterable[str],
) -> Dialect:
    """Return the dialect that a handshake asks for; the first hint counts.

    Args:
        path: of the URL.
        query: its parameters.
        headers: by lower-case name.
        subprotocols: as offered.
    """
    if (named := query.get("dialect")) in set(Dialect):
        return Dialect(named)
    if _is_dashscope(path, headers):
        return Dialect.DASHSCOPE
    if "realtime=v1" in headers.get("openai-beta", ""):
        return Dialect.BETA
    if any(offer.startswith("openai-beta.realtime-v1") for offer in subprotocols):
        return Dialect.BETA
    return Dialect.BETA if "api-version" in query else Dialect.GA


def is_dialect_fixed(query: Mapping[str, str]) -> bool:
    """Whether the handshake names a dialect: then no payload corrects it."""
    return query.get("dialect") in set(Dialect)


def correct_dialect(dialect: Dialect, session: Mapping[str, object]) -> Dialect:
    """Return the dialect that a `session.update` shows its sender to speak.

    Call it only before the first `response.created` and unless `is_dialect_fixed`.
    """
    kind = session.get("type")
    if kind in ("realtime", "transcription"):
        return Dialect.GA
    if dialect is Dialect.GA and kind is None and not FLAT_KEYS.isdisjoint(session):
        return Dialect.BETA
    return dialect


def _is_dashscope(path: str, headers: Mapping[str, str]) -> bool:
    return (
        path.startswith("/api-ws/")
        or headers.get("user-agent", "").startswith("dashscope/")
        or any(name.startswith("x-dashscope-") for name in headers)
    )
