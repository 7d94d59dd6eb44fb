"""Sizes and ids of one checkpoint, parsed once from its `config.json`.

Field names are the published ones, so that a reader can hold this file beside a `config.json`. Defaults are the
defaults of the published configuration classes; where the 7B checkpoint differs from them, its file says so.
7B, 3B and the embedded checkpoint are nothing but different values here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_origin, get_type_hints

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")


class ConfigError(ValueError):
    """A `config.json` describes something this code cannot run; the message names the field."""


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Audio encoder: log-mel frames to rows of `output_dim`."""

    num_mel_bins: int = 128
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    d_model: int = 1280
    max_source_positions: int = 1500
    n_window: int = 100
    output_dim: int = 3584

    def __post_init__(self) -> None:
        _require_multiple("audio_config.d_model", self.d_model, self.encoder_attention_heads)
        if self.n_window % 2 or self.max_source_positions < self.n_window:
            raise ConfigError(
                f"audio_config.n_window {self.n_window} must be even (pooling pairs may not straddle blocks) "
                f"and at most max_source_positions {self.max_source_positions}"
            )

    @property
    def block_frames(self) -> int:
        """Mel frames one attention block covers (2 s at the published sizes)."""
        return 2 * self.n_window


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Vision encoder: patches of frame pairs to rows of `out_hidden_size`."""

    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        _require_multiple("vision_config.hidden_size", self.hidden_size, 4 * self.num_heads)
        _require_multiple("vision_config.window_size", self.window_size, self.token_pixels)

    @property
    def token_pixels(self) -> int:
        """Side in pixels of the square that becomes one row."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The decoder-only transformer that Thinker and Talker share."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)

    def __post_init__(self) -> None:
        _require_multiple("num_attention_heads", self.num_attention_heads, self.num_key_value_heads)
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ConfigError(
                f"mrope_section {list(self.mrope_section)} must hold three counts that sum to "
                f"head_dim / 2 = {self.head_dim // 2}"
            )

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values one position occupies over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * element_bytes


@dataclass(frozen=True, slots=True)
class ThinkerConfig:
    """Understanding: two encoders, a decoder, and the ids that mark media in its prompt."""

    audio: AudioConfig
    vision: VisionConfig
    decoder: DecoderConfig
    audio_token_index: int = 151646
    image_token_index: int = 151655
    video_token_index: int = 151656
    audio_start_token_id: int = 151647
    audio_end_token_id: int = 151648
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    position_id_per_seconds: int = 25
    seconds_per_chunk: int = 2
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name, rows in (
            ("audio_config.output_dim", self.audio.output_dim),
            ("vision_config.out_hidden_size", self.vision.out_hidden_size),
        ):
            if rows != self.decoder.hidden_size:
                raise ConfigError(
                    f"{name} {rows} must equal text_config.hidden_size {self.decoder.hidden_size}"
                )

    @property
    def placeholder_ids(self) -> frozenset[int]:
        """Ids whose embedding an encoder's row replaces."""
        return frozenset((self.audio_token_index, self.image_token_index, self.video_token_index))

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that frame media in a prompt; text must never produce one."""
        audio = (self.audio_start_token_id, self.audio_end_token_id)
        vision = (self.vision_start_token_id, self.vision_end_token_id)
        return self.placeholder_ids.union(audio, vision)


@dataclass(frozen=True, slots=True)
class TalkerConfig:
    """Speech: Thinker rows (of `embedding_size`) in, codec tokens out."""

    decoder: DecoderConfig
    embedding_size: int = 3584
    tts_text_start_token_id: int = 151860
    tts_text_end_token_id: int = 151861
    tts_text_pad_token_id: int = 151859
    tts_codec_start_token_id: int = 8293
    tts_codec_end_token_id: int = 8294
    tts_codec_pad_token_id: int = 8292
    tts_codec_mask_token_id: int = 8296

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Both end a reply: the codec end token and, in generation, the codec pad token too."""
        return self.tts_codec_pad_token_id, self.tts_codec_end_token_id


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Flow-matching transformer: codec tokens to mel, in blocks of `block_size` mel frames.

    The flow starts from normal noise that spreads `noise_scale`: 1 in the published checkpoints, whose files do not
    name it. A smaller one acts as a temperature does: less variation, clearer speech.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    head_dim: int = 64
    ff_mult: int = 2
    emb_dim: int = 512
    block_size: int = 24
    look_ahead_layers: tuple[int, ...] = (10,)
    look_backward_layers: tuple[int, ...] = (0, 20)
    repeats: int = 2
    num_embeds: int = 8193
    mel_dim: int = 80
    max_position_embeddings: int = 32768
    enc_emb_dim: int = 192
    enc_dim: int = 128
    enc_channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 64
    enc_res2net_scale: int = 2
    enc_se_channels: int = 64
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _require_multiple("dit_config.block_size", self.block_size, self.repeats)
        _require_multiple("dit_config.head_dim", self.head_dim, 2)
        layers = range(self.num_hidden_layers)
        if any(i not in layers for i in (*self.look_ahead_layers, *self.look_backward_layers)):
            raise ConfigError(
                f"dit_config look_ahead_layers / look_backward_layers must lie in 0…{self.num_hidden_layers - 1}"
            )
        if not (math.isfinite(self.noise_scale) and self.noise_scale > 0):
            raise ConfigError(f"dit_config.noise_scale is {self.noise_scale}; it must be positive")

    @property
    def block_codes(self) -> int:
        """Codec tokens per block (12 at the published sizes, 240 ms)."""
        return self.block_size // self.repeats


@dataclass(frozen=True, slots=True)
class VocoderConfig:
    """BigVGAN: mel to waveform."""

    mel_dim: int = 80
    upsample_initial_channel: int = 1536
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    upsample_rates: tuple[int, ...] = (5, 3, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 7, 4, 4, 4, 4)

    def __post_init__(self) -> None:
        _require_multiple(
            "bigvgan_config.upsample_initial_channel",
            self.upsample_initial_channel,
            2 ** len(self.upsample_rates),
        )
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ConfigError(
                "bigvgan_config.upsample_rates and upsample_kernel_sizes must have one entry per stage"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ConfigError(
                "bigvgan_config.resblock_kernel_sizes and resblock_dilation_sizes must have one entry per block"
            )

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples per mel frame (240 at the published sizes)."""
        product = 1
        for rate in self.upsample_rates:
            product *= rate
        return product


@dataclass(frozen=True, slots=True)
class SolverConfig:
    """How the codec's flow is integrated; the defaults are the published ones (36 evaluations).

    `num_points` time points make `num_points - 1` steps of four evaluations (rk4, the 3/8 rule) or
    one (euler). `guidance` 0 leaves out the unconditioned row and halves the work.
    """

    method: Literal["rk4", "euler"] = "rk4"
    num_points: int = 10
    guidance: float = 0.5
    sway: float = -1.0

    def __post_init__(self) -> None:
        if self.method not in ("rk4", "euler"):
            raise ConfigError(
                f"solver_config.method is {self.method!r}; it must be 'rk4' or 'euler'"
            )
        if self.num_points < 2:
            raise ConfigError(
                f"solver_config.num_points is {self.num_points}; it must be at least 2"
            )
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ConfigError(
                f"solver_config.guidance is {self.guidance}; it must be 0 or positive"
            )
        if not -1 <= self.sway <= 1:
            raise ConfigError(f"solver_config.sway is {self.sway}; it must lie in -1…1")

    @property
    def num_evaluations(self) -> int:
        return (self.num_points - 1) * (4 if self.method == "rk4" else 1)

    @property
    def num_rows(self) -> int:
        """Network rows per stream: conditioned, and with guidance also unconditioned."""
        return 2 if self.guidance > 0 else 1


@dataclass(frozen=True, slots=True)
class Token2WavConfig:
    """Codec decoder: DiT, how it is integrated, and vocoder.

    The published files say nothing of the solver; a checkpoint trained for another one brings `solver_config`.
    """

    dit: DitConfig = field(default_factory=DitConfig)
    bigvgan: VocoderConfig = field(default_factory=VocoderConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)

    def __post_init__(self) -> None:
        if self.dit.mel_dim != self.bigvgan.mel_dim:
            raise ConfigError(
                f"dit_config.mel_dim {self.dit.mel_dim} must equal bigvgan_config.mel_dim {self.bigvgan.mel_dim}"
            )

    @property
    def samples_per_code(self) -> int:
        """Waveform samples per codec token (480 at the published sizes)."""
        return self.dit.repeats * self.bigvgan.samples_per_frame


@dataclass(frozen=True, slots=True)
class OmniConfig:
    """A whole checkpoint. `talker` and `token2wav` are None in a text-only one."""

    thinker: ThinkerConfig
    talker: TalkerConfig | None
    token2wav: Token2WavConfig | None

    def __post_init__(self) -> None:
        if self.talker and self.talker.embedding_size != self.thinker.decoder.hidden_size:
            raise ConfigError(
                f"talker_config.embedding_size {self.talker.embedding_size} must equal "
                f"thinker_config.text_config.hidden_size {self.thinker.decoder.hidden_size}"
            )

    @property
    def has_speech(self) -> bool:
        return self.talker is not None

    @classmethod
    def from_file(cls, path: Path) -> OmniConfig:
        """Parse a checkpoint's `config.json`.

        Raises:
            ConfigError: the file is missing, is not JSON, or describes another architecture.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist; a checkpoint folder holds config.json and its safetensors"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from None
        return cls.from_json(tree)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> OmniConfig:
        """Build from the parsed tree of a published `config.json`.

        Raises:
            ConfigError: names the field that is wrong or the feature that is not supported.
        """
        if tree.get("model_type") != "qwen2_5_omni":
            raise ConfigError(
                f"model_type is {tree.get('model_type')!r}; this server runs 'qwen2_5_omni' checkpoints"
            )
        if "quantization_config" in tree:
            method = tree["quantization_config"].get("quant_method", "unknown")
            raise ConfigError(
                f"the checkpoint is quantised ({method}), which is not supported yet; "
                "use the bf16 checkpoint, and `weights=int8` to quantise it while loading"
            )
        has_speech = bool(tree.get("enable_audio_output", True))
        return cls(
            thinker=_thinker(_section(tree, "thinker_config")),
            talker=_talker(_section(tree, "talker_config")) if has_speech else None,
            token2wav=_token2wav(tree.get("token2wav_config") or {}) if has_speech else None,
        )


def _thinker(tree: Mapping[str, Any]) -> ThinkerConfig:
    return _pick(
        ThinkerConfig,
        tree,
        "thinker_config",
        audio=_pick(AudioConfig, _section(tree, "audio_config"), "audio_config"),
        vision=_pick(VisionConfig, _section(tree, "vision_config"), "vision_config"),
        decoder=_decoder(_section(tree, "text_config"), "text_config"),
        tie_word_embeddings=bool(tree.get("tie_word_embeddings", False)),
    )


def _talker(tree: Mapping[str, Any]) -> TalkerConfig:
    return _pick(TalkerConfig, tree, "talker_config", decoder=_decoder(tree, "talker_config"))


def _token2wav(tree: Mapping[str, Any]) -> Token2WavConfig:
    return Token2WavConfig(
        dit=_pick(DitConfig, tree.get("dit_config") or {}, "dit_config"),
        bigvgan=_pick(VocoderConfig, tree.get("bigvgan_config") or {}, "bigvgan_config"),
        solver=_pick(SolverConfig, tree.get("solver_config") or {}, "solver_config"),
    )


def _decoder(tree: Mapping[str, Any], path: str) -> DecoderConfig:
    if tree.get("use_sliding_window"):
        raise ConfigError(
            f"{path}.use_sliding_window is true; sliding-window attention is not supported"
        )
    for name in ("hidden_size", "num_attention_heads"):
        _integer(tree.get(name), f"{path}.{name}")
    head_dim = tree.get("head_dim") or tree["hidden_size"] // tree["num_attention_heads"]
    # Published files say rope_scaling + rope_theta; transformers 5 writes one rope_parameters.
    rope = tree.get("rope_parameters") or {
        **(tree.get("rope_scaling") or {}),
        "rope_theta": tree.get("rope_theta", 1e6),
    }
    return _pick(
        DecoderConfig,
        tree,
        path,
        head_dim=_integer(head_dim, f"{path}.head_dim"),
        rope_theta=float(rope.get("rope_theta", 1e6)),
        mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
    )


def _pick(cls: type[T], tree: Mapping[str, Any], path: str, **known: Any) -> T:
    """Fill a config dataclass from `tree` by field name; unknown keys of the file are ignored."""
    types = get_type_hints(cls)
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]  # cls is always one of the dataclasses above
        if f.name not in known and f.name in tree:
            known[f.name] = _checked(tree[f.name], types[f.name], f"{path}.{f.name}")
    try:
        return cls(**known)
    except TypeError as error:  # a field without default that the file lacks
        raise ConfigError(f"{path} is incomplete: {error}") from None


def _checked(value: Any, kind: Any, path: str) -> Any:
    if kind is int:
        return _integer(value, path)
    if kind is float:
        return float(value)
    if kind is bool:
        return bool(value)
    if get_origin(kind) is Literal:
        return value  # the dataclass knows which
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} must be a list, not {value!r}")
    return tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)


def _integer(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{path} must be a non-negative integer, not {value!r}")
    return value


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = tree.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} is missing from config.json")
    return section


def _require_multiple(name: str, value: int, of: int) -> None:
    if of <= 0 or value % of:
        raise ConfigError(f"{name} is {value}; it must be a multiple of {of}")
