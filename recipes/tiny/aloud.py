"""Let the Talker read many replies at once, through the code that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.attention import ForwardBatch, KVCache, SequenceSpan
from model.sampling import Sampling, SamplingBatch, sample
from model.talker import Talker, suppressed_codes
from recipes.tiny import tree
from recipes.tiny.lessons import Markers, reply_stream, speech_positions
from recipes.tiny.rows import MAX_PROMPT_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PAGE = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Script:
    """A reply to be read: Thinker rows of the prompt [P, H] and of the reply [n, H] (float16), and the voice."""

    prompt_rows: Tensor
    reply_rows: Tensor
    voice: int


@torch.inference_mode()
def read_aloud(
    talker: Talker,
    markers: Markers,
    scripts: Sequence[Script],
    samplings: Sequence[Sampling],
    max_codes: int,
) -> list[Tensor]:
    """Draw codes for every script, feeding each back; [N] each, without the stop id.

    What has not stopped after `max_codes` has that many.
    """
    reading = [
        _Reading.open(talker, markers, script, i, max_codes) for i, script in enumerate(scripts)
    ]
    cache = KVCache(
        talker.config.decoder,
        num_pages=sum(len(r.pages) for r in reading),
        page_size=PAGE,
        dtype=torch.float32,
        device=_CPU,
    )
    opening = [r.span(0, len(r.opening)) for r in reading]
    talker(torch.cat([r.opening for r in reading]), ForwardBatch.pack(opening, PAGE, _CPU), cache)
    suppressed = suppressed_codes(talker.config, tree.codec_decoder().dit)
    seen = torch.zeros(len(reading), talker.config.decoder.vocab_size, dtype=torch.bool)
    seen[:, list(talker.prompt_history())] = True
    last = torch.full((len(reading),), talker.config.tts_codec_start_token_id)
    stops, open_ = torch.tensor(talker.config.stop_ids), torch.arange(len(reading))
    codes = torch.full((len(reading), max_codes), -1)
    for step in range(max_codes):
        still = [reading[i] for i in open_.tolist()]
        rows = torch.stack([r.reply[step] for r in still]) + talker.embed_codes(last[open_])
        spans = [r.span(len(r.opening) + step, 1) for r in still]
        logits = talker.logits(talker(rows, ForwardBatch.pack(spans, PAGE, _CPU), cache))
        batch = SamplingBatch.pack(
            [samplings[i] for i in open_.tolist()], [step] * len(still), _CPU
        )
        drawn = sample(logits, batch, seen[open_], suppressed)
        goes_on = ~torch.isin(drawn, stops)
        open_, drawn = open_[goes_on], drawn[goes_on]
        last[open_] = codes[open_, step] = drawn
        seen[open_, drawn] = True
        if not len(open_):
            break
    return [row[row >= 0] for row in codes]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One script laid out: rows before the first code [P + 1, H], rows r_0 … [max_codes, H], positions, pages."""

    opening: Tensor
    reply: Tensor
    positions: Tensor
    pages: range

    @classmethod
    def open(
        cls, talker: Talker, markers: Markers, script: Script, index: int, max_codes: int
    ) -> _Reading:
        prompt = script.prompt_rows.float()
        pad = torch.tensor(talker.config.tts_codec_pad_token_id)
        voice_row = markers.voices[script.voice] + talker.embed_codes(pad)
        # Room for the longest prompt there is keeps the pages of all scripts alike.
        num_pages = -(-(MAX_PROMPT_ROWS + 1 + max_codes) // PAGE)
        return cls(
            torch.cat([prompt, voice_row[None]]),
            reply_stream(script.reply_rows.float(), markers, max_codes),
            speech_positions(len(prompt), max_codes),
            range(index * num_pages, (index + 1) * num_pages),
        )

    def span(self, start: int, length: int) -> SequenceSpan:
        return SequenceSpan(self.pages, start, length, self.positions[:, start : start + length])
