"""Which mel frames a vocoder window covers, and how much of it each layer computes; integers only.

    mel    0 ........ start ......... stop ........ arrived
                       |<--- hop --->|
           |<- margin->|             |<- margin->|
           |<------------- window -------------->|

A hop is computed once its right margin has arrived. Hops lie at fixed frames of the clip, never at
whatever happened to have arrived, so that splitting the input differently computes the very same
windows. At the true start and end of a clip there is no margin: there the padding of the layers is
what the whole clip sees as well.

The margin is needed by the first layers only. A stage that runs 30 samples to the frame sees fewer
frames to each side than one that runs 5, so each layer computes the span that later ones still
look at, and not the whole window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model.codec import snake

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.config import VocoderConfig

END_KERNEL = 7  # of the convolutions before the first and after the last stage


class Span(NamedTuple):
    """Positions start … stop - 1 of a signal."""

    start: int
    stop: int

    def grown(self, reach: int, length: int) -> Span:
        """With `reach` more on each side, as far as a signal of `length` goes."""
        return Span(max(0, self.start - reach), min(length, self.stop + reach))

    def within(self, outer: Span) -> slice:
        """Where this span lies in a tensor that holds `outer`."""
        return slice(self.start - outer.start, self.stop - outer.start)


class Window(NamedTuple):
    """The frames `span` are computed, the samples of the frames `kept` are given out."""

    span: Span
    kept: Span


class Hops(NamedTuple):
    """Where the hops of a stream lie: the first is `first` frames long, the others `hop`."""

    margin: int
    first: int
    hop: int

    def final_frames(self, arrived: int) -> int:
        """Frames whose samples are final once `arrived` frames are known and more may come."""
        beyond = arrived - self.margin - self.first
        return 0 if beyond < 0 else self.first + beyond // self.hop * self.hop

    def held_from(self, arrived: int) -> int:
        """First frame that later windows still need."""
        return max(0, self.final_frames(arrived) - self.margin)

    def max_held(self) -> int:
        """Most frames that are held between two steps."""
        return 2 * self.margin + max(self.first, self.hop) - 1

    def windows(self, before: int, arrived: int) -> Iterator[Window]:
        """Windows that become computable when the known frames grow from `before` to `arrived`."""
        start, final = self.final_frames(before), self.final_frames(arrived)
        while start < final:
            stop = start + (self.hop if start else self.first)
            span = Span(max(0, start - self.margin), stop + self.margin)
            yield Window(span, Span(start, stop))
            start = stop

    def last_window(self, arrived: int) -> Window:
        """The window of all that is not final when the clip ends after `arrived` frames."""
        kept = Span(self.final_frames(arrived), arrived)
        return Window(Span(self.held_from(arrived), arrived), kept)


class StageSpans(NamedTuple):
    """What one stage reads of its input, and at its own rate what that gives and what is kept."""

    read: Span
    held: Span
    kept: Span
    length: int  # of the whole window at the rate of the stage


def stage_spans(config: VocoderConfig, num_frames: int, kept: Span) -> list[StageSpans]:
    """Give for every stage what it must compute so that the samples of the frames `kept` come out.

    Positions count from the start of a window of `num_frames`, at the input and output rate of the
    stage. Nothing outside these spans has any influence on a kept sample.
    """
    rate = config.samples_per_frame
    needed = Span(kept.start * rate, kept.stop * rate)
    needed = needed.grown(END_KERNEL // 2 + snake.REACH, num_frames * rate)
    blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    reach = max(layer_reaches(kernel, dilations)[0] for kernel, dilations in blocks)
    spans: list[StageSpans] = []
    stages = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
    for up_rate, kernel in reversed(list(stages)):
        length = num_frames * rate
        rate //= up_rate
        read = up_input(needed.grown(reach, length), up_rate, kernel, num_frames * rate)
        held = Span(read.start * up_rate, read.stop * up_rate)
        spans.append(StageSpans(read, held, needed, length))
        needed = read
    return spans[::-1]


def layer_reaches(kernel: int, dilations: Sequence[int]) -> list[int]:
    """Give per layer of a residual block how far its input reaches into the block's output.

    That is: the positions on either side of an output position that it depends on.
    """
    layers = [(kernel - 1) // 2 * (dilation + 1) + 2 * snake.REACH for dilation in dilations]
    return [sum(layers[i:]) for i in range(len(layers))]


def up_input(output: Span, rate: int, kernel: int, length: int) -> Span:
    """Give the input positions, of `length`, that a transposed convolution reads for `output`."""
    padding = (kernel - rate) // 2
    # Output t sums the inputs j with 0 <= t + padding - rate · j < kernel.
    first = -(-(output.start + padding - kernel + 1) // rate)
    last = (output.stop - 1 + padding) // rate
    return Span(max(0, first), min(length, last + 1))
