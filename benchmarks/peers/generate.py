"""Peer: the model's own way in `transformers`, on the same weights: generate all text, generate all codes, vocode all.

    python -m benchmarks.peers.generate --model FOLDER --port 8202

Nothing is heard before everything is computed. The flow is solved with the fewest evaluations that `transformers`
offers here (one Runge-Kutta interval, four evaluations); the checkpoint's own setting has two.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import Qwen2_5OmniForConditionalGeneration

from benchmarks.peers.speaking import Sound, Text, run_server
from model.mel import LogMel
from model.tokenizer import TextTokenizer
from streaming.pcm import from_float, to_float

if TYPE_CHECKING:
    from collections.abc import Generator

SYSTEM_FILE = "system_prompt.txt"
VOICE = "Ethan"
RUNGE_KUTTA_POINTS = 2


class GenerateThenVocode:
    """`transformers` as its documentation shows it."""

    def __init__(
        self, folder: Path, max_text_tokens: int, max_codes: int, dtype: torch.dtype
    ) -> None:
        with tempfile.TemporaryDirectory() as published:
            publish(folder, Path(published))
            self._model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
                published, dtype=dtype
            ).eval()
        config = self._model.config
        feed_codec_start(self._model)
        keep_to_codes(self._model)
        self._config = config
        self._limits = (max_text_tokens, max_codes)
        self._dtype = dtype
        self._stop_ids = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        self._tokenizer = TextTokenizer.from_folder(folder)
        self._system = (folder / SYSTEM_FILE).read_text() if (folder / SYSTEM_FILE).exists() else ""
        audio = config.thinker_config.audio_config
        self._mel = LogMel(audio.num_mel_bins, 2 * audio.n_window)

    def answer(self, pcm: bytes, history: list[dict[str, Any]]) -> Generator[Text | Sound]:
        with torch.inference_mode():
            mel = self._mel(torch.from_numpy(to_float(pcm))[None])[0]
            ids = self._prompt(((len(mel) - 1) // 2 + 1 - 2) // 2 + 1)
            talker = self._config.talker_config
            text, wave = self._model.generate(
                input_ids=torch.tensor([ids]),
                input_features=mel.T[None].to(self._dtype),
                feature_attention_mask=torch.ones(1, len(mel), dtype=torch.long),
                speaker=VOICE,
                thinker_do_sample=False,
                thinker_eos_token_id=self._stop_ids,
                thinker_max_new_tokens=self._limits[0],
                talker_max_new_tokens=self._limits[1],
                talker_eos_token_id=[talker.tts_codec_pad_token_id, talker.tts_codec_end_token_id],
                token2wav_num_steps=RUNGE_KUTTA_POINTS,
                token2wav_guidance_scale=0.0,
            )
        yield Text(self._tokenizer._tokenizer.decode(text[0, len(ids) :].tolist()))
        yield Sound(from_float(wave.float().numpy()))

    def _prompt(self, num_rows: int) -> list[int]:
        encode, start, end = (
            self._tokenizer.encode,
            self._tokenizer.im_start_id,
            self._tokenizer.im_end_id,
        )
        thinker = self._config.thinker_config
        heard = [
            thinker.audio_start_token_id,
            *[thinker.audio_token_index] * num_rows,
            thinker.audio_end_token_id,
        ]
        new_line = encode("\n")
        return [
            start, *encode(f"system\n{self._system}"), end, *new_line,
            start, *encode("user\n"), *heard, end, *new_line,
            start, *encode("assistant\n"),
        ]  # fmt: skip


def feed_codec_start(model: Any) -> None:
    """Undo a defect of release 5.23: without an attention mask the Talker skips the codec's start token."""
    forward = model.talker.forward

    @functools.wraps(forward)  # generate() reads the signature
    def with_mask(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("attention_mask") is None:
            embeds = kwargs.get("inputs_embeds")
            fed = kwargs["input_ids"] if embeds is None else embeds
            past = kwargs.get("past_key_values")
            cached = 0 if past is None else past.get_seq_length()
            kwargs["attention_mask"] = torch.ones(
                fed.shape[0], cached + fed.shape[1], dtype=torch.long
            )
        return forward(*args, **kwargs)

    model.talker.forward = with_mask


def keep_to_codes(model: Any) -> None:
    """Let only codes reach the codec: a Talker in training may still draw one of its control ids."""
    forward, largest = (
        model.token2wav.forward,
        model.config.token2wav_config.dit_config.num_embeds - 1,
    )

    def clamped(code: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(code.clamp(max=largest), *args, **kwargs)

    model.token2wav.forward = clamped


def publish(folder: Path, into: Path) -> None:
    """Lay the embedded checkpoint out as the published ones are, which is what `from_pretrained` reads."""
    settings = json.loads((folder / "config.json").read_text())
    settings["token2wav_config"].pop("solver_config", None)
    (into / "config.json").write_text(json.dumps(settings))
    (into / "model.safetensors").symlink_to((folder / "model.safetensors").resolve())
    torch.save({VOICE: _voice(folder)}, into / "spk_dict.pt")


def _voice(folder: Path) -> dict[str, Any]:
    """A voice of the embedded checkpoint, in the shape of the published `spk_dict.pt`."""
    with safe_open(folder / "voices.safetensors", "pt") as file:
        metadata = file.metadata() or {}
        cond = file.get_tensor(f"{VOICE}.cond")[None]
        reference_mel = file.get_tensor(f"{VOICE}.ref_mel")[None]
    bos = json.loads(metadata["voices"])[VOICE]["bos_token"]
    return {"bos_token": bos, "cond": cond, "ref_mel": reference_mel}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8202)
    parser.add_argument("--max-text-tokens", type=int, default=40)
    parser.add_argument("--max-codes", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    peer = GenerateThenVocode(
        args.model, args.max_text_tokens, args.max_codes, getattr(torch, args.dtype)
    )
    for piece in peer.answer(bytes(2 * 16_000), []):  # the first call is slower
        del piece
    print(f"transformers is ready on port {args.port}", flush=True)
    asyncio.run(run_server(peer, "127.0.0.1", args.port))


if __name__ == "__main__":
    main()
