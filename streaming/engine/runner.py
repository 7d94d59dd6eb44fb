"""Owns weights, key-value slots and codec lanes; runs one plan at a time and samples.

The Talker's input rows live in one table, so that a decode of many sessions is two gathers and an addition:

    lane 0: reply rows 0 … R-1 | lane 1: … | … | text end | text pad | scratch
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from model.attention import KVCache, cost_is_by_context
from model.sampling import SamplingBatch, sample
from model.talker import suppressed_codes
from model.thinker import talker_rows
from streaming.engine.batch import StepInputs, pack
from streaming.engine.codec_stage import CodecStage
from streaming.engine.graphs import CudaCapture, DecodeGraphs
from streaming.engine.scheduler import StepPlan
from streaming.engine.sequence import Phase, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Seq
    from concurrent.futures import Future

    from model.image import Patches
    from model.omni import Omni
    from streaming.engine.codec_stage import WindowContent
    from streaming.engine.config import EngineConfig
    from streaming.engine.graphs import Capture
    from streaming.engine.sequence import Job, Segment, Sequence


@dataclass(frozen=True, slots=True)
class EncodeContent:
    """Media to encode and the segment that waits for its rows."""

    segment: Segment
    media: Tensor | Patches
    """Mel frames of a block, or patches of a frame pair."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a plan produced; which lists are filled depends on its role. One element per entry or job."""

    tokens: list[int | None] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    """Thinker prefill: what the Talker is fed for these positions. Encoders: rows of each job."""
    pcm: list[bytes] = field(default_factory=list)


class Runner:
    """One checkpoint at work. Everything is allocated here, once."""

    def __init__(
        self,
        omni: Omni,
        config: EngineConfig,
        num_pages: int,
        context_tokens: int,
        capture: Capture | None = None,
    ) -> None:
        """`capture` makes graphs of decode steps; None: CUDA's own, where there is one and `use_graphs` says so."""
        self.omni = omni
        self._page_size = config.page_size
        self._max_rows = config.max_text_tokens
        thinker, talker = omni.model.thinker, omni.model.talker
        self._caches = {Role.THINKER: self._cache(thinker.model.config, num_pages)}
        self.codec: CodecStage | None = None
        vocab_sizes = {Role.THINKER: omni.config.thinker.decoder.vocab_size}
        hidden = omni.config.thinker.decoder.hidden_size
        num_slots = config.num_lanes * config.max_text_tokens
        with torch.inference_mode():
            self._rows = torch.zeros(num_slots + 3, hidden, dtype=omni.dtype, device=omni.device)
            if talker is not None:
                assert omni.config.talker is not None
                assert omni.config.token2wav is not None
                assert omni.model.token2wav is not None
                self._caches[Role.TALKER] = self._cache(talker.model.config, num_pages)
                vocab_sizes[Role.TALKER] = omni.config.talker.decoder.vocab_size
                ids = (
                    omni.config.talker.tts_text_end_token_id,
                    omni.config.talker.tts_text_pad_token_id,
                )
                self._rows[num_slots : num_slots + 2] = thinker.embed(
                    torch.tensor(ids, device=omni.device)
                )
                dit = omni.config.token2wav.dit
                self._suppressed = suppressed_codes(omni.config.talker, dit).to(omni.device)
                has_thread = config.use_codec_thread and omni.device.type == "cpu"
                self.codec = CodecStage(
                    omni.model.token2wav, config.num_lanes, has_thread=has_thread
                )
            self._seen = {
                role: torch.zeros(config.num_lanes, size, dtype=torch.bool, device=omni.device)
                for role, size in vocab_sizes.items()
            }
        self._end_slot, self._pad_slot = num_slots, num_slots + 1
        if capture is None and config.use_graphs and omni.device.type == "cuda":
            capture = CudaCapture()
        self._graphs = DecodeGraphs(
            capture,
            max_batch=config.num_lanes,
            max_pages=-(-context_tokens // config.page_size),
            scratch_page=num_pages,
            scratch_row=num_slots + 2,
            widens_table=cost_is_by_context(thinker.model.attend),
        )
        self._stages: dict[tuple[Role, Phase], Callable[[StepPlan], StepOutput]] = {
            (Role.AUDIO, Phase.ENCODE): self._encode_audio,
            (Role.VISION, Phase.ENCODE): self._encode_pairs,
            (Role.THINKER, Phase.PREFILL): self._prefill_thinker,
            (Role.THINKER, Phase.DECODE): self._decode_thinker,
            (Role.TALKER, Phase.PREFILL): self._prefill_talker,
            (Role.TALKER, Phase.DECODE): self._decode_talker,
            (Role.CODEC, Phase.DECODE): self._decode_windows,
        }

    def run(self, plan: StepPlan) -> StepOutput:
        """Run one plan; waits for the device once, and only if tokens or sound come out."""
        with torch.inference_mode():
            return self._stages[plan.role, plan.phase](plan)

    def warm_up(self) -> Iterator[float]:
        """Capture the graphs of every batch size; yields how far it is, 0 … 1."""
        forwards = {Role.THINKER: self._forward_thinker, Role.TALKER: self._forward_talker}
        wanted = [(r, p) for r in self._caches for p in self._graphs.buckets()]
        for i, (role, padding) in enumerate(wanted):
            yield i / len(wanted)
            plan = StepPlan(role, Phase.DECODE)
            with torch.inference_mode():
                inputs = pack(plan, self._page_size, self.omni.device, padding)
                self._graphs.run(role, inputs, forwards[role])

    def start_windows(self, plan: StepPlan) -> Future[list[bytes]]:
        """Have the codec make a plan's windows; the sound of each job, when it is made."""
        assert self.codec is not None
        return self.codec.decode([cast("WindowContent", job.content) for job in plan.jobs])

    def row_slot(self, lane: int, index: int) -> int:
        """Where reply row `index` of a lane lies."""
        assert index < self._max_rows
        return lane * self._max_rows + index

    @property
    def end_slot(self) -> int:
        """The row that follows the last text row, once."""
        return self._end_slot

    @property
    def pad_slot(self) -> int:
        """Every row after that."""
        return self._pad_slot

    def reply_rows(self, lane: int, num: int) -> Tensor:
        """A copy of the first `num` reply rows of a lane: the lane's next reply overwrites them."""
        start = lane * self._max_rows
        with torch.inference_mode():
            return self._rows[start : start + num].clone()

    def voice_row(self, name: str | None) -> Tensor:
        """The row [1, H] that opens a reply of this voice. Raises CheckpointError for an unknown one."""
        assert self.omni.config.talker is not None
        assert self.omni.model.talker is not None
        ids = self.omni.voice(name).bos_token, self.omni.config.talker.tts_codec_pad_token_id
        bos, pad = torch.tensor(ids, device=self.omni.device).view(2, 1)
        with torch.inference_mode():
            return self.omni.model.thinker.embed(bos) + self.omni.model.talker.embed_codes(pad)

    def begin_text(self, lane: int, prompt_ids: Seq[int] | set[int], *, has_penalty: bool) -> None:
        """Tell the repetition penalty what the prompt holds."""
        if has_penalty:
            with torch.inference_mode():
                self._mark(Role.THINKER, lane, prompt_ids)

    def begin_speech(self, lane: int, voice: str | None, noise_seed: int) -> None:
        """Give a lane its voice and noise for one reply. Raises CheckpointError for an unknown voice."""
        assert self.codec is not None
        assert self.omni.model.talker is not None
        self.codec.assign(lane, self.omni.voice(voice), noise_seed)
        with torch.inference_mode():
            self._mark(Role.TALKER, lane, self.omni.model.talker.prompt_history())

    def copy_pages(self, role: Role, source: Seq[int], target: Seq[int]) -> None:
        """Copy the keys and values of pages, so that a shared beginning stays in one run with what follows it."""
        size = self._page_size
        with torch.inference_mode():
            slots = self._caches[role].slots
            paged = slots.view(len(slots), -1, size, *slots.shape[2:])
            at = torch.tensor([list(source), list(target)], device=self.omni.device)
            paged[:, at[1]] = paged[:, at[0]]

    def _cache(self, config: object, num_pages: int) -> KVCache:
        return KVCache(
            config,  # type: ignore[arg-type]  # modules do not carry the type of their config
            num_pages=num_pages + 1,  # the last one is scratch: see `graphs.py`
            page_size=self._page_size,
            dtype=self.omni.dtype,
            device=self.omni.device,
        )

    def _mark(self, role: Role, lane: int, ids: Seq[int] | set[int]) -> None:
        seen = self._seen[role][lane]
        seen.zero_()
        seen[torch.tensor(sorted(ids), device=self.omni.device)] = True

    def _encode_audio(self, plan: StepPlan) -> StepOutput:
        mels = [cast("Tensor", _media(job)) for job in plan.jobs]
        return StepOutput(rows=self._typed(self.omni.model.thinker.audio_tower.encode_blocks(mels)))

    def _encode_pairs(self, plan: StepPlan) -> StepOutput:
        pairs = [cast("Patches", _media(job)) for job in plan.jobs]
        return StepOutput(rows=self._typed(self.omni.model.thinker.visual.encode_pairs(pairs)))

    def _typed(self, rows: list[Tensor]) -> list[Tensor]:
        return [r.to(self.omni.dtype) for r in rows]

    def _prefill_thinker(self, plan: StepPlan) -> StepOutput:
        thinker = self.omni.model.thinker
        inputs = self._pack(plan)
        embedded = thinker.embed(inputs.token_ids)
        for start, rows in inputs.given:
            embedded[start : start + len(rows)] = rows
        hidden = thinker(embedded, inputs.batch, self._caches[Role.THINKER])
        tokens: list[int | None] = [None] * len(plan.entries)
        if len(inputs.drawing_rows):
            logits = thinker.logits(hidden[inputs.drawing_rows])
            drawing = [i for i, e in enumerate(plan.entries) if e.draws_token]
            seqs = [plan.entries[i].seq for i in drawing]
            drawn = self._draw(Role.THINKER, logits, seqs, inputs)
            for i, token in zip(drawing, drawn, strict=True):
                tokens[i] = token
        # Reference quirk: where an encoder's row stood the Talker gets h + 0, not h + e.
        speech_rows = talker_rows(hidden, embedded, inputs.is_given)
        return StepOutput(tokens, list(torch.split(speech_rows, [e.length for e in plan.entries])))

    def _decode_thinker(self, plan: StepPlan) -> StepOutput:
        inputs = self._pack(plan)
        logits = self._graphs.run(Role.THINKER, inputs, self._forward_thinker)
        return StepOutput(list(self._draw(Role.THINKER, logits, _sequences(plan), inputs)))

    def _forward_thinker(self, inputs: StepInputs) -> Tensor:
        thinker = self.omni.model.thinker
        embedded = thinker.embed(inputs.token_ids)
        hidden = thinker(embedded, inputs.batch, self._caches[Role.THINKER])
        self._rows.index_copy_(0, inputs.row_slots, talker_rows(hidden, embedded))
        return thinker.logits(hidden)

    def _prefill_talker(self, plan: StepPlan) -> StepOutput:
        assert self.omni.model.talker is not None
        inputs = self._pack(plan)
        rows = torch.cat([rows for _, rows in inputs.given])
        self.omni.model.talker(rows, inputs.batch, self._caches[Role.TALKER])
        return StepOutput([None] * len(plan.entries))

    def _decode_talker(self, plan: StepPlan) -> StepOutput:
        inputs = self._pack(plan)
        logits = self._graphs.run(Role.TALKER, inputs, self._forward_talker)
        tokens = self._draw(Role.TALKER, logits, _sequences(plan), inputs, self._suppressed)
        return StepOutput(list(tokens))

    def _forward_talker(self, inputs: StepInputs) -> Tensor:
        talker = self.omni.model.talker
        assert talker is not None
        rows = self._rows[inputs.row_slots] + talker.embed_codes(inputs.token_ids)
        return talker.logits(talker(rows, inputs.batch, self._caches[Role.TALKER]))

    def _decode_windows(self, plan: StepPlan) -> StepOutput:
        return StepOutput(pcm=self.start_windows(plan).result())

    def _draw(
        self,
        role: Role,
        logits: Tensor,
        seqs: Seq[Sequence],
        inputs: StepInputs,
        suppressed: Tensor | None = None,
    ) -> list[int]:
        settings = [s.sampling for s in seqs]
        batch = SamplingBatch.pack(settings, [s.num_drawn for s in seqs], logits.device)
        if all(s.repetition_penalty == 1 for s in settings):
            return cast("list[int]", sample(logits, batch, None, suppressed).tolist())
        lanes, seen = inputs.drawing_lanes, self._seen[role]
        tokens = sample(logits, batch, seen[lanes], suppressed)
        seen[lanes, tokens] = True
        return cast("list[int]", tokens.tolist())

    def _pack(self, plan: StepPlan) -> StepInputs:
        padding = None
        if plan.phase is Phase.DECODE:
            longest = max((len(e.seq.pages) for e in plan.entries), default=0)
            padding = self._graphs.padding(len(plan.entries), longest)
        return pack(plan, self._page_size, self.omni.device, padding)


def _sequences(plan: StepPlan) -> list[Sequence]:
    return [e.seq for e in plan.entries]


def _media(job: Job) -> Tensor | Patches:
    return cast("EncodeContent", job.content).media
