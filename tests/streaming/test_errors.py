"""Errors say whose fault it is and carry the facts."""

from __future__ import annotations

from streaming.errors import (
    ClientError,
    LinkError,
    ParleyError,
    RequestFailed,
    WorkerError,
    WorkerLost,
)


def test_a_client_error_carries_code_field_and_facts() -> None:
    error = ClientError("frame_too_large", "send a smaller one", param="image", size=9, limit=8)
    assert (error.code, error.param, error.facts) == (
        "frame_too_large",
        "image",
        {"size": 9, "limit": 8},
    )
    assert str(error) == "frame_too_large: send a smaller one (param=image, size=9, limit=8)"
    assert str(ClientError("busy")) == "busy"


def test_a_failed_request_is_not_a_lost_worker() -> None:
    assert str(RequestFailed("context_full", "too long")) == "context_full: too long"
    assert str(RequestFailed("context_full")) == "context_full"
    assert not issubclass(RequestFailed, WorkerLost)
    assert issubclass(LinkError, WorkerLost) and issubclass(WorkerLost, WorkerError)
    assert issubclass(ClientError, ParleyError) and not issubclass(ClientError, WorkerError)
