"""The exception tree: whose fault it was, and what they can do about it.

ParleyError
├── ClientError           the peer of the public protocol asked for something impossible
└── WorkerError           something behind the gateway failed
    ├── RequestFailed     one session or turn failed; the worker lives and serves the others
    └── WorkerLost        the link ended; every session of that worker is concerned
        └── LinkError     the link ended because what came over it could not be understood
"""

from __future__ import annotations


class ParleyError(Exception):
    """Everything this project raises about input, peers and processes."""


class ClientError(ParleyError):
    """The client's fault; the code and the facts may be shown to it.

    Args:
        code: machine-readable, from the table in `docs/protocol.md`.
        message: one sentence for a person, with the remedy if there is one.
        param: path of the offending field.
        facts: offending value and limit, by name.
    """

    def __init__(
        self, code: str, message: str = "", *, param: str | None = None, **facts: int | str
    ) -> None:
        self.code = code
        self.message = message
        self.param = param
        self.facts = facts
        details = [f"{name}={value}" for name, value in facts.items()]
        if param is not None:
            details.insert(0, f"param={param}")
        text = f"{code}: {message}" if message else code
        super().__init__(f"{text} ({', '.join(details)})" if details else text)


class WorkerError(ParleyError):
    """A fault behind the gateway; what a client is told about it is only its code."""


class RequestFailed(WorkerError):
    """One session or turn failed in a living worker."""

    def __init__(self, code: str, message: str = "") -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}" if message else code)


class WorkerLost(WorkerError):
    """The link to the worker ended: it died, was killed, or hung up."""


class LinkError(WorkerLost):
    """What came over the link is no packet of ours: wrong protocol number, oversize, or garbage. A bug on one side."""
