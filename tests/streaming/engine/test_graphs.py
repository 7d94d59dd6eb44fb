"""Padded, repeated decode steps give what eager ones give. Here a graph is a call on the same tensors again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model.attention import _attend_cuda_torch
from model.chat import Chat
from streaming.engine.graphs import DecodeGraphs, power_of_two
from streaming.engine.sequence import Role
from tests.streaming.engine.driving import SYSTEM, Driver, Said, chat_answer, speech

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from model.omni import Omni


class Repeating:
    """Counts what is captured; replays by calling again, which works where every tensor stays in its place."""

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.num_captured += 1
        output = call().clone()

        def replay() -> None:
            output.copy_(call())

        return replay, output


@pytest.fixture
def gathering(omni: Omni) -> Iterator[None]:
    """Attention that takes every length from tensors, as a graph needs it."""
    decoders = [omni.model.thinker.model, omni.model.talker.model]  # type: ignore[union-attr]
    former = [d.attend for d in decoders]
    for decoder in decoders:
        decoder.attend = _attend_cuda_torch
    yield
    for decoder, attend in zip(decoders, former, strict=True):
        decoder.attend = attend


@pytest.mark.usefixtures("gathering")
def test_replayed_batches_of_every_size_say_what_chat_says(omni, new_driver) -> None:  # type: ignore[no-untyped-def]
    said = [Said(sound=speech(0.5 + i, i)) for i in range(4)]
    expected = [chat_answer(Chat(omni, SYSTEM), s) for s in said]
    capture = Repeating()
    driver: Driver = new_driver(capture)
    list(driver.engine.runner.warm_up())
    warm = capture.num_captured
    assert warm == 2 * 3  # Thinker and Talker at 1, 2, 4
    for i, each in enumerate(said):  # they come and end one by one: batches of 1 to 4
        driver.open(f"s{i}")
        driver.say(f"s{i}", 0, each)
        for _ in range(3):
            driver.step()
    driver.run()
    for i, answer in enumerate(expected):
        got = driver.answer(f"s{i}", 0)
        assert (got.tokens, got.codes) == (answer.tokens, answer.codes)
    driver.engine.check_integrity()


@pytest.mark.usefixtures("gathering")
def test_a_longer_context_takes_a_wider_table_once(new_driver) -> None:  # type: ignore[no-untyped-def]
    capture = Repeating()
    driver: Driver = new_driver(capture, num_lanes=1)
    list(driver.engine.runner.warm_up())
    before = capture.num_captured
    driver.open("a")
    for turn_id in range(3):
        driver.say("a", turn_id, Said(sound=speech(5)))
        driver.run()
    assert before < capture.num_captured <= before + 2 * 3  # 16, 32, 64 pages, for either decoder


def test_buckets_are_powers_of_two_up_to_the_lanes_there_are() -> None:
    graphs = DecodeGraphs(
        Repeating(), max_batch=12, max_pages=100, scratch_page=7, scratch_row=9, widens_table=False
    )
    assert [p.num_sequences for p in graphs.buckets()] == [12, 8, 4, 2, 1]
    widths = {n: graphs.padding(1, n).table_width for n in (1, 8, 9, 100)}  # type: ignore[union-attr]
    assert widths == {1: 8, 8: 8, 9: 16, 100: 100}
    wide = DecodeGraphs(
        Repeating(), max_batch=12, max_pages=100, scratch_page=7, scratch_row=9, widens_table=True
    )
    assert wide.padding(3, 1).table_width == 100  # type: ignore[union-attr]
    eager = DecodeGraphs(
        None, max_batch=1, max_pages=1, scratch_page=0, scratch_row=0, widens_table=False
    )
    assert eager.padding(1, 1) is None
    assert eager.run(Role.TALKER, "inputs", lambda inputs: inputs) == "inputs"  # type: ignore[arg-type,return-value]
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]
