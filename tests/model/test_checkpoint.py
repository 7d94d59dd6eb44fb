"""Loading: the published layout as it is, and one error that names what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.chat import Chat
from model.checkpoint import CheckpointError, LoadProgress, locate
from model.config import ConfigError
from model.omni import LM_HEAD, load


@pytest.fixture
def folder(checkpoint_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint_dir, tmp_path / "checkpoint"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_config(folder: Path, section: tuple[str, ...], **changes: object) -> None:
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    at = tree
    for name in section:
        at = at[name]
    at.update(changes)
    path.write_text(json.dumps(tree))


def edit_tensors(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace or remove one tensor in whichever shard holds it, or add it to the first."""
    for shard in shards(folder):
        tensors = load_file(shard)
        if name in tensors or (tensor is not None and shard == shards(folder)[-1]):
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor
            save_file(tensors, shard, {"format": "pt"})
            return


def test_every_weight_arrives_under_its_published_name(checkpoint_dir, tensors) -> None:  # type: ignore[no-untyped-def]
    steps: list[LoadProgress] = []
    omni = load(checkpoint_dir, dtype=torch.float16, progress=steps.append)
    loaded = omni.model.state_dict()  # in float16 nothing is prepacked, so the names are all there
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.to(loaded[name].dtype)), name
    assert len(shards(checkpoint_dir)) > 1
    assert [s.done_bytes for s in steps] == sorted(s.done_bytes for s in steps)
    assert steps[-1].done_bytes == steps[-1].total_bytes > 0


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ((), {"model_type": "qwen2_vl"}, "model_type"),
        ((), {"quantization_config": {"quant_method": "awq"}}, r"awq.*not supported yet"),
        (("thinker_config", "text_config"), {"hidden_size": "wide"}, "hidden_size"),
        (("thinker_config", "audio_config"), {"output_dim": 31}, "output_dim 31"),
        (("thinker_config", "vision_config"), {"num_heads": 3}, "vision_config"),
        (("thinker_config", "text_config"), {"use_sliding_window": True}, "sliding"),
        (("talker_config",), {"embedding_size": 33}, "embedding_size 33"),
        (("talker_config", "rope_parameters"), {"mrope_section": [2, 2]}, "mrope_section"),
        (("token2wav_config", "dit_config"), {"look_ahead_layers": [99]}, "look_ahead"),
        (("token2wav_config", "bigvgan_config"), {"mel_dim": 9}, "mel_dim"),
    ],
)
def test_a_config_of_something_else_names_the_field(  # type: ignore[no-untyped-def]
    folder: Path, section, changes, message: str
) -> None:
    edit_config(folder, section, **changes)
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_broken_config_names_the_file(folder: Path, content: str | None) -> None:
    (folder / "config.json").unlink()
    if content:
        (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, "thinker.audio_tower.conv2.bias", None)
    with pytest.raises(CheckpointError, match=r"1 tensor.*missing: thinker.audio_tower.conv2.bias"):
        load(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, "thinker.nonsense", torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"not part of this architecture: thinker.nonsense"):
        load(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    edit_tensors(folder, "talker.codec_head.weight", torch.zeros(64, 23))
    with pytest.raises(CheckpointError, match=r"codec_head.weight is \[64, 23\], not \[64, 24\]"):
        load(folder)


def test_many_faults_are_counted_not_listed(folder: Path) -> None:
    edit_config(folder, ("thinker_config", "text_config"), num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"24 tensor\(s\) missing: .* and 21 more"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_truncated_shard_is_named(folder: Path, keep: int) -> None:
    shard = shards(folder)[-1]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is truncated"):
        load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard = shards(folder)[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} is missing"):
        load(folder)


def test_a_folder_without_weights_says_what_it_looked_for(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: neither model\.safetensors"):
        load(folder)


def test_a_broken_index_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        load(folder)


def test_one_file_instead_of_shards_and_stored_constants_are_fine(folder: Path) -> None:
    tensors = {k: v for shard in shards(folder) for k, v in load_file(shard).items()}
    for path in folder.glob("model*"):
        path.unlink()
    tensors["thinker.model.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).config.has_speech


@pytest.mark.parametrize("weights", ["plain", "int8"])
def test_without_lm_head_the_embedding_is_used(folder: Path, weights) -> None:  # type: ignore[no-untyped-def]
    edit_tensors(folder, LM_HEAD, None)
    thinker = load(folder, dtype=torch.float32, weights=weights).model.thinker
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    expected = hidden @ thinker.model.embed_tokens.weight.T
    tolerance = 1e-5 if weights == "plain" else 0.02 * float(expected.norm())
    torch.testing.assert_close(thinker.logits(hidden), expected, atol=tolerance, rtol=1e-5)


def test_a_text_only_load_leaves_speech_out(folder: Path) -> None:
    omni = load(folder, speech=False)
    assert omni.model.talker is None
    assert omni.model.token2wav is None
    assert omni.voices == {}


def test_a_checkpoint_may_bring_its_own_system_prompt(folder: Path) -> None:
    assert load(folder).system_prompt.startswith("You are Qwen")
    (folder / "system_prompt.txt").write_text("Say little.\n")
    omni = load(folder, dtype=torch.float32)
    own, same, other = Chat(omni), Chat(omni, "Say little."), Chat(omni, "")
    assert torch.equal(own.prompt.last_hidden, same.prompt.last_hidden)
    assert own.prompt.thinker.length > other.prompt.thinker.length == 0


def test_an_unknown_voice_lists_the_known_ones(checkpoint_dir: Path) -> None:
    omni = load(checkpoint_dir)
    assert omni.voice().name == "Chelsie"
    with pytest.raises(CheckpointError, match=r"'Marvin'.*'Chelsie', 'Ethan'"):
        omni.voice("Marvin")


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./relative", "justaname", "too/many/slashes"]
)
def test_what_is_neither_folder_nor_hub_name_says_so(source: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        locate(source)


def test_a_hub_name_is_looked_up_in_the_local_cache(  # type: ignore[no-untyped-def]
    checkpoint_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """The hub's own cache layout, filled by hand; no network is touched."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen2.5-Omni-Tiny"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(checkpoint_dir, repository / "snapshots" / commit)
    found = locate("Qwen/Qwen2.5-Omni-Tiny")
    assert load(found).config.has_speech
    with pytest.raises(CheckpointError, match=r"Qwen/Other.*could not be downloaded"):
        locate("Qwen/Other")
