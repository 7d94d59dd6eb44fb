"""What seeing is taught is what the running model computes: the same rows at the same positions."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model.chat import Chat
from model.image import image_patches, pair_patches
from model.omni import load
from model.prefill import CachedSequence
from model.reply import ReplyOptions
from recipes.tiny import tree
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.scenes import changing, scene
from recipes.tiny.showing import TOGETHER, Showing, Talk, branch_mask
from tests.e2e.embedded import CHECKPOINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from model.image import Patches
    from model.omni import Omni
    from recipes.tiny.scenes import Scene

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="make test assembles omni-tiny first"
)


@pytest.fixture(scope="module")
def source() -> FrozenThinker:
    return FrozenThinker.load(CHECKPOINT, "cpu", torch.float32)


@pytest.fixture(scope="module")
def omni() -> Omni:
    return load(CHECKPOINT, speech=False, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_a_picture_and_its_question_lie_where_the_running_model_has_them(
    source: FrozenThinker, omni: Omni
) -> None:
    seen = scene(3, 5, moving=0.0)
    patches = [image_patches(seen.frames[0], omni.images)]
    talk = Showing(source).typed(
        seen.questions[:1], patches, _rows(source, patches), tree.SYSTEM_PROMPT
    )
    chat, computed = _chat(omni)
    chat.image(seen.frames[0])
    chat.text(seen.questions[0].question)
    _assert_same(talk, _answered(chat, computed))


def test_a_video_with_sound_lies_where_the_running_model_has_it(
    source: FrozenThinker, omni: Omni
) -> None:
    seen = changing(3, 5, small=1.0)
    wave = torch.from_numpy(np.random.default_rng(1).standard_normal(45_000).astype(np.float32))
    patches = _pairs(seen, omni)
    [asked] = seen.questions
    talk = Showing(source).watched(
        asked.question,
        asked.reply,
        patches,
        _rows(source, patches),
        0.01 * wave,
        tree.SYSTEM_PROMPT,
    )
    chat, computed = _chat(omni)
    chat.open_video(with_sound=True)
    for frame in seen.frames:
        chat.frame(frame)
    chat.sound(0.01 * wave)
    chat.close_video()
    chat.text(seen.questions[0].question)
    _assert_same(talk, _answered(chat, computed))


def test_questions_side_by_side_do_not_see_one_another(source: FrozenThinker) -> None:
    seen, showing = scene(3, 8, moving=0.0, small=1.0), Showing(source)
    patches = [image_patches(seen.frames[0], source.thinker.visual.settings)]
    rows = _rows(source, patches)
    both = showing.typed(seen.questions[:2], patches, rows)
    alone = showing.typed(seen.questions[1:2], patches, rows)
    kept = (both.branch == TOGETHER) | (both.branch == 2)
    torch.testing.assert_close(
        _hidden(source, both)[kept], _hidden(source, alone), rtol=1e-3, atol=1e-3
    )


def _hidden(source: FrozenThinker, talk: Talk) -> Tensor:
    mask = branch_mask(talk.branch[None])
    return source.thinker.model.whole(talk.rows[None], talk.positions[:, None], mask)[0]


def _rows(source: FrozenThinker, patches: list[Patches]) -> list[Tensor]:
    return source.thinker.visual.encode_pairs(patches)


def _pairs(seen: Scene, omni: Omni) -> list[Patches]:
    frames = seen.frames
    return [
        pair_patches(a, b, settings=omni.images)
        for a, b in zip(frames[::2], frames[1::2], strict=True)
    ]


def _chat(omni: Omni) -> tuple[Chat, list[tuple[Tensor, Tensor]]]:
    """A chat, and everything its Thinker will have computed: rows and positions."""
    computed: list[tuple[Tensor, Tensor]] = []
    extend = CachedSequence.extend

    def kept(self: CachedSequence, rows: Tensor, positions: Tensor) -> Tensor:
        computed.append((rows, positions))
        return extend(self, rows, positions)

    with patch.object(CachedSequence, "extend", kept):
        chat = Chat(omni, capacity=1024)
    chat.prompt.thinker.extend = kept.__get__(chat.prompt.thinker)  # type: ignore[method-assign]
    return chat, computed


def _answered(chat: Chat, computed: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    next(iter(chat.reply(ReplyOptions(speech=False, max_text_tokens=1))))
    return computed


def _assert_same(talk: Talk, computed: list[tuple[Tensor, Tensor]]) -> None:
    """All rows up to the reply; the chat may have computed more."""
    length = int((talk.said >= 0).nonzero()[0])
    rows, positions = torch.cat([x for x, _ in computed]), torch.cat([p for _, p in computed], 1)
    torch.testing.assert_close(positions[:, :length], talk.positions[:, :length])
    torch.testing.assert_close(rows[:length], talk.rows[:length], rtol=1e-3, atol=1e-3)
