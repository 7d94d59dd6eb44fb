"""The dialect by hints of the handshake, in their order, and its correction."""

from __future__ import annotations

import pytest

from server.dialect import FLAT_KEYS, Dialect, choose_dialect, correct_dialect, is_dialect_fixed

GA, BETA, DASHSCOPE = Dialect


@pytest.mark.parametrize(
    ("path", "query", "headers", "subprotocols", "dialect"),
    [
        ("/v1/realtime", {"model": "x"}, {}, [], GA),
        ("/v1/realtime", {}, {}, ["realtime", "openai-insecure-api-key.k"], GA),
        ("/api-ws/v1/realtime", {}, {"openai-beta": "realtime=v1"}, [], DASHSCOPE),
        ("/api-ws/v1/realtime", {"dialect": "ga"}, {}, [], GA),
        ("/v1/realtime", {"dialect": "klingon"}, {}, [], GA),
        ("/v1/realtime", {}, {"x-dashscope-workspace": "w"}, [], DASHSCOPE),
        ("/v1/realtime", {}, {"user-agent": "dashscope/1.2; python"}, [], DASHSCOPE),
        ("/v1/realtime", {}, {"user-agent": "my dashscope/1"}, [], GA),
        ("/v1/realtime", {}, {"openai-beta": "assistants=v2, realtime=v1"}, [], BETA),
        ("/v1/realtime", {}, {"openai-beta": "assistants=v2"}, [], GA),
        ("/v1/realtime", {}, {}, ["realtime", "openai-beta.realtime-v1"], BETA),
        ("/openai/realtime", {"api-version": "2024-10-01-preview"}, {}, [], BETA),
        ("/openai/v1/realtime", {}, {}, [], GA),
    ],
)
def test_first_hint_counts(
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    subprotocols: list[str],
    dialect: Dialect,
) -> None:
    assert choose_dialect(path, query, headers, subprotocols) is dialect


def test_only_a_named_dialect_is_fixed() -> None:
    assert is_dialect_fixed({"dialect": "beta"})
    assert not is_dialect_fixed({"dialect": "klingon"}) and not is_dialect_fixed({"model": "x"})


@pytest.mark.parametrize("dialect", Dialect)
def test_a_typed_session_is_ga(dialect: Dialect) -> None:
    assert correct_dialect(dialect, {"type": "realtime", "voice": "x"}) is GA
    assert correct_dialect(dialect, {"type": "transcription"}) is GA


@pytest.mark.parametrize("key", sorted(FLAT_KEYS))
def test_a_flat_key_without_a_type_is_beta(key: str) -> None:
    assert correct_dialect(GA, {key: None}) is BETA
    assert correct_dialect(DASHSCOPE, {key: None}) is DASHSCOPE


@pytest.mark.parametrize("dialect", Dialect)
def test_what_both_have_changes_nothing(dialect: Dialect) -> None:
    for session in (
        {},
        {"instructions": "x", "tools": []},
        {"tracing": None},
        {"type": ["realtime"]},
    ):
        assert correct_dialect(dialect, session) is dialect
