"""Scenario: who calls and how they behave, from a TOML file; unknown names and impossible values are told."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path  # pydantic reads the annotations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCENARIOS_DIR = Path(__file__).resolve().parent.parent / "scenarios"


class ScenarioFault(ValueError):
    """A scenario cannot be used; the message names file, place and remedy."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_ordered(span: tuple[float, float]) -> bool:
    return 0 <= span[0] <= span[1]


Span = tuple[float, float]


class Behaviour(_Table):
    """How one kind of caller behaves."""

    name: str = "caller"
    share: int = Field(1, ge=1)
    """Of the callers: groups of shares 3 and 1 make 6 and 2 of eight."""
    clips: tuple[str, ...] = ("question",)
    """File names, or their beginnings: everything in `benchmarks/speech` that begins so."""
    think_ms: Span = (600, 1500)
    """Between the end of a reply in the caller's ear and the next word."""
    turn_detection: Literal["server_vad", "semantic_vad", "none"] = "server_vad"
    """none: push to talk; the caller commits the turn."""
    silence_duration_ms: int | None = Field(None, ge=100, le=6000)
    """None leaves it to the server."""
    video_fps: float = Field(0, ge=0, le=30)
    interrupt_share: float = Field(0, ge=0, le=1)
    """Part of the replies that the caller interrupts."""
    interrupt_after_ms: Span = (500, 1500)
    """Of audible reply."""
    interrupt_by: Literal["voice", "cancel"] = "voice"
    """voice: starts speaking; cancel: presses stop (`response.cancel`)."""
    listen_at_most_s: float = Field(10, gt=0)
    """Of a reply; then the caller presses stop. Models that never end are not waited for."""
    read_bytes_per_s: int = Field(0, ge=0)
    """A slow line; 0 reads at once."""
    is_judged: bool = True
    """Whether the objectives look at these callers. Who reads slowly is there to disturb the others."""

    @model_validator(mode="after")
    def _check(self) -> Behaviour:
        for name in ("think_ms", "interrupt_after_ms"):
            if not _is_ordered(getattr(self, name)):
                raise ValueError(f"{name} must be [least, most] and not negative")
        if (self.turn_detection, self.interrupt_by) == ("none", "voice") and self.interrupt_share:
            raise ValueError('push to talk interrupts with interrupt_by = "cancel"')
        if not self.clips:
            raise ValueError("clips must name at least one")
        return self


class Scenario(_Table):
    """A load, apart from how many callers make it."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    instructions: str | None = None
    """System prompt; None leaves it to the server."""
    max_output_tokens: int | None = Field(None, ge=1, le=4096)
    frame_ms: int = Field(40, ge=10, le=1000)
    """Sound per message."""
    rate: int = Field(24_000, ge=8000, le=48_000)
    """Of the microphone."""
    transport: Literal["base64", "binary"] = "base64"
    """binary is this server's extension; base64 is spoken by all."""
    prebuffer_ms: int = Field(80, ge=0, le=5000)
    """Sound that the caller's player waits for before it starts, and again after each hole."""
    reply_timeout_s: float = Field(60, gt=0)
    playback_acks: bool = False
    """Report once a second how much was heard; an extension of this server."""
    ramp_s: float = Field(1.0, ge=0)
    """Over which the callers dial in."""
    callers: tuple[Behaviour, ...] = (Behaviour.model_validate({}),)

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        names = [group.name for group in self.callers]
        if not names:
            raise ValueError("needs at least one [[callers]]")
        if len(set(names)) < len(names):
            raise ValueError(f"two groups of callers have one name: {', '.join(names)}")
        return self

    def cast(self, num_callers: int) -> list[Behaviour]:
        """One behaviour per caller, groups mixed evenly by their shares; a longer cast begins with the shorter one."""
        chosen: list[Behaviour] = []
        counts = [0] * len(self.callers)
        for _ in range(num_callers):
            # Whose next call is due first, when a group of share s calls at 1/2s, 3/2s, 5/2s …
            due = [(2 * n + 1) / group.share for n, group in zip(counts, self.callers, strict=True)]
            which = due.index(min(due))
            counts[which] += 1
            chosen.append(self.callers[which])
        return chosen


def load_scenario(name: str) -> Scenario:
    """Read a scenario: the path of a file, or the name of one in `benchmarks/scenarios`.

    Raises:
        ScenarioFault: not there, not TOML, or a key or value that cannot be used.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = SCENARIOS_DIR / f"{name}.toml"
    if not path.is_file():
        there = sorted(p.stem for p in SCENARIOS_DIR.glob("*.toml"))
        near = difflib.get_close_matches(name, there, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ScenarioFault(f"no scenario {name!r}: {hint}there are {', '.join(there)}")
    return read_scenario(path.read_text(), str(path), default_name=path.stem)


def read_scenario(text: str, where: str, default_name: str = "scenario") -> Scenario:
    """Parse a scenario's text. Raises ScenarioFault; `where` begins its message."""
    try:
        content: dict[str, Any] = {"name": default_name} | tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ScenarioFault(f"{where}: {fault}") from None
    try:
        return Scenario.model_validate(content)
    except ValidationError as fault:
        raise ScenarioFault(f"{where}: " + "; ".join(explain(fault, Scenario))) from None


def explain(fault: ValidationError, table: type[BaseModel]) -> list[str]:
    """Each fault of a file in words: where, what, and for an unknown key what was probably meant."""
    words = []
    for error in fault.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = {*table.model_fields, *Behaviour.model_fields}
            near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            words.append(f"unknown key {place}{hint}")
        else:
            message = error["msg"].removeprefix("Value error, ")
            words.append(f"{place}: {message}" if place else message)
    return words
