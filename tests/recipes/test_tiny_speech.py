"""Speech data of the small checkpoint: texts, mel frames, codes and word errors."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.tiny import exchanges, mel
from recipes.tiny.answers import answers, mixed
from recipes.tiny.codec import Quantizer
from recipes.tiny.texts import sentence
from recipes.tiny.tree import CODE_LEVELS, NUM_WAYS
from server import transcriber


def test_a_sentence_depends_on_seed_and_number_alone() -> None:
    listed = [sentence(3, i) for i in range(200)]
    assert listed == [sentence(3, i) for i in range(200)]
    assert len(set(listed)) > 150
    assert listed[:50] != [sentence(4, i) for i in range(50)]


def test_sentences_start_with_a_capital_and_end_with_a_stop() -> None:
    for i in range(300):
        text = sentence(1, i)
        assert text[0].isdigit() or text[0].isupper()
        assert text[-1] in ".!?"
        assert " a apple" not in text


def test_answers_are_endless_and_each_said_once() -> None:
    listed = list(islice(answers(60), 300))
    assert listed == list(islice(answers(60), 300))
    assert len(set(listed)) == 300
    assert any(text.startswith("I see ") for text in listed)  # of what is shown
    others = ["Other one.", listed[3], "Other two."]
    both = list(islice(mixed(answers(60), others, 1), 50))
    assert [text for text in both if text in others] == others  # in their order, the common one too
    assert [text for text in both if text not in others] == [t for t in listed if t != listed[3]][
        :47
    ]


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 30), frames=st.integers(1, 12))
def test_a_cut_has_the_mel_of_its_clip(start: int, frames: int) -> None:
    wave = torch.randn(48 * mel.HOP, generator=torch.Generator().manual_seed(1)) * 0.1
    # Frame t of the clip sees EDGE samples to either side of its hop.
    first = (start + 2) * mel.HOP
    cut = wave[first - mel.EDGE : first + frames * mel.HOP + mel.EDGE]
    whole = mel.log_mel(wave)[start + 2 : start + 2 + frames]
    # float32 transforms of the same samples
    torch.testing.assert_close(mel.log_mel(cut, has_edges=True), whole, atol=1e-4, rtol=1e-4)


def test_a_tone_rises_in_its_own_mel_bin() -> None:
    time = torch.arange(mel.SAMPLE_RATE) / mel.SAMPLE_RATE
    frames = mel.log_mel(0.5 * torch.sin(2 * torch.pi * 1000 * time))
    assert frames.shape == (100, mel.NUM_BINS)
    assert int(frames[50].argmax()) == pytest.approx(
        23, abs=1
    )  # 1 kHz is mel 15 of 51.2, in 81 steps


def test_ways_and_values_name_each_other() -> None:
    quantizer = Quantizer(CODE_LEVELS)
    ways = torch.arange(NUM_WAYS)
    values = quantizer.values(ways)
    assert values.abs().max() == 1
    assert len(values.unique(dim=0)) == NUM_WAYS
    # Undo the squashing, away from the flat ends, and quantise again.
    raw = torch.logit((values + 1) / 2, eps=1e-3)
    again, ids = quantizer(raw[None])
    assert torch.equal(ids[0], ways)
    torch.testing.assert_close(again[0], values)


def test_the_quantiser_passes_gradients() -> None:
    x = torch.zeros(1, 3, len(CODE_LEVELS), requires_grad=True)
    Quantizer(CODE_LEVELS)(x)[0].sum().backward()
    assert x.grad is not None and (x.grad > 0).all()


def test_word_errors_ignore_how_numbers_and_letters_are_written() -> None:
    listen = pytest.importorskip("recipes.tiny.listen", reason="needs the recogniser")
    same = [
        ("7, 3, 1.", "731"),
        ("C, A, T.", "C-A-T"),
        ("It costs 70 dollars.", "it costs seventy dollars"),
        ("1,000 people.", "1000 people"),
    ]
    assert listen.word_errors(same).errors == 0
    counted = listen.word_errors([("a red ball", "a blue ball now")])
    assert (counted.errors, counted.words) == (2, 3)


def test_dictation_is_asked_for_as_the_server_does() -> None:
    assert exchanges.DICTATION_PROMPT == transcriber.PROMPT
    assert exchanges.DICTATION_REQUEST == transcriber.REQUEST
