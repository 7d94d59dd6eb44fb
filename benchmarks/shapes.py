"""Step times of the published sizes with random weights, eager and as CUDA graphs, beside the physical floor.

    python -m benchmarks.shapes 7b                    # on a GPU, bf16
    python -m benchmarks.shapes small --device cpu    # anywhere; eager only

The floor of a decode-shaped step is its weight bytes over the memory bandwidth, which is measured first by copying.
Weights are drawn on the device: time does not depend on what they say.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.models import random_model
from model.attention import ForwardBatch, KVCache, SequenceSpan
from model.codec.voice import Voice
from model.image import Patches
from recipes.random_checkpoint import SHAPES

if TYPE_CHECKING:
    from model.decoder import Decoder
    from model.omni import OmniModel

Step = Callable[[], object]
PAGE_SIZE = 256  # what flash-attn's paged kernels ask for


@dataclass(frozen=True)
class Bench:
    model: OmniModel
    device: torch.device
    dtype: torch.dtype
    bandwidth: float
    """Bytes per second."""

    def report(self, name: str, step: Step, *, reads: nn.Module | None = None) -> None:
        eager = self.time(step)
        graphed = self.time(graph) if (graph := self.capture(step)) else float("nan")
        floor = _num_bytes(reads) / self.bandwidth if reads is not None else float("nan")
        print(f"{name:44} {eager:10.3f} {graphed:10.3f} {1000 * floor:10.3f}", flush=True)

    def time(self, step: Step) -> float:
        """Median milliseconds."""
        for _ in range(3):
            step()
        spent = []
        while len(spent) < 10 or (sum(spent) < 1000 and len(spent) < 200):
            self.wait()
            begin = time.perf_counter()
            step()
            self.wait()
            spent.append(1000 * (time.perf_counter() - begin))
        return statistics.median(spent)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def capture(self, step: Step) -> Step | None:
        if self.device.type != "cuda":
            return None
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:
            print(f"  not captured: {str(error).splitlines()[0]}")
            return None
        return graph.replay


def decode(bench: Bench, decoder: Decoder, head: nn.Module, batch: int, context: int) -> Step:
    pages = -(-(context + 1) // PAGE_SIZE)
    kv = KVCache(
        decoder.config,
        num_pages=batch * pages,
        page_size=PAGE_SIZE,
        dtype=bench.dtype,
        device=bench.device,
    )
    at = torch.full((3, 1), context)
    spans = [SequenceSpan(range(i * pages, (i + 1) * pages), context, 1, at) for i in range(batch)]
    packed = ForwardBatch.pack(spans, PAGE_SIZE, bench.device)
    rows = torch.randn(batch, decoder.config.hidden_size, device=bench.device, dtype=bench.dtype)
    return lambda: head(decoder(rows, packed, kv)).argmax(-1)


def prefill(bench: Bench, decoder: Decoder, num_rows: int, context: int) -> Step:
    pages = -(-(context + num_rows) // PAGE_SIZE)
    kv = KVCache(
        decoder.config, num_pages=pages, page_size=PAGE_SIZE, dtype=bench.dtype, device=bench.device
    )
    positions = torch.arange(context, context + num_rows).expand(3, -1)
    span = SequenceSpan(range(pages), context, num_rows, positions)
    packed = ForwardBatch.pack([span], PAGE_SIZE, bench.device)
    rows = torch.randn(num_rows, decoder.config.hidden_size, device=bench.device, dtype=bench.dtype)
    return lambda: decoder(rows, packed, kv)


def codec_window(bench: Bench, batch: int, num_blocks: int) -> Step:
    """One window past the first: `num_blocks` with one of them look-ahead."""
    codec = bench.model.token2wav
    assert codec is not None
    dit, sampler = codec.config.dit, codec.sampler
    voice = Voice("v", 0, torch.randn(dit.enc_emb_dim), torch.randn(150, dit.mel_dim))
    conditions = codec.condition(voice).expand(batch, -1, -1)
    num_frames = num_blocks * dit.block_size
    codes = torch.randint(0, 1000, (batch, num_blocks * dit.block_codes), device=bench.device)
    noise = torch.randn(batch, num_frames, dit.mel_dim, device=bench.device)
    kv = sampler.init_state(batch).kv
    rows = torch.arange(batch, device=bench.device)
    return lambda: sampler.compute_window(
        codes, noise, conditions, kv, rows, num_blocks - 1, has_past=True
    )


def vocoder_window(bench: Bench, batch: int) -> Step:
    codec = bench.model.token2wav
    assert codec is not None
    mel = torch.randn(batch, 64, codec.config.dit.mel_dim, device=bench.device)
    return lambda: codec.code2wav_bigvgan_model.synthesize(mel, 20, 20)


def measured_bandwidth(device: torch.device) -> float:
    """Bytes read plus written per second by a large copy."""
    source = torch.empty(2**28 if device.type == "cpu" else 2**32, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    bench = Bench(None, device, torch.uint8, 0.0)  # type: ignore[arg-type]  # only its clock
    return 2 * source.numel() / (bench.time(copy) / 1000)


def _num_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, default=1024)
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16
    torch.set_num_threads(1)
    bandwidth = measured_bandwidth(device)
    model = random_model(args.shape, device, dtype)
    bench = Bench(model, device, dtype, bandwidth)
    assert model.talker is not None
    thinker, talker = model.thinker, model.talker
    print(f"{args.shape}, {_num_bytes(model) / 1e9:.2f} GB; memory {bandwidth / 1e9:.0f} GB/s")
    print(f"{'ms per step':44} {'eager':>10} {'graph':>10} {'floor':>10}")
    with torch.inference_mode():
        for batch in (1, 8, 32, 64):
            step = decode(bench, thinker.model, thinker.lm_head, batch, args.context)
            layers = nn.ModuleList([thinker.model.layers, thinker.lm_head])
            bench.report(f"Thinker decode, {batch} × {args.context}", step, reads=layers)
        for batch in (1, 8, 32, 64):
            step = decode(bench, talker.model, talker.codec_head, batch, args.context)
            layers = nn.ModuleList([talker.model.layers, talker.codec_head])
            bench.report(f"Talker decode, {batch} × {args.context}", step, reads=layers)
        for num_rows in (56, 256, 832):
            step = prefill(bench, thinker.model, num_rows, args.context)
            bench.report(
                f"Thinker prefill, {num_rows} at {args.context}", step, reads=thinker.model.layers
            )
        mel = torch.randn(200, thinker.config.audio.num_mel_bins, device=device, dtype=dtype)
        tower = thinker.audio_tower
        bench.report("audio encoder, 2 s", lambda: tower.encode_blocks([mel]), reads=tower.layers)
        pair = Patches(torch.zeros(34 * 46, 1176, dtype=torch.uint8), 34, 46)
        bench.report(
            "vision encoder, one pair 480×640", lambda: thinker.visual.encode_pairs([pair])
        )
        for batch in (1, 8, 32):
            for blocks in (2, 4):
                bench.report(
                    f"codec window, {batch} × {blocks} blocks", codec_window(bench, batch, blocks)
                )
            bench.report(f"vocoder window, {batch} × 24 of 64 frames", vocoder_window(bench, batch))


if __name__ == "__main__":
    main()
