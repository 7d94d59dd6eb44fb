"""On a CUDA device: the same answers as on the CPU, fast kernels against readable ones, graphs against eager."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model.attention import (
    ForwardBatch,
    KVCache,
    SequenceSpan,
    _attend_flash,
    _has_flash_attn,
    attend_gather,
    attend_torch,
)
from model.chat import Chat
from model.omni import load
from model.reply import AudioDelta, CodeDelta, ReplyOptions, TextDelta
from model.sampling import GREEDY, Sampling
from streaming.engine.config import EngineConfig
from streaming.engine.engine import Engine
from tests.streaming.engine.driving import SYSTEM, Driver, Said, chat_answer, speech

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
QUICK = ReplyOptions(
    thinker=GREEDY, talker=Sampling(temperature=0), max_text_tokens=8, max_codes=30
)


def answer(folder: Path, device: str) -> tuple[list[int], list[int], Tensor]:
    chat = Chat(load(folder, device=device, dtype=torch.float32), "Be kind.")
    chat.audio(torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * 0.1, is_last=True)
    with torch.inference_mode():
        deltas = list(chat.reply(QUICK))
    return (
        [d.token_id for d in deltas if isinstance(d, TextDelta)],
        [d.code for d in deltas if isinstance(d, CodeDelta)],
        torch.cat([d.pcm.cpu() for d in deltas if isinstance(d, AudioDelta)]),
    )


def test_a_conversation_answers_as_on_the_cpu(checkpoint_dir: Path) -> None:
    here, there = answer(checkpoint_dir, "cuda"), answer(checkpoint_dir, "cpu")
    assert here[:2] == there[:2]
    # float32 through 36 evaluations and the vocoder, other kernels on each side
    torch.testing.assert_close(here[2], there[2], atol=2e-3, rtol=0)


@pytest.mark.parametrize("page_size", [16, 256])
def test_attention_kernels_agree(page_size: int) -> None:
    """Decode of ragged sequences over scattered pages, unused slots holding NaN."""
    g = torch.Generator().manual_seed(0)
    lens, num_heads, num_kv, size = (300, 17, 1), 4, 2, 64
    kv = torch.full((4 * 512, 2, num_kv, size), float("nan"), dtype=torch.float16)
    pages_left = torch.randperm(len(kv) // page_size, generator=g).tolist()
    spans = []
    for n in lens:
        pages = [pages_left.pop() for _ in range(-(-n // page_size))]
        for i in range(n):
            slot = pages[i // page_size] * page_size + i % page_size
            kv[slot] = torch.randn(2, num_kv, size, generator=g)
        spans.append(SequenceSpan(pages, n - 1, 1, torch.zeros(3, 1, dtype=torch.int64)))
    batch = ForwardBatch.pack(spans, page_size, CUDA)
    q = torch.randn(len(lens), num_heads, size, generator=g).half().to(CUDA)
    kv = kv.to(CUDA)
    expected = attend_torch(q, kv, batch)
    # float16 products of 64 numbers, softmax in float32
    torch.testing.assert_close(attend_gather(q, kv, batch), expected, atol=5e-3, rtol=0)
    if _has_flash_attn() and page_size == 256:
        flash = _attend_flash(q, kv.nan_to_num(0), batch)
        torch.testing.assert_close(flash, expected, atol=5e-3, rtol=0)


def test_a_captured_decode_step_equals_the_eager_one(checkpoint_dir: Path) -> None:
    thinker = load(checkpoint_dir, device="cuda", dtype=torch.float32).model.thinker
    kv = KVCache(
        thinker.config.decoder, num_pages=8, page_size=16, dtype=torch.float32, device=CUDA
    )
    positions = torch.arange(5).expand(3, -1)
    prompt = SequenceSpan([3, 4], 0, 5, positions)
    with torch.inference_mode():
        rows = thinker.embed(torch.arange(5, device=CUDA))
        thinker(rows, ForwardBatch.pack([prompt], 16, CUDA), kv)
        step = ForwardBatch.pack([SequenceSpan([3, 4], 5, 1, torch.full((3, 1), 5))], 16, CUDA)
        token = torch.tensor([7], device=CUDA)

        def forward() -> Tensor:
            return thinker.logits(thinker(thinker.embed(token), step, kv))

        eager = [forward().clone() for _ in range(3)][-1]  # warm-up that capture needs, too
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = forward()
        token.fill_(9)
        graph.replay()
        assert not torch.equal(captured, eager)
        token.fill_(7)
        graph.replay()
        torch.testing.assert_close(captured, eager, atol=1e-5, rtol=1e-5)


def test_the_engine_with_graphs_answers_as_one_conversation_alone(checkpoint_dir: Path) -> None:
    omni = load(checkpoint_dir, device="cuda", dtype=torch.float32)
    said = [Said(sound=speech(0.5 + i, i)) for i in range(4)]
    expected = [chat_answer(Chat(omni, SYSTEM), s) for s in said]
    driver = Driver(Engine(omni, EngineConfig(device="cuda", num_lanes=4, context_tokens=1024)))
    list(driver.engine.runner.warm_up())
    for i, each in enumerate(said):
        driver.open(f"s{i}")
        driver.say(f"s{i}", 0, each)
        for _ in range(3):
            driver.step()
    driver.run()
    for i, answer in enumerate(expected):
        got = driver.answer(f"s{i}", 0)
        assert (got.tokens, got.codes) == (answer.tokens, answer.codes)
