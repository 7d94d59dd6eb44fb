"""Shared fixtures; one torch thread, because two stall tiny kernels on a busy machine."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.config import OmniConfig

TESTS = Path(__file__).parent

# Real browsers, clients and servers in real time: a machine that stands still for half a second fails any of them.
# What is broken fails three times in a row, a stumble does not; the summary counts every second try.
REAL_TIME, MORE_TRIES = ("demo", "e2e", "clients"), 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in REAL_TIME:
            item.add_marker(pytest.mark.flaky(reruns=MORE_TRIES, reruns_delay=3))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it doubts ids that are right


@pytest.fixture(scope="session")
def reference():  # type: ignore[no-untyped-def]  # transformers has no usable types
    from tests.model.reference import build

    return build()


@pytest.fixture(scope="session")
def checkpoint_dir(reference, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """The tiny reference in the published folder layout (two shards and `spk_dict.pt`)."""
    from tests.model.reference import VOICE_BOS, voice
    from tests.model.tiny_tokenizer import byte_tokenizer

    folder = tmp_path_factory.mktemp("tiny-omni")
    reference.save_pretrained(folder, max_shard_size="2MB")
    other = voice(8) | {"bos_token": VOICE_BOS - 1}
    torch.save({"Chelsie": voice(7), "Ethan": other}, folder / "spk_dict.pt")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tensors(checkpoint_dir: Path) -> dict[str, torch.Tensor]:
    """Every weight of the tiny reference under its published name."""
    return {
        k: v
        for shard in sorted(checkpoint_dir.glob("*.safetensors"))
        for k, v in load_file(shard).items()
    }


@pytest.fixture(scope="session")
def config(checkpoint_dir: Path) -> OmniConfig:
    return OmniConfig.from_file(checkpoint_dir / "config.json")


@pytest.fixture(scope="session")
def part(tensors: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]
    """`part(prefix)` gives one component's weights with the prefix cut off, ready for `load_state_dict`."""
    return lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
