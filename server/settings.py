"""Settings: what a session is set to. A frozen value: an update gives a new one or, on an error, nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from server.dialect import Dialect
from streaming.media import INPUT_SAMPLE_RATE, OUTPUT_SAMPLE_RATE
from streaming.pcm import Encoding, SoundFormat
from streaming.vad import VadSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

Delivery = Literal["base64", "binary"]
Eagerness = Literal["low", "medium", "high", "auto"]
VadType = Literal["server_vad", "semantic_vad"]
NoiseReduction = Literal["near_field", "far_field"]
ToolChoiceName = Literal["auto", "none", "required"]
EAGERNESS: tuple[Eagerness, ...] = ("low", "medium", "high", "auto")
VAD_TYPES: tuple[VadType, ...] = ("server_vad", "semantic_vad")
NOISE_REDUCTION: tuple[NoiseReduction, ...] = ("near_field", "far_field")
TOOL_CHOICES: tuple[ToolChoiceName, ...] = ("auto", "none", "required")

MALE_NAMES = (
    *("alloy", "ash", "ballad", "echo", "fable", "onyx", "verse", "cedar", "ethan"),
    *("aiden", "dylan", "eric", "marcus", "peter", "rocky", "roy", "ryan"),
)
VOICE_BY_NAME: Mapping[str, str] = MappingProxyType(dict.fromkeys(MALE_NAMES, "Ethan"))
"""Names of other services' voices, in lower case; what is not here is the default's."""
SEMANTIC_SILENCE_MS: Mapping[Eagerness, int] = MappingProxyType(
    {"high": 400, "auto": 700, "medium": 700, "low": 1500}
)
"""How long semantic turn detection waits in silence."""


@dataclass(frozen=True, slots=True)
class Voices:
    """The voices of the loaded model, and which of them stands for a name it does not have."""

    names: tuple[str, ...]
    """As the model calls them."""
    voice_by_name: Mapping[str, str] = field(default_factory=lambda: VOICE_BY_NAME)
    """By lower-case name."""
    otherwise: str = "Chelsie"

    def resolve(self, asked: str) -> str:
        """Return the voice that answers to a name; case does not matter."""
        wanted = self.voice_by_name.get(asked.lower(), self.otherwise)
        by_lower = {name.lower(): name for name in reversed(self.names)}
        return by_lower.get(asked.lower()) or by_lower.get(wanted.lower()) or self.default

    @property
    def default(self) -> str:
        """The model's first voice. Sessions show one even if the model cannot speak."""
        return self.names[0] if self.names else self.otherwise


@dataclass(frozen=True, slots=True)
class NamedFormat:
    """A sound format and the name that flat session objects show for it."""

    sound: SoundFormat
    name: str
    """`pcm16`, `pcm`, `pcm24`, `g711_ulaw` or `g711_alaw`."""


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """How the server notices turns."""

    type: VadType = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    """For `semantic_vad` as its eagerness says."""
    idle_timeout_ms: int | None = None
    eagerness: Eagerness = "auto"
    create_response: bool = True
    interrupt_response: bool = True

    def to_vad(self) -> VadSettings:
        """Return what the speech detector is set to."""
        return VadSettings(
            threshold=self.threshold,
            prefix_padding_ms=self.prefix_padding_ms,
            silence_duration_ms=self.silence_duration_ms,
        )


@dataclass(frozen=True, slots=True)
class Transcription:
    """What the user says is also written down."""

    model: str | None = None
    """As the client named it; ours whatever it is."""
    language: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    """JSON schema. Nobody changes it."""


@dataclass(frozen=True, slots=True)
class ForcedTool:
    """A `tool_choice` that names the function."""

    name: str


ToolChoice = ToolChoiceName | ForcedTool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn; None is the model's own."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """What is done with camera frames."""

    fps: float = 2.0
    max_frames: int = 64
    lookback_ms: int = 2000
    max_pixels: int = 313_600
    audio_track: Literal["append", "ignore"] = "append"


@dataclass(frozen=True, slots=True)
class Settings:
    """Effective settings of a session, or of one response."""

    input_format: NamedFormat
    output_format: NamedFormat
    voice: str
    instructions: str | None = None
    """None: the prompt the model was trained with. Empty: none."""
    speaks: bool = True
    speed: float = 1.0
    turn_detection: TurnDetection | None = field(default_factory=TurnDetection)
    transcription: Transcription | None = None
    noise_reduction: NoiseReduction | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    max_output_tokens: int | None = None
    """None: "inf"."""
    sampling: Sampling = Sampling()
    video: VideoSettings | None = None
    """None until a client sets one: then it is shown. See `frames`."""
    delivery: Delivery = "base64"

    @classmethod
    def default(cls, dialect: Dialect, voices: Voices, instructions: str | None = None) -> Settings:
        """Return what a session begins with."""
        return cls(
            input_format=NamedFormat(SoundFormat(Encoding.PCM16, input_rate(dialect)), "pcm16"),
            output_format=NamedFormat(SoundFormat(Encoding.PCM16, OUTPUT_SAMPLE_RATE), "pcm16"),
            voice=voices.default,
            instructions=instructions,
            turn_detection=TurnDetection(silence_duration_ms=default_silence_ms(dialect)),
            transcription=Transcription() if dialect is Dialect.DASHSCOPE else None,
        )

    @property
    def frames(self) -> VideoSettings:
        """What is done with camera frames, set or not."""
        return self.video or VideoSettings()


def input_rate(dialect: Dialect) -> int:
    """Return the rate of sound from a client that names none."""
    return INPUT_SAMPLE_RATE if dialect is Dialect.DASHSCOPE else OUTPUT_SAMPLE_RATE


def default_silence_ms(dialect: Dialect) -> int:
    """Return how long server VAD waits in silence unless it is told."""
    return 800 if dialect is Dialect.DASHSCOPE else 500
