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
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from None
        ends = listed.get("eos_token_id")
        end_ids = [ends] if isinstance(ends, int) else ends or []
        return cls(tuple(int(i) for i in end_ids), thinker, talker)


def _sampling(listed: dict[str, Any], prefix: str, default: Sampling) -> Sampling:
    given = {
        name: listed[prefix + name] for name in FIELDS if listed.get(prefix + name) is not None
    }
    return replace(default, **given)
