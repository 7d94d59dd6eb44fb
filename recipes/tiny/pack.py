"""Pack the speech data into pieces small enough to carry to another machine, as Opus.

python -m recipes.tiny.pack --to /tmp/packed          # speech-00.tar, speech-01.tar … of at most 60 MB
tar xf speech-00.tar -C ~/.cache/parley/tiny/speech   # there; the recipes read Opus as they read FLAC
"""

from __future__ import annotations

import argparse
import io
import logging
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from recipes.tiny.dataset import VOICE_NAMES
from recipes.tiny.speech import SAMPLE_RATE, finished_shards, read_shard, shard_paths

if TYPE_CHECKING:
    from collections.abc import Iterator

OPUS_COMPRESSION = 0.82  # of libsndfile's 0 … 1; about 50 kbit/s of mono speech

log = logging.getLogger("pack")


def packed_shard(folder: Path, voice: str, shard: int) -> dict[str, bytes]:
    """Return the shard's two files by name, its sound as Opus."""
    pcm, _ = read_shard(folder, voice, shard)
    buffer = io.BytesIO()
    soundfile.write(
        buffer, pcm, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION
    )
    sound, index = shard_paths(folder, voice, shard)
    return {sound.with_suffix(".ogg").name: buffer.getvalue(), index.name: index.read_bytes()}


def interleaved(folder: Path) -> Iterator[tuple[str, int]]:
    """Every shard, voices in turn, so that the first piece alone is a useful training set."""
    shards = {voice: finished_shards(folder, voice) for voice in VOICE_NAMES}
    for i in range(max(len(numbers) for numbers in shards.values())):
        yield from ((voice, numbers[i]) for voice, numbers in shards.items() if i < len(numbers))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("~/.cache/parley/tiny/speech").expanduser()
    )
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--max-mb", type=float, default=60.0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.to.mkdir(parents=True, exist_ok=True)
    piece, size, tar = -1, float("inf"), None
    for voice, shard in interleaved(args.data):
        files = packed_shard(args.data, voice, shard)
        added = sum(len(blob) + 1024 for blob in files.values())
        if size + added > args.max_mb * 1e6 or tar is None:
            if tar:
                tar.close()
            piece, size = piece + 1, 0
            tar = tarfile.open(args.to / f"speech-{piece:02d}.tar", "w")
        for name, blob in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(blob)
            tar.addfile(entry, io.BytesIO(blob))
        size += added
        log.info("piece %d: %s-%05d, %.1f MB so far", piece, voice, shard, size / 1e6)
    if tar:
        tar.close()


if __name__ == "__main__":
    main()
