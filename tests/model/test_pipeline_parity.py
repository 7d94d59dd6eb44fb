"""The whole pipeline against `transformers`: same text, same codes, same sound, however the input arrived."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.chat import Chat
from model.image import image_patches, normalize, pair_patches, video_grid
from model.interleave import Interleaver
from model.mel import LogMel
from model.omni import Omni, load
from model.reply import AudioDelta, CodeDelta, ReplyOptions, TextDelta
from model.sampling import GREEDY, Sampling
from tests.model.reference import TALKER_STOPS, THINKER_EOS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_TEXT, MAX_CODES = 12, 30
SYSTEM = "Be kind."
TALKER_GREEDY = Sampling(temperature=0, repetition_penalty=1.05)
GREEDY_REPLY = ReplyOptions(
    thinker=GREEDY, talker=TALKER_GREEDY, max_text_tokens=MAX_TEXT, max_codes=MAX_CODES
)


@pytest.fixture(scope="module")
def omni(checkpoint_dir: Path) -> Omni:
    return load(checkpoint_dir, dtype=torch.float32)


def sound(seconds: float, seed: int = 0) -> Tensor:
    """Noise whose level rises and falls like speech."""
    g = torch.Generator().manual_seed(seed)
    n = int(16_000 * seconds)
    level = torch.linspace(0, 9 * seconds, n).sin().abs()
    return torch.randn(n, generator=g) * level * 0.1


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Said:
    """A turn's content, to be given to Chat and to the reference alike."""

    text: str = ""
    audio: Tensor | None = None
    image: np.ndarray[Any, Any] | None = None
    frames: tuple[np.ndarray[Any, Any], ...] = ()
    soundtrack: Tensor | None = None


@dataclass
class ReferencePrompt:
    """What `generate` of the reference needs: ids in full, features of every medium."""

    omni: Omni
    ids: list[int] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)

    def message(self, role: str, said: Said) -> None:
        encode, config = self.omni.tokenizer.encode, self.omni.config.thinker
        self.ids += [self.omni.tokenizer.im_start_id, *encode(f"{role}\n")]
        if said.audio is not None:
            rows = self.add_mel(said.audio)
            body = [config.audio_token_index] * rows
            self.ids += [config.audio_start_token_id, *body, config.audio_end_token_id]
        if said.image is not None:
            patches = image_patches(said.image, self.omni.images)
            self.images.append(patches)
            body = [config.image_token_index] * (patches.grid.num_patches // 4)
            self.ids += [config.vision_start_token_id, *body, config.vision_end_token_id]
        if said.frames:
            self.video(said)
        self.ids += encode(said.text) + [self.omni.tokenizer.im_end_id, *encode("\n")]

    def video(self, said: Said) -> None:
        config, frames = self.omni.config.thinker, list(said.frames)
        grid = video_grid(frames[0], self.omni.images)
        frames += frames[-1:] * (len(frames) % 2)
        pairs = [
            pair_patches(a, b, grid=grid, settings=self.omni.images)
            for a, b in zip(frames[::2], frames[1::2], strict=True)
        ]
        self.videos.append(pairs)
        interleaver: Interleaver[list[int], list[int]] = Interleaver(pairs_per_chunk=2)
        order: list[list[int]] = []
        for k in range(len(pairs)):
            tokens = [config.video_token_index] * (grid.num_patches // 4)
            order += interleaver.add_pair(k // 2, tokens)
        left = 0 if said.soundtrack is None else self.add_mel(said.soundtrack)
        while left > 0:
            order += interleaver.add_audio([config.audio_token_index] * min(50, left))
            left -= 50
        order += interleaver.close()
        body = list(itertools.chain(*order))
        if said.soundtrack is not None:
            body = [config.audio_start_token_id, *body, config.audio_end_token_id]
        self.ids += [config.vision_start_token_id, *body, config.vision_end_token_id]

    def add_mel(self, samples: Tensor) -> int:
        audio = self.omni.config.thinker.audio
        mel = LogMel(audio.num_mel_bins, audio.block_frames)(samples[None])[0]
        self.mels.append(mel)
        return ((len(mel) - 1) // 2 + 1 - 2) // 2 + 1

    def kwargs(self) -> dict[str, Any]:
        out: dict[str, Any] = {"input_ids": torch.tensor([self.ids])}
        if self.mels:
            longest = max(map(len, self.mels))
            features = torch.zeros(len(self.mels), self.mels[0].shape[1], longest)
            mask = torch.zeros(len(self.mels), longest, dtype=torch.long)
            for i, mel in enumerate(self.mels):
                features[i, :, : len(mel)], mask[i, : len(mel)] = mel.T, 1
            out |= {"input_features": features, "feature_attention_mask": mask}
        if self.images:
            out["thinker_pixel_values"] = self.values(self.images)
            out["image_grid_thw"] = torch.tensor([(1, p.grid_h, p.grid_w) for p in self.images])
        if self.videos:
            out["thinker_pixel_values_videos"] = self.values(itertools.chain(*self.videos))
            out["video_grid_thw"] = torch.tensor(
                [(len(v), v[0].grid_h, v[0].grid_w) for v in self.videos]
            )
            out["video_second_per_grid"] = torch.tensor([1.0] * len(self.videos))
        return out

    def values(self, patches: Any) -> Tensor:
        return torch.cat([normalize(p.values, self.omni.images) for p in patches])


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    codes: list[int]
    pcm: Tensor


def ask_reference(  # type: ignore[no-untyped-def]
    reference,
    prompt: ReferencePrompt,
    monkeypatch: pytest.MonkeyPatch,
    eos: int,
    is_av: bool = False,
) -> Answer:
    codes: list[Tensor] = []
    token2wav = reference.token2wav

    def record(code: Tensor, **kwargs: Any) -> Tensor:
        codes.append(code[0])
        return torch.zeros(480 * code.shape[1])

    with monkeypatch.context() as patch:
        patch.setattr(token2wav, "forward", record)
        tokens, _ = reference.generate(
            **prompt.kwargs(),
            use_audio_in_video=is_av,
            speaker="Chelsie",
            thinker_do_sample=False,
            talker_do_sample=False,
            thinker_eos_token_id=[eos],
            thinker_max_new_tokens=MAX_TEXT,
            talker_max_new_tokens=MAX_CODES,
            talker_eos_token_id=list(TALKER_STOPS),
        )
    return Answer(tokens[0, len(prompt.ids) :].tolist(), codes[0].tolist(), torch.empty(0))


def collect(deltas: Iterator[Any]) -> Answer:
    tokens, codes, pcm = [], [], [torch.empty(0)]
    for delta in deltas:
        match delta:
            case TextDelta():
                tokens.append(delta.token_id)
            case CodeDelta():
                codes.append(delta.code)
            case AudioDelta():
                assert delta.start_sample == sum(map(len, pcm))
                pcm.append(delta.pcm)
    return Answer(tokens, codes, torch.cat(pcm))


def give(chat: Chat, said: Said) -> None:
    """Everything at once."""
    if said.audio is not None:
        chat.audio(said.audio, is_last=True)
    if said.image is not None:
        chat.image(said.image)
    if said.frames:
        chat.open_video(with_sound=said.soundtrack is not None)
        for frame in said.frames:
            chat.frame(frame)
        if said.soundtrack is not None:
            chat.sound(said.soundtrack)
        chat.close_video()
    chat.text(said.text)


CASES = {
    "text": Said("hi there"),
    "audio": Said("what?", audio=sound(3.3)),
    "short audio": Said("", audio=sound(0.06)),
    "image": Said("see", image=picture(70, 120)),
    "audio and image": Said("both", audio=sound(2.0), image=picture(56, 30)),
    "video": Said("look", frames=tuple(picture(60, 90, i) for i in range(5))),
    "video with sound": Said(
        "now?", frames=tuple(picture(60, 90, i) for i in range(9)), soundtrack=sound(4.6)
    ),
    "video that outlasts its sound": Said(
        "so", frames=tuple(picture(60, 60, i) for i in range(8)), soundtrack=sound(2.2)
    ),
    "sound that outlasts its video": Said(
        "so", frames=tuple(picture(60, 60, i) for i in range(2)), soundtrack=sound(5.0)
    ),
}


@pytest.fixture(scope="module")
def speakers(reference, checkpoint_dir: Path) -> None:  # type: ignore[no-untyped-def]
    reference.load_speakers(checkpoint_dir / "spk_dict.pt")


@pytest.mark.usefixtures("speakers")
@pytest.mark.parametrize("said", CASES.values(), ids=CASES.keys())
def test_text_and_codes_equal_the_reference(reference, omni, monkeypatch, said: Said) -> None:  # type: ignore[no-untyped-def]
    prompt = ReferencePrompt(omni)
    prompt.message("system", Said(SYSTEM))
    prompt.message("user", said)
    prompt.ids += [omni.tokenizer.im_start_id, *omni.tokenizer.encode("assistant\n")]
    is_av = said.soundtrack is not None
    expected = ask_reference(reference, prompt, monkeypatch, THINKER_EOS, is_av)
    chat = Chat(omni, SYSTEM)
    give(chat, said)
    answer = collect(chat.reply(GREEDY_REPLY))
    assert answer.tokens == [t for t in expected.tokens if t != THINKER_EOS]
    assert answer.codes == expected.codes
    assert len(answer.pcm) == 480 * len(answer.codes)


def test_the_cases_tell_media_apart(omni) -> None:  # type: ignore[no-untyped-def]
    """Were the oracle's answers all alike, equality with it would prove little."""
    answers = [answer_of(omni, said) for said in CASES.values()]
    assert len({tuple(a.tokens) for a in answers}) >= 7
    assert len({tuple(a.codes) for a in answers}) == len(answers)
    assert all(len(set(a.codes)) >= 4 for a in answers)


@pytest.mark.usefixtures("speakers")
@pytest.mark.parametrize("text_limit", [1, 3, MAX_TEXT])
def test_later_turns_equal_a_reference_that_reads_everything_anew(  # type: ignore[no-untyped-def]
    reference, omni, monkeypatch, text_limit: int
) -> None:
    """Caches are kept across turns; the Talker's own span is cut out and the reply enters as a prompt."""
    turns = [CASES["audio"], CASES["video with sound"], CASES["text"], CASES["image"]]
    limited = replace(GREEDY_REPLY, max_text_tokens=text_limit)
    chat, prompt = Chat(omni, SYSTEM), ReferencePrompt(omni)
    prompt.message("system", Said(SYSTEM))
    for number, said in enumerate(turns):
        prompt.message("user", said)
        prompt.ids += [omni.tokenizer.im_start_id, *omni.tokenizer.encode("assistant\n")]
        give(chat, said)
        is_last = number == len(turns) - 1
        answer = collect(chat.reply(GREEDY_REPLY if is_last else limited))
        if is_last:
            expected = ask_reference(reference, prompt, monkeypatch, THINKER_EOS, is_av=True)
            assert answer.tokens == [t for t in expected.tokens if t != THINKER_EOS]
            assert answer.codes == expected.codes
        prompt.ids += [*answer.tokens, omni.tokenizer.im_end_id, *omni.tokenizer.encode("\n")]


@pytest.mark.usefixtures("speakers")
@pytest.mark.parametrize("num_tokens", [2, 3, 7])
def test_a_reply_that_ends_early_equals_the_reference(  # type: ignore[no-untyped-def]
    reference, omni, monkeypatch, num_tokens: int
) -> None:
    """Any token that greedy decoding emits may be declared the end token."""
    said = CASES["image"]
    full = answer_of(omni, said).tokens
    eos = full[num_tokens - 1]
    assert full.index(eos) == num_tokens - 1
    prompt = ReferencePrompt(omni)
    prompt.message("system", Said(SYSTEM))
    prompt.message("user", said)
    prompt.ids += [omni.tokenizer.im_start_id, *omni.tokenizer.encode("assistant\n")]
    expected = ask_reference(reference, prompt, monkeypatch, eos)
    answer = answer_of(replace(omni, end_ids=frozenset((eos,))), said)
    assert answer.tokens == expected.tokens[:-1] == full[: num_tokens - 1]
    assert answer.codes == expected.codes


def test_a_later_turn_is_penalised_for_what_earlier_replies_said(omni) -> None:  # type: ignore[no-untyped-def]
    """The reference's penalty looks at every id before the new token, earlier replies included."""
    chat = Chat(omni, SYSTEM)
    give(chat, CASES["text"])
    tokens = collect(chat.reply(replace(GREEDY_REPLY, max_text_tokens=4))).tokens
    new = [t for t in tokens if not chat.prompt.seen[0, t]]
    assert new
    give(chat, CASES["text"])
    assert chat.prompt.seen[0, new].all()


def test_a_reply_of_nothing_but_its_end_still_speaks_and_closes(omni) -> None:  # type: ignore[no-untyped-def]
    """The reference crashes here (an empty list of hidden states); we follow its rule for the row stream."""
    first = answer_of(omni, CASES["text"]).tokens[0]
    answer = answer_of(replace(omni, end_ids=frozenset((first,))), CASES["text"])
    assert answer.tokens == []
    assert len(answer.pcm) == 480 * len(answer.codes)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.integers(0, int(4.6 * 16_000)), max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_no_arrival_pattern_changes_the_answer(omni, whole_answer, cuts, order) -> None:  # type: ignore[no-untyped-def]
    said = CASES["video with sound"]
    assert said.soundtrack is not None
    edges = [0, *sorted(cuts), len(said.soundtrack)]
    pieces = [said.soundtrack[a:b] for a, b in itertools.pairwise(edges)]
    arrivals = ["frame"] * len(said.frames) + ["sound"] * len(pieces)
    order.shuffle(arrivals)
    frames, sounds = iter(said.frames), iter(pieces)
    chat = Chat(omni, SYSTEM)
    chat.open_video(with_sound=True)
    for kind in arrivals:
        if kind == "frame":
            chat.frame(next(frames))
        else:
            chat.sound(next(sounds))
    chat.close_video()
    chat.text(said.text)
    answer = collect(chat.reply(GREEDY_REPLY))
    expected, timeline, hidden = whole_answer
    assert chat.prompt.timeline == timeline
    # float32; pieces of other lengths sum in another order, through three layers
    torch.testing.assert_close(chat.prompt.last_hidden, hidden, atol=2e-5, rtol=1e-5)
    assert answer.tokens == expected.tokens
    assert answer.codes == expected.codes


@pytest.fixture(scope="module")
def whole_answer(omni):  # type: ignore[no-untyped-def]
    chat = Chat(omni, SYSTEM)
    give(chat, CASES["video with sound"])
    answer = collect(chat.reply(GREEDY_REPLY))
    return answer, chat.prompt.timeline.snapshot(), chat.prompt.last_hidden


def test_a_reply_that_was_closed_leaves_a_history_of_what_was_computed(omni) -> None:  # type: ignore[no-untyped-def]
    """Cancel after a few deltas; the next turn equals one after a reply limited to the same tokens."""
    chats = [Chat(omni, SYSTEM), Chat(omni, SYSTEM)]
    for chat in chats:
        give(chat, CASES["text"])
    cancelled = chats[0].reply(GREEDY_REPLY)
    tokens = [d for d in itertools.islice(cancelled, 9) if isinstance(d, TextDelta)]
    cancelled.close()
    num_forwarded = len(tokens) - 1
    # The other shows as many tokens as this one had forwarded; the last of them joins the prompt with the next turn.
    kept = collect(chats[1].reply(replace(GREEDY_REPLY, max_text_tokens=num_forwarded)))
    assert kept.tokens == [t.token_id for t in tokens][:num_forwarded]
    for chat in chats:
        give(chat, CASES["audio"])
    answers = [collect(chat.reply(GREEDY_REPLY)) for chat in chats]
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].codes == answers[1].codes


def answer_of(omni: Omni, said: Said) -> Answer:
    chat = Chat(omni, SYSTEM)
    give(chat, said)
    return collect(chat.reply(GREEDY_REPLY))
