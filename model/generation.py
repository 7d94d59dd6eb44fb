"""How a checkpoint wants its tokens drawn: its `generation_config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from model.checkpoint import CheckpointError
from model.sampling import GREEDY, TALKER_SAMPLING, Sampling

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Generation:
    """What a reply does unless it is told otherwise."""

    end_ids: tuple[int, ...] = ()
    """Text tokens that end a reply, besides the end of a turn."""
    thinker: Sampling = GREEDY
    talker: Sampling = TALKER_SAMPLING

    @classmethod
    def from_folder(cls, folder: Path) -> Generation:
        """Read `generation_config.json`, if there is one.

        Keys are the names of `generate`'s arguments: plain ones for the Thinker, which is greedy unless `do_sample` is
        true, and ones that begin with `talker_`.

        Raises:
            CheckpointError: the file is not JSON, or a value is outside its range.
        """
        path = folder / "generation_config.json"
        if not path.exists():
            return cls()
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            thinker = _sampling(listed, "", Sampling())
            if not listed.get("do_sample"):
                thinker = replace(thinker, temperature=0.0)
            talker = _sampling(listed, "talker_", TALKER_SAMPLING)
            end_ids = _ids(listed.get("eos_token_id"))
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from None
        return cls(end_ids, thinker, talker)


def _ids(given: object) -> tuple[int, ...]:
    """`eos_token_id` may be missing, a number or a list of numbers."""
    listed = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(i) is int for i in listed):
        raise ValueError(f"eos_token_id is {given!r}; a token number or a list of them is needed")
    return tuple(listed)


def _sampling(listed: dict[str, Any], prefix: str, default: Sampling) -> Sampling:
    given = {
        name: listed[prefix + name] for name in FIELDS if listed.get(prefix + name) is not None
    }
    return replace(default, **given)
