"""What the Talker's lessons keep of speech: its codes, and which phoneme each sounds. An hour is 0.4 MB.

    python -m recipes.tiny.recorded --codec ~/.cache/parley/tiny/codec

adds the speech on this machine to the recordings that the repository carries, so that the Talker can be taught on a
machine that has no speech, and two machines' speech adds up. The codes are one codec's: one that was trained
further needs the speech again.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.tokenizer import TextTokenizer
from recipes.tiny import codec
from recipes.tiny.dataset import Clip, Speech
from recipes.tiny.mel import HOP, SAMPLE_RATE
from recipes.tiny.phonemes import spelling
from recipes.tiny.tree import REPEATS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

RECORDED = Path(__file__).with_name("recorded.safetensors")

log = logging.getLogger("recorded")


@dataclass(frozen=True, slots=True)
class Recording:
    """A text as a voice said it: codes [N], and the place of the phoneme that each sounds [N] (-1: none)."""

    text: str
    voice: int
    codes: Tensor
    sounding: Tensor
    is_kept_out: bool = False


def read(path: Path = RECORDED) -> list[Recording]:
    """All recordings of a file; none if there is no file."""
    if not path.exists():
        return []
    with safe_open(path, "pt") as file:
        texts = json.loads(file.metadata()["texts"])
        lengths, voices, kept_out = (
            file.get_tensor(name).tolist() for name in ("lengths", "voices", "kept_out")
        )
        codes = file.get_tensor("codes").long().split(lengths)
        sounding = file.get_tensor("sounding").long().split(lengths)
    rows = zip(texts, voices, codes, sounding, map(bool, kept_out), strict=True)
    return [Recording(*row) for row in rows]


def write(recordings: list[Recording], path: Path = RECORDED) -> None:
    stored = {
        "lengths": torch.tensor([len(x.codes) for x in recordings], dtype=torch.int32),
        "voices": torch.tensor([x.voice for x in recordings], dtype=torch.uint8),
        "kept_out": torch.tensor([x.is_kept_out for x in recordings], dtype=torch.uint8),
        "codes": torch.cat([x.codes for x in recordings]).to(torch.int16),
        "sounding": torch.cat([x.sounding for x in recordings]).to(torch.int16),
    }
    save_file(stored, path, {"texts": json.dumps([x.text for x in recordings])})
    path.chmod(0o644)


def record(
    tokenizer: codec.Tokenizer, text_tokens: TextTokenizer, clips: Iterable[Clip], *, kept_out: bool
) -> list[Recording]:
    """Encode and align clips; one that cannot be aligned is left out."""
    made = []
    for clip in clips:
        codes, mel, heard = codec.encode_clip(tokenizer, clip)
        spelt = spelling(text_tokens, text_tokens.encode(clip.text))
        try:
            sounding = codec.sounding_places(
                heard, mel[: clip.num_frames], [p for own in spelt for p in own]
            )
        except ValueError:
            continue
        made.append(Recording(clip.text, clip.voice, codes.clone(), sounding, kept_out))
    return made


def all_recordings(
    data: Path, codec_run: Path, text_tokens: TextTokenizer, path: Path = RECORDED
) -> list[Recording]:
    """Those of the file, then what else there is of speech on this machine."""
    known = read(path)
    if not any(data.glob("*.jsonl")):
        return known
    speech, tokenizer = Speech(data), codec.load(codec_run)
    seen = {(x.voice, x.text) for x in known}
    for clips, kept_out in ((speech.train, False), (speech.kept_out, True)):
        fresh = [clip for clip in clips if (clip.voice, clip.text) not in seen]
        made = record(tokenizer, text_tokens, fresh, kept_out=kept_out)
        log.info("recorded %d of %d clips", len(made), len(fresh))
        known += made
    return known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cache = Path("~/.cache/parley").expanduser()
    parser.add_argument("--codec", type=Path, required=True, help="the codec's run")
    parser.add_argument("--data", type=Path, default=cache / "tiny/speech")
    parser.add_argument(
        "--checkpoint", type=Path, default=cache / "omni-tiny", help="whose tokenizer is used"
    )
    parser.add_argument("--to", type=Path, default=RECORDED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tokens = TextTokenizer.from_folder(args.checkpoint)
    recordings = all_recordings(args.data, args.codec, tokens, args.to)
    write(recordings, args.to)
    num_samples = sum(len(x.codes) for x in recordings) * REPEATS * HOP
    hours = num_samples / SAMPLE_RATE / 3600
    log.info("%d recordings, %.1f h, %.1f MB", len(recordings), hours, args.to.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
