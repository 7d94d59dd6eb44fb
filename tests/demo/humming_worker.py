"""The worker without a model, with a voice that can be heard at the speakers; its own is too soft and too high."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import stand_in_worker
from streaming.packets import AudioDelta

PERIOD = 80  # 300 Hz
HUM = (6000 * np.sin(2 * np.pi * np.arange(PERIOD) / PERIOD)).astype("<i2")


class Humming(stand_in_worker.StandIn):
    def _send(self, packet: object) -> None:
        if isinstance(packet, AudioDelta):
            n = packet.start_sample + np.arange(len(packet.pcm) // 2)
            packet = msgspec.structs.replace(packet, pcm=HUM[n % PERIOD].tobytes())
        super()._send(packet)


if __name__ == "__main__":
    with patch.object(stand_in_worker, "StandIn", Humming):
        sys.exit(stand_in_worker.main())
