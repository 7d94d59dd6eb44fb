"""Measure the parts on kept-out speech, and the whole model in conversation, with a recogniser as judge.

    python -m recipes.tiny.evaluate speech   --clips 100       # the recogniser on the original: the floor
    python -m recipes.tiny.evaluate vocoder  --run ~/.cache/parley/tiny/vocoder
    python -m recipes.tiny.evaluate codec    --run ~/.cache/parley/tiny/codec --vocoder ~/.cache/parley/tiny/vocoder
    python -m recipes.tiny.evaluate dit      --run ~/.cache/parley/tiny/dit --codec … --vocoder …
    python -m recipes.tiny.evaluate talker   --run ~/.cache/parley/tiny/talker
    python -m recipes.tiny.evaluate speaks   --checkpoint ~/.cache/parley/omni-tiny --clips 100
    python -m recipes.tiny.evaluate reads    --checkpoint ~/.cache/parley/omni-tiny --clips 100
    python -m recipes.tiny.evaluate converses --clips 10
    python -m recipes.tiny.evaluate hears    --checkpoint ~/.cache/parley/omni-tiny --clips 200
    python -m recipes.tiny.evaluate sees     --checkpoint ~/.cache/parley/omni-tiny --clips 200
    python -m recipes.tiny.evaluate aligns   --checkpoint ~/.cache/parley/omni-tiny --clips 100

For speech, two figures: word errors against the text, and against what the recogniser heard in the original recording.
The second takes the recogniser's own errors out.

* **talker**: kept-out texts as replies, read aloud by Talker, flow and vocoder.
* **speaks**: the assembled checkpoint answers typed questions through the streaming path; its sound against its text.
* **reads**: the same answers; the phonemes that the Talker's codes name against those of the text.
* **converses**: the same over one spoken conversation, turn by turn.
* **hears**: kept-out callers' questions, spoken and typed: the same answer, and the right one?
* **sees**: questions about scenes drawn in ways never trained on, right by the word that matters. Typed, and for still
  scenes spoken into a camera's video by a kept-out voice.
* **aligns**: a thing changes its colour every second while a kept-out voice calls "now"; which colour was it then?
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.chat import Chat
from model.omni import load as load_checkpoint
from model.reply import AudioDelta, CodeDelta, ReplyOptions, TextDelta
from model.sampling import TALKER_SAMPLING
from recipes.tiny import codec, dit, talker, tree, vocoder
from recipes.tiny.aloud import Script, read_aloud
from recipes.tiny.callers import INPUT_RATE, Call, read_calls
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech, to_wave
from recipes.tiny.edits import edit_distance
from recipes.tiny.exchanges import Exchange, exchange
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.lessons import Markers
from recipes.tiny.listen import Listener, comparable, word_errors
from recipes.tiny.mel import NUM_BINS, SAMPLE_RATE
from recipes.tiny.phonemes import text_phonemes
from recipes.tiny.plots import plot_mels
from recipes.tiny.rows import read_rows
from recipes.tiny.scenes import changing, scene
from recipes.tiny.seeing import called_at

if TYPE_CHECKING:
    from model.codec.dit import Dit
    from model.codec.vocoder import Vocoder
    from model.codec.voice import Voice
    from model.talker import Talker
    from recipes.tiny.scenes import Picture

SAMPLING = replace(TALKER_SAMPLING, temperature=tree.TALKER_TEMPERATURE)
KEPT_OUT_QUESTIONS, KEPT_OUT_SCENES = 901, 906  # seeds nothing is trained on
SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
AUDIBLE = 0.02  # of full scale; a reply that never gets there is as good as none

Resynthesis = Callable[[Clip], NDArray[np.float32]]
Sample = tuple[Call, NDArray[np.int16]]


def original(clip: Clip) -> NDArray[np.float32]:
    return np.asarray(clip.wave())


def through_vocoder(run: Path, best: bool) -> Resynthesis:
    voc = vocoder.load(run, best=best)
    return lambda clip: np.asarray(voc(clip.mel()[None])[0])


def through_codec(run: Path, vocoder_run: Path, best: bool) -> Resynthesis:
    tokenizer, voc = codec.load(run, best=best), vocoder.load(vocoder_run, best=best)

    def resynthesise(clip: Clip) -> NDArray[np.float32]:
        codes, _, _ = codec.encode_clip(tokenizer, clip)
        made: Tensor = tokenizer.decode(codec.meaning(codes[None]), torch.tensor([clip.voice]))
        return np.asarray(voc(made)[0])

    return resynthesise


def through_dit(
    run: Path, codec_run: Path, vocoder_run: Path, speech: Speech, best: bool
) -> Resynthesis:
    """Codes of the clip, back through the flow and the vocoder: all of the codec but its streaming windows."""
    flow, tokenizer, voc = (
        dit.load(run, best=best),
        codec.load(codec_run),
        vocoder.load(vocoder_run),
    )
    voices = dit.make_voices(speech)

    def resynthesise(clip: Clip) -> NDArray[np.float32]:
        (coded,) = dit.code_clips(tokenizer, [clip], "cpu")
        noise = torch.randn(coded.mel.shape, generator=torch.Generator().manual_seed(0))
        voice = voices[clip.voice]
        made = dit.sample(
            flow, noise[None], coded.codes[None], voice.cond[None], voice.ref_mel[None]
        )
        return np.asarray(voc(made)[0])

    return resynthesise


@dataclass(frozen=True, slots=True)
class Reader:
    """Talker, flow and vocoder of three runs, reading given texts."""

    talker: Talker
    markers: Markers
    rows: dict[str, tuple[Tensor, Tensor]]
    flow: Dit
    vocoder: Vocoder
    voices: list[Voice]

    def __call__(self, clip: Clip) -> NDArray[np.float32]:
        script = Script(*self.rows[clip.text], clip.voice)
        (codes,) = read_aloud(self.talker, self.markers, [script], [SAMPLING], talker.MAX_CODES)
        voice, count = self.voices[clip.voice], len(codes)
        if not count:
            return np.zeros(SAMPLE_RATE, np.float32)
        noise = torch.randn(
            1,
            count * codec.REPEATS,
            NUM_BINS,
            generator=torch.Generator().manual_seed(0),
        )
        made = dit.sample(self.flow, noise, codes[None], voice.cond[None], voice.ref_mel[None])
        return np.asarray(self.vocoder(made)[0])


def through_talker(args: argparse.Namespace, speech: Speech, best: bool) -> Resynthesis:
    source = FrozenThinker.load(args.checkpoint, "cpu", torch.float32)
    config = source.config.talker
    assert config is not None
    return Reader(
        talker.load(args.run, config, best=best),
        Markers.of(source),
        read_rows(args.rows),
        dit.load(args.dit),
        vocoder.load(args.vocoder),
        dit.make_voices(speech),
    )


def speaks(checkpoint: Path, count: int, listener: Listener, keep: Path | None) -> None:
    """Ask `count` typed questions of each voice; print how well its sound says its text."""
    omni = load_checkpoint(checkpoint)
    for voice in omni.voices:
        pairs, silent, seconds, spent = [], 0, 0.0, 0.0
        for i in range(count):
            chat = Chat(omni, capacity=2048)
            chat.text(exchange(KEPT_OUT_QUESTIONS, i).question)
            began = time.perf_counter()
            text, wave = said(chat, ReplyOptions(voice=voice, max_text_tokens=40, max_codes=400))
            spent, seconds = spent + time.perf_counter() - began, seconds + len(wave) / SAMPLE_RATE
            pairs.append((text, listener.transcribe(wave) if len(wave) else ""))
            silent += bool(np.abs(wave).max(initial=0.0) < AUDIBLE)
            if keep:
                soundfile.write(keep / f"{voice}-{i:03d}.wav", wave, SAMPLE_RATE)
                with (keep / "heard.jsonl").open("a") as file:
                    file.write(json.dumps({"said": text, "heard": pairs[-1][1]}) + "\n")
        figures = {
            "replies": count,
            "wer": word_errors(pairs).rate,
            "silent": silent,
            "speed": seconds / spent,
        }
        print(json.dumps({"what": "speaks", "voice": voice, **figures}), flush=True)


def reads(checkpoint: Path, count: int) -> None:
    """Ask the same questions; print how many phonemes of the replies the codes do not name. No judge listens."""
    omni = load_checkpoint(checkpoint)
    for voice in omni.voices:
        wrong = asked = 0
        for i in range(count):
            chat = Chat(omni, capacity=2048)
            chat.text(exchange(KEPT_OUT_QUESTIONS, i).question)
            lost, written = misread(chat, voice)
            wrong, asked = wrong + lost, asked + written
        figures = {"replies": count, "phonemes": asked, "wrong": wrong / asked}
        print(json.dumps({"what": "reads", "voice": voice, **figures}), flush=True)


def converses(checkpoint: Path, count: int) -> None:
    """Speak the recorded questions one after the other into one conversation; print what `reads` does, turn by turn."""
    omni = load_checkpoint(checkpoint)
    for voice in omni.voices:
        chat, turns = Chat(omni), []
        for path in sorted(SAMPLES.glob("*-question.ogg"))[:count]:
            wave, rate = soundfile.read(path, dtype="float32")
            chat.audio(torch.from_numpy(soxr.resample(wave, rate, INPUT_RATE)), is_last=True)
            turns.append(misread(chat, voice))
        wrong, asked = (sum(column) for column in zip(*turns, strict=True))
        figures = {"turns": turns, "wrong": wrong / asked}
        print(json.dumps({"what": "converses", "voice": voice, **figures}), flush=True)


def misread(chat: Chat, voice: str) -> tuple[int, int]:
    """Let it reply; how many phonemes of the reply its codes do not name, and how many it has."""
    texts, codes = [], []
    for delta in chat.reply(ReplyOptions(voice=voice, max_text_tokens=40, max_codes=400)):
        if isinstance(delta, TextDelta):
            texts.append(delta.text)
        elif isinstance(delta, CodeDelta):
            codes.append(delta.code // tree.NUM_WAYS)
    written = _without_repetitions(text_phonemes("".join(texts)))
    named = [phoneme for phoneme in _without_repetitions(codes) if phoneme]
    return edit_distance(written, named), len(written)


def _without_repetitions(phonemes: Iterable[int]) -> list[int]:
    """A phoneme sounds for several codes, and two alike in a row cannot be told from a long one."""
    return [phoneme for phoneme, _ in itertools.groupby(phonemes)]


def said(chat: Chat, options: ReplyOptions) -> tuple[str, NDArray[np.float32]]:
    """The text of a reply as far as it is meant to be spoken, and its sound."""
    texts, sound = [], []
    for delta in chat.reply(options):
        if isinstance(delta, TextDelta):
            texts.append(delta.text)
        elif isinstance(delta, AudioDelta):
            sound.append(delta.pcm.numpy())
    if len(texts) == options.max_text_tokens:
        texts.pop()  # shown, but cut off before it reached the Talker
    return "".join(texts), np.concatenate([*sound, np.zeros(0, np.float32)])


def hears(checkpoint: Path, calls: list[Sample]) -> None:
    """Print how often a spoken question is answered as the typed one is, and how often either is right."""
    omni = load_checkpoint(checkpoint, speech=False)
    options = ReplyOptions(speech=False, max_text_tokens=40)
    same = keyed = spoken_right = typed_right = 0
    for call, pcm in calls:
        replies = []
        for is_spoken in (True, False):
            chat = Chat(omni, capacity=2048)
            if is_spoken:
                chat.audio(to_wave(pcm), is_last=True)
            else:
                chat.text(call.question)
            replies.append(comparable(said(chat, options)[0]))
        spoken, typed = replies
        same += spoken == typed
        if call.key:
            key = " ".join(comparable(call.key))
            keyed += 1
            spoken_right += key in " ".join(spoken)
            typed_right += key in " ".join(typed)
    figures = {
        "questions": len(calls),
        "same_reply": same / len(calls),
        "closed": keyed,
        "spoken_right": spoken_right / max(1, keyed),
        "typed_right": typed_right / max(1, keyed),
    }
    print(json.dumps({"what": "hears", **figures}))


def sees(checkpoint: Path, calls: list[Sample], count: int) -> None:
    """Print how often questions about kept-out scenes are answered right, by kind of scene and of question."""
    omni = load_checkpoint(checkpoint, speech=False)
    spoken = {call.question: to_wave(pcm) for call, pcm in calls}
    right: dict[str, list[bool]] = {}
    for i in range(count):
        shown = scene(KEPT_OUT_SCENES, i, kept_out=True)
        is_still = len(shown.frames) == 1
        first = shown.questions[0]
        chat = Chat(omni, capacity=2048)
        if is_still:
            chat.image(shown.frames[0])
        else:
            show(chat, shown.frames, None)
        chat.text(first.question)
        answered = is_right(chat, first)
        for kind in ("typed" if is_still else "moving", f"typed: {topic(first)}"):
            right.setdefault(kind, []).append(answered)
        asked = next((q for q in shown.questions if q.question in spoken), None)
        if is_still and asked:
            wave = spoken[asked.question]
            chat = Chat(omni, capacity=2048)
            show(chat, 2 * -(-len(wave) // INPUT_RATE) * shown.frames, wave)
            right.setdefault("spoken", []).append(is_right(chat, asked))
    figures = {name: float(np.mean(found)) for name, found in sorted(right.items())}
    counts = {name: len(found) for name, found in sorted(right.items()) if ":" not in name}
    print(json.dumps({"what": "sees", "counts": counts, **figures}))


def topic(asked: Exchange) -> str:
    """What a question about a scene is about: the word it begins with, or two."""
    words = asked.question.split()
    return " ".join(words[:2]) if words[0] in ("What", "Which", "How") else words[0]


def aligns(checkpoint: Path, calls: list[Sample], count: int) -> None:
    """Print how often what was shown at the moment of a call is named."""
    omni = load_checkpoint(checkpoint, speech=False)
    right = []
    for i in range(count):
        shown = changing(KEPT_OUT_SCENES, i, kept_out=True)
        chat = Chat(omni, capacity=2048)
        show(chat, shown.frames, called_at(shown, to_wave(calls[i % len(calls)][1])))
        [asked] = shown.questions
        chat.text(asked.question)
        right.append(is_right(chat, asked))
    print(json.dumps({"what": "aligns", "videos": count, "right": float(np.mean(right))}))


def show(chat: Chat, frames: list[Picture], wave: Tensor | None) -> None:
    """Two frames a second, and sound [n] at 16 kHz if there is any."""
    chat.open_video(with_sound=wave is not None)
    for frame in frames:
        chat.frame(frame)
    if wave is not None:
        chat.sound(wave)
    chat.close_video()


def is_right(chat: Chat, asked: Exchange) -> bool:
    reply, _ = said(chat, ReplyOptions(speech=False, max_text_tokens=40))
    return asked.key.lower() in reply.lower()


def measure(
    clips: list[Clip], make: Resynthesis, listener: Listener, keep: Path | None
) -> dict[str, float]:
    """Return word error rates over `clips`; write what was made to `keep`."""
    said_heard, origin_heard = [], []
    for i, clip in enumerate(clips):
        wave = make(clip)
        heard = listener.transcribe(wave)
        said_heard.append((clip.text, heard))
        origin_heard.append((listener.transcribe(original(clip)), heard))
        if keep:
            soundfile.write(keep / f"{i:03d}.wav", wave, SAMPLE_RATE)
            pair = ((f"original: {clip.text}", original(clip)), (f"heard: {heard}", wave))
            plot_mels(pair, keep / f"{i:03d}.png")
            with (keep / "heard.jsonl").open("a") as file:
                file.write(json.dumps({"said": clip.text, "heard": heard}) + "\n")
    return {
        "against_text": word_errors(said_heard).rate,
        "against_original": word_errors(origin_heard).rate,
    }


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        if args.what == "speaks":
            speaks(args.checkpoint, args.clips, Listener(), args.keep)
        elif args.what == "reads":
            reads(args.checkpoint, args.clips)
        elif args.what == "converses":
            converses(args.checkpoint, args.clips)
        elif args.what == "hears":
            hears(args.checkpoint, read_calls(args.calls, "kept-out")[: args.clips])
        elif args.what == "sees":
            sees(args.checkpoint, read_calls(args.calls, "kept-out-scenes"), args.clips)
        elif args.what == "aligns":
            aligns(args.checkpoint, read_calls(args.calls, "kept-out-now"), args.clips)
        else:
            _resynthesis(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cache = Path("~/.cache/parley/tiny").expanduser()
    parts = ("speech", "vocoder", "codec", "dit", "talker")
    kinds = (*parts, "speaks", "reads", "converses", "hears", "sees", "aligns")
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--vocoder", type=Path, default=cache / "vocoder")
    parser.add_argument("--codec", type=Path, default=cache / "codec")
    parser.add_argument("--dit", type=Path, default=cache / "dit")
    parser.add_argument("--checkpoint", type=Path, default=cache.parent / "omni-tiny")
    parser.add_argument("--data", type=Path, default=cache / "speech")
    parser.add_argument("--rows", type=Path, default=cache / "rows")
    parser.add_argument("--calls", type=Path, default=cache / "callers")
    parser.add_argument("--clips", type=int, default=50, help="per voice")
    parser.add_argument(
        "--newest", action="store_true", help="newest averaged weights, not the best"
    )
    parser.add_argument("--keep", type=Path, help="folder for the sound made and its spectrograms")
    return parser.parse_args()


def _resynthesis(args: argparse.Namespace) -> None:
    speech, listener, best = Speech(args.data), Listener(), not args.newest
    makers: dict[str, Callable[[], Resynthesis]] = {
        "speech": lambda: original,
        "vocoder": lambda: through_vocoder(args.run, best),
        "codec": lambda: through_codec(args.run, args.vocoder, best),
        "dit": lambda: through_dit(args.run, args.codec, args.vocoder, speech, best),
        "talker": lambda: through_talker(args, speech, best),
    }
    make = makers[args.what]()
    for voice, name in enumerate(VOICE_NAMES):
        clips = [clip for clip in speech.kept_out if clip.voice == voice][: args.clips]
        rates = measure(clips, make, listener, args.keep)
        print(json.dumps({"what": args.what, "voice": name, "clips": len(clips), **rates}))


if __name__ == "__main__":
    main()
