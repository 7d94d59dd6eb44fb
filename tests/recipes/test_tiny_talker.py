"""The Talker's training: codes are as likely there as where they were drawn, many at once as each alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from model.sampling import TALKER_SAMPLING
from recipes.tiny import tree
from recipes.tiny.aloud import Script, read_aloud
from recipes.tiny.assemble import spelled
from recipes.tiny.inventing import Inventor
from recipes.tiny.lessons import SLOTS, Lesson, Markers, Vocabulary, retold
from recipes.tiny.rows import MAX_PROMPT_ROWS
from recipes.tiny.talker import TalkerStage, later, naming, varied


@pytest.fixture(scope="module")
def stage() -> TalkerStage:
    config = tree.config().talker
    assert config is not None
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, tree.HIDDEN, generator=generator)
    markers = Markers(vectors[0], vectors[1], vectors[2:])
    stage = TalkerStage([], [], markers, None, config, batch=1, lr=0.0, device="cpu", seed=0)
    stage.talker.eval()
    return stage


def scripts() -> list[Script]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, 3, 0), (17, 6, 1), (9, 1, 1))
    return [
        Script(*(torch.randn(n, tree.HIDDEN, generator=generator).half() for n in (p, r)), voice)
        for p, r, voice in sizes
    ]


def lesson(script: Script, codes: torch.Tensor) -> Lesson:
    silent = ((),) * len(script.reply_rows)
    unknown = torch.full_like(codes, -1)
    return Lesson(script.prompt_rows, script.reply_rows, codes, script.voice, silent, unknown)


def test_many_readings_at_once_are_as_each_alone(stage: TalkerStage) -> None:
    settings = [dataclasses.replace(TALKER_SAMPLING, seed=i) for i in range(3)]
    together = read_aloud(stage.talker, stage.markers, scripts(), settings, 30)
    assert {len(codes) for codes in together} != {0}
    for script, setting, codes in zip(scripts(), settings, together, strict=True):
        (alone,) = read_aloud(stage.talker, stage.markers, [script], [setting], 30)
        assert torch.equal(alone, codes)


def likelihood(stage: TalkerStage, asked: Lesson) -> torch.Tensor:
    """Log-likelihood of every code and the stop, laid out as in training [N + 1]."""
    stack = stage._stack([asked], None)
    hidden = stage.talker.model.whole(
        stage.talker.thinker_to_talker_proj(stack.rows), stack.positions
    )
    inside = stack.codes >= 0
    odds = stage.talker.logits(hidden[inside]).log_softmax(-1)
    return odds.gather(1, stack.codes[inside][:, None])[:, 0]


def test_a_reading_is_as_likely_in_training_as_where_it_was_drawn(stage: TalkerStage) -> None:
    """Greedy codes are each the likeliest under the layout that training uses: both see the same rows."""
    greedy = dataclasses.replace(TALKER_SAMPLING, temperature=0.0, repetition_penalty=1.0)
    for script in scripts():
        (codes,) = read_aloud(stage.talker, stage.markers, [script], [greedy], 12)
        for t in range(len(codes)):
            others = [codes[:t], codes[t : t + 1] + torch.arange(1, 6)]
            said = likelihood(stage, lesson(script, codes[: t + 1]))[t]
            for other in others[1] % tree.NUM_CODES:
                changed = torch.cat([others[0], other[None]])
                assert likelihood(stage, lesson(script, changed))[t] <= said


def test_the_phoneme_of_a_code_is_right_in_whatever_way_it_sounds() -> None:
    codes = torch.tensor([0, 3, tree.NUM_WAYS, 5 * tree.NUM_WAYS + 7, tree.CODEC_EOS])
    others = torch.tensor([9, 0, tree.NUM_WAYS + 4, 5 * tree.NUM_WAYS, tree.CODEC_EOS])
    sure = torch.full((5, 1024), -50.0)
    sure[torch.arange(5), others] = 50.0
    loss, right = naming(sure, codes)
    assert loss < 1e-6 and right == 1.0
    loss, right = naming(sure, codes.flip(0))
    assert loss > 10 and right == pytest.approx(1 / 5)  # the one in the middle


def test_a_lesson_told_anew_sounds_the_same_under_other_tokens() -> None:
    spelling = ((5, 6, 7), (), (8,), (9, 10, 11, 12), ())
    sounding = torch.tensor([0, 0, 1, 2, 3, -1, 4, 5, 6, 7, -1])
    table = torch.tensor([own + (0,) * (tree.SLOTS - len(own)) for own in spelling])
    rows = torch.nn.functional.pad(spelled(table), (tree.SOURCE_HIDDEN, 0))
    codes = torch.arange(len(sounding))
    told = Lesson(torch.zeros(4, tree.HIDDEN), rows, codes, 0, spelling, sounding)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        anew = retold(told, rng)
        seen.add(anew.spelling)
        assert [p for own in anew.spelling for p in own] == list(range(5, 13))
        assert [own for own in anew.spelling if not own] == [(), ()]
        assert anew.spelling[-1] == ()
        assert torch.equal(anew.codes, codes)
        assert torch.equal(anew.phoneme_spoken, told.phoneme_spoken)
        # Each code points at the token, and the place in it, that spell what it sounds.
        spoken = (anew.token_spoken, anew.slot_spoken, anew.phoneme_spoken)
        for token, slot, phoneme in zip(*(x.tolist() for x in spoken), strict=True):
            assert phoneme == (anew.spelling[token][slot] if token >= 0 else 0)
        if anew.spelling == spelling:
            assert torch.equal(anew.reply_rows, rows)
    assert len(seen) > 10


def test_a_lesson_is_told_in_many_ways_and_always_asks_for_the_same_codes(
    stage: TalkerStage,
) -> None:
    spelling = ((5, 6, 7), (), (8, 9))
    sounding = torch.tensor([0, 1, 1, 2, 3, 4, -1, -1])
    script = scripts()[1]
    codes = torch.arange(10, 18)
    told = Lesson(script.prompt_rows, script.reply_rows[:3], codes, 0, spelling, sounding)
    rng = np.random.default_rng(0)
    kinds, fed_right, named_right = set(), [], []
    for _ in range(60):
        lesson, fed = varied(told, rng)
        kinds.add(
            "retold"
            if lesson.spelling != spelling
            else bool(lesson.reply_rows[:, : tree.SOURCE_HIDDEN].any())
        )
        fed_right.append((fed == codes).float().mean().item())
        named_right.append((fed // tree.NUM_WAYS == codes // tree.NUM_WAYS).float().mean().item())
        assert torch.equal(lesson.prompt_rows, told.prompt_rows[-len(lesson.prompt_rows) :])
        assert torch.equal(lesson.codes, codes)
        assert lesson.voice == told.voice
    assert kinds == {"retold", True, False}  # told anew, as it is, spelled only
    assert 0.65 < np.mean(fed_right) < 0.85
    assert 0.9 < np.mean(named_right) < 0.98
    stack = stage._stack([told], rng)
    assert stack.codes[stack.codes >= 0].tolist() == [*codes.tolist(), tree.CODEC_EOS]
    assert stack.phonemes[0, stack.codes[0] >= 0].tolist() == [5, 6, 6, 7, 8, 9, 0, 0, 0]
    assert stack.rows.shape[1] == stack.positions.shape[2] == stack.spellings.shape[1]


def test_an_invented_lesson_spells_what_its_codes_name() -> None:
    """Words of a vocabulary, in the codes that sounded their phonemes elsewhere; silences and full stop stay."""
    spelling = ((5, 6, 7), (8, 9), ())
    sounding = torch.tensor([-1, 0, 0, 1, 2, 3, 3, 3, 4, -1, -1])
    named = torch.tensor([0, 5, 5, 6, 7, 8, 8, 8, 9, 0, 0])
    codes = named * tree.NUM_WAYS + torch.arange(11)
    rows = torch.randn(3, tree.HIDDEN, generator=torch.Generator().manual_seed(3)).half()
    real = Lesson(torch.zeros(4, tree.HIDDEN), rows, codes, 1, spelling, sounding)
    phonemes = torch.zeros(5, SLOTS, dtype=torch.long)
    for word, own in enumerate(((5, 9), (8,), (7, 7, 6), (4, 5), range(5, 9))):
        phonemes[word, : len(own)] = torch.tensor(list(own))
    words = Vocabulary(torch.randn(5, tree.HIDDEN), phonemes, torch.zeros(2, tree.HIDDEN))
    inventor, rng, seen = Inventor.of(words, [real]), np.random.default_rng(0), set()
    for _ in range(40):
        made = inventor(real, rng)
        seen.add(made.spelling)
        assert made.is_invented and not real.is_invented and made.voice == real.voice
        # Nobody ever sounded 4, so its word is not among them.
        assert set(made.spelling[:-1]) <= {(5, 9), (8,), (7, 7, 6), (5, 6, 7, 8)}
        assert made.spelling[-1] == () and torch.equal(made.reply_rows[-1], rows[-1].float())
        assert len(made.reply_rows) == len(made.spelling)
        assert torch.equal(made.codes // tree.NUM_WAYS, made.phoneme_spoken)
        assert made.codes[0] == codes[0] and torch.equal(made.codes[-2:], codes[-2:])
        assert len(made.codes) >= len(codes)
    assert len(seen) > 10


def test_of_an_invented_lesson_only_phonemes_are_asked(stage: TalkerStage) -> None:
    script = scripts()[1]
    sounds = torch.tensor([0, 1, 1, 2])
    codes = torch.tensor([5, 6, 6, 7]) * tree.NUM_WAYS
    told = Lesson(script.prompt_rows, script.reply_rows[:1], codes, 0, ((5, 6, 7),), sounds)
    invented = dataclasses.replace(told, is_invented=True)
    _, real = stage._loss(stage._stack([told], None))
    _, other = stage._loss(stage._stack([invented], None))
    assert real["loss"] > 0 and other["loss"] == 0
    assert real["named"] == other["named"] > 0
    _, both = stage._loss(stage._stack([told, invented], None))
    assert both["loss"] == pytest.approx(real["loss"], rel=1e-3)


def test_a_later_lesson_has_other_turns_before_its_own_prompt(stage: TalkerStage) -> None:
    script = scripts()[0]
    codes = torch.arange(10, 14)
    told = Lesson(script.prompt_rows, script.reply_rows, codes, 0, ((),) * 3, torch.full((4,), -1))
    turns = [torch.full((n, tree.HIDDEN), float(n)).half() for n in (30, 70)]
    rng = np.random.default_rng(0)
    for length in (0, 1, 50, 400):
        made = later(told, turns, length, rng)
        own = len(told.prompt_rows)
        assert len(made.prompt_rows) == own + length
        assert torch.equal(made.prompt_rows[-own:], told.prompt_rows)
        assert set(made.prompt_rows[:-own, 0].tolist()) <= {30.0, 70.0}
        if len(made.prompt_rows) > MAX_PROMPT_ROWS:  # asked to be long: training does not cut it
            assert len(varied(made, rng)[0].prompt_rows) == len(made.prompt_rows)
        stack = stage._stack([made], None)
        assert stack.codes[stack.codes >= 0].tolist() == [*codes.tolist(), tree.CODEC_EOS]
