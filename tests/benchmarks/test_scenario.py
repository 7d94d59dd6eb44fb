"""Scenarios and objectives: every shipped file can be used, and what cannot be used is told in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.clips import SPEECH_DIR, ClipFault, find_clips, load_clip
from benchmarks.load.records import RecordFault, read_run, write_run
from benchmarks.load.run import merge, next_to_try
from benchmarks.load.scenario import SCENARIOS_DIR, ScenarioFault, load_scenario, read_scenario
from benchmarks.load.slo import (
    SLO_DIR,
    Outcome,
    SloFault,
    judge,
    load_slo,
    overall,
    read_slo,
)
from tests.benchmarks.making import QUIET, STALLED, level, run, turn

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = sorted(path.stem for path in SCENARIOS_DIR.glob("*.toml"))
FAST = '[[objective]]\nfigure = "first_audio_ms"\nat = "p95"\nat_most = 800'


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_can_be_used(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name and scenario.description
    assert all(find_clips(group.clips) for group in scenario.callers)


def test_the_scenarios_that_are_promised_are_there() -> None:
    promised = {
        "voice",
        "voice-video",
        "monologue",
        "short-turns",
        "interrupters",
        "slow-readers",
        "mixed",
    }
    assert promised <= set(SHIPPED)


def test_shipped_speech_is_small_and_is_speech() -> None:
    paths = find_clips(("short", "question", "long"))
    assert sum(path.stat().st_size for path in SPEECH_DIR.iterdir()) < 1_000_000
    for path in paths:
        assert 0.5 < load_clip(path, 16_000).duration_s < 12, path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frame_mss = 20", "unknown key frame_mss, did you mean 'frame_ms'?"),
        ("[[callers]]\nclip = ['short']", "unknown key callers.0.clip, did you mean 'clips'?"),
        ("frame_ms = 'long'", "frame_ms: Input should be a valid integer"),
        ("frame_ms = 5", "frame_ms: Input should be greater than or equal to 10"),
        ("[[callers]]\nthink_ms = [500, 100]", r"think_ms must be \[least, most\]"),
        ("[[callers]]\nshare = 0", "callers.0.share"),
        ("[[callers]]\nclips = []", "clips must name at least one"),
        ("[[callers]]\n[[callers]]", "one name"),
        ("callers = []", "at least one"),
        ("transport = 'pigeon'", "transport: Input should be 'base64' or 'binary'"),
        ('[[callers]]\nturn_detection = "none"\ninterrupt_share = 0.5', 'interrupt_by = "cancel"'),
        ("frame_ms = ", "party.toml: Invalid value"),
    ],
)
def test_what_is_wrong_in_a_scenario_is_told(text: str, words: str) -> None:
    with pytest.raises(ScenarioFault, match=words):
        read_scenario(text, "party.toml")


def test_a_scenario_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ScenarioFault, match="did you mean 'voice'.*monologue"):
        load_scenario("voise")


@given(st.integers(0, 40), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_groups_come_in_their_shares_and_more_callers_add_to_fewer(
    num_callers: int, shares: list[int]
) -> None:
    groups = "".join(f'[[callers]]\nname = "g{i}"\nshare = {s}\n' for i, s in enumerate(shares))
    scenario = read_scenario(groups, "groups.toml")
    cast = scenario.cast(num_callers)
    assert scenario.cast(num_callers + 1)[:-1] == cast
    for group in scenario.callers:
        exact = num_callers * group.share / sum(shares)
        assert abs(cast.count(group) - exact) <= len(shares)


def test_speech_ends_with_the_last_loud_sample(tmp_path: Path) -> None:
    tone = (0.5 * np.sin(np.arange(8000) * 0.2)).astype(np.float32)
    silence = np.zeros(4000, np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate((silence, tone, silence)), 16_000)
    clip = load_clip(tmp_path / "a.wav", 24_000)
    assert clip.num_samples == 12_000  # 0.5 s at the rate that was asked for


def test_unusable_speech_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClipFault, match="no speech named 'yodel'"):
        find_clips(("yodel",))
    soundfile.write(tmp_path / "still.wav", np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(ClipFault, match="nothing but silence"):
        load_clip(tmp_path / "still.wav", 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ClipFault, match=r"text\.wav"):
        load_clip(tmp_path / "text.wav", 16_000)


@pytest.mark.parametrize("name", sorted(path.stem for path in SLO_DIR.glob("*.toml")))
def test_shipped_objectives_can_be_used(name: str) -> None:
    assert load_slo(name).objective


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "objective: Field required"),
        ('[[objective]]\nfigure = "speed"\nat_most = 1', "no figure 'speed'; there are decided_ms"),
        ('[[objective]]\nfigure = "first_audio_ms"\nat_most = 1', "needs at = p50"),
        ('[[objective]]\nfigure = "error_share"\nat = "p50"\nat_most = 1', "takes no `at`"),
        (FAST.replace("at_most", "atmost"), "unknown key objective.0.atmost"),
    ],
)
def test_what_is_wrong_in_objectives_is_told(text: str, words: str) -> None:
    with pytest.raises(SloFault, match=words):
        read_slo(text, "goals.toml")


def test_kept_broken_and_unproven() -> None:
    slo = read_slo(FAST, "goals.toml")
    fast, slow = [turn()], [turn(first_audio_ms=900.0)]
    assert judge(slo, fast, level()).outcome is Outcome.KEPT
    assert judge(slo, slow, level()).outcome is Outcome.BROKEN
    assert judge(slo, [], level()).outcome is Outcome.UNPROVEN
    assert judge(slo, fast, level(call_errors=["HTTP 503"])).outcome is Outcome.BROKEN
    # Our own lag only adds: what was kept in spite of it is kept.
    assert judge(slo, fast, level(generator=STALLED)).outcome is Outcome.KEPT
    unproven = judge(slo, slow, level(generator=STALLED))
    assert unproven.outcome is Outcome.UNPROVEN
    assert "event loop lagged 90 ms" in unproven.reasons[0]


def test_a_figure_that_never_occurs_breaks_nothing() -> None:
    slo = read_slo(FAST.replace("first_audio_ms", "silence_ms"), "goals.toml")
    assert judge(slo, [turn()], level()).outcome is Outcome.KEPT


def test_the_worst_level_is_the_verdict() -> None:
    slo = read_slo(FAST, "goals.toml")
    kept = judge(slo, [turn()], level())
    broken = judge(slo, [turn(first_audio_ms=900.0)], level())
    unproven = judge(slo, [], level())
    assert overall([kept, unproven, broken]) is Outcome.BROKEN
    assert overall([kept, unproven]) is Outcome.UNPROVEN
    assert overall([kept]) is Outcome.KEPT
    assert overall([]) is Outcome.UNPROVEN


@given(st.integers(1, 100), st.integers(0, 120))
def test_the_search_finds_the_last_number_that_keeps(most: int, capacity: int) -> None:
    kept, broken, num_callers, tried = 0, most + 1, 1, 0
    while num_callers:
        tried += 1
        if num_callers <= capacity:
            kept = num_callers
        else:
            broken = num_callers
        num_callers = next_to_try(kept, broken, most)
    assert kept == min(capacity, most)
    assert tried <= 2 * most.bit_length() + 2


def test_rounds_of_a_level_keep_the_worst_lag() -> None:
    merged = merge([level(generator=QUIET), level(generator=STALLED, call_errors=["cut off"])])
    assert merged.generator.lag_p99_ms == 90 and merged.duration_s == 20
    assert merged.call_errors == ["cut off"]


def test_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    made = run([turn(), turn(errors=["no: “what”"], first_audio_ms=None)], [level()])
    write_run(made, tmp_path / "bench.jsonl")
    assert read_run(tmp_path / "bench.jsonl") == made


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the first line is no run"),
        ("[]\n", "the first line is no run"),
        ("{", "Expecting"),
        ('{"kind": "run", "format": 99}', "format 99"),
        ('{"kind": "run", "format": 1}', "incomplete record"),
    ],
)
def test_a_file_that_is_no_run_is_told(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bench.jsonl").write_text(content)
    with pytest.raises(RecordFault, match=words):
        read_run(tmp_path / "bench.jsonl")
