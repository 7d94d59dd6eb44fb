"""Intake: what the model is to know of an item that a client made, checked as far as a header tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.context import Awaited, Picture, Words
from server.items import InputAudio, InputImage, InputText, UserMessage
from server.media.jobs import Stills
from server.media.sniff import image_size
from streaming.chunker import Chunker
from streaming.errors import ClientError
from streaming.media import INPUT_SAMPLE_RATE, SAMPLE_BYTES, input_ms
from streaming.pcm import SoundFormat, SoundReader, silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.context import Piece
    from server.items import Item
    from server.media.jobs import MediaJob

SHORTEST_SAMPLES = INPUT_SAMPLE_RATE // 10
"""Shorter sound is followed by silence: the model hears nothing in less."""


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """The session's settings that decide how media are read."""

    input_format: SoundFormat
    max_pixels: int
    max_turn_ms: int


@dataclass(slots=True)
class Intake:
    """Takes items in; what a decoder must look at first becomes a job."""

    new_job_id: Callable[[], str]
    jobs: list[MediaJob] = field(default_factory=list)
    """For the decoders; drained by the session."""

    def read(self, item: Item, rules: IntakeRules, where: str = "item") -> list[Piece]:
        """Return the pieces of a user's message; of any other item, nothing.

        Raises:
            ClientError: a part cannot be used; nothing was taken in.
        """
        if not isinstance(item, UserMessage):
            return []
        pieces: list[Piece] = []
        for index, part in enumerate(item.content):
            at = f"{where}.content.{index}"
            match part:
                case InputText():
                    pieces += [Words("user", part.text)] if part.text else []
                case InputAudio():
                    pieces += _sound(part, rules, at)
                case InputImage():
                    pieces += self.read_image(part.image, rules.max_pixels, f"{at}.image_url")
                    part.image = None
        return pieces

    def read_image(self, image: bytes | None, max_pixels: int, where: str) -> list[Piece]:
        """Return a picture as the worker takes it, or a promise of it.

        Raises:
            ClientError: it is no picture, or too large a one.
        """
        if not image:
            return []
        if image_size(image, where).can_go_as_it_is(max_pixels):
            return [Picture(image)]
        job = Stills(self.new_job_id(), image, max_pixels)
        self.jobs.append(job)
        return [Awaited(job.job_id)]


def _sound(part: InputAudio, rules: IntakeRules, where: str) -> list[Piece]:
    if part.encoded is None:
        return []
    reader = SoundReader(rules.input_format)
    pcm = reader.push(part.encoded) + reader.flush()
    num_samples = len(pcm) // SAMPLE_BYTES
    if input_ms(num_samples) > rules.max_turn_ms:
        raise ClientError(
            "invalid_value",
            f"{input_ms(num_samples)} ms of sound; the limit is {rules.max_turn_ms}",
            param=f"{where}.audio",
        )
    part.encoded = None
    if not num_samples:
        return []
    pcm += silence(max(0, SHORTEST_SAMPLES - num_samples))
    chunker = Chunker()
    chunker.open(0)
    return [*chunker.push(pcm), *chunker.close()]
