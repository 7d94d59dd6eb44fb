"""Programs in other languages or environments: started all at once, as each mostly waits, and read in turn."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.clients.material import KEY, turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE = Path(__file__).parent
LIMIT_S = 90
RATE = 24_000

Line = dict[str, Any]


class Report:
    """What a program told, line by line."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def of(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]

    def kinds(self) -> list[str]:
        return [line["kind"] for line in self.lines]


class Programs:
    """One run of a program for each of its scenes; close it in the end."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._runs = {
            scene: subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for scene, command in commands.items()
        }

    def report(self, scene: str) -> Report:
        """Wait for a scene's end. It must have ended well, and without an error told."""
        run = self._runs[scene]
        out, err = run.communicate(timeout=LIMIT_S)
        assert run.returncode == 0, f"{err[-3000:]}\n{out[-3000:]}"
        report = Report([json.loads(line) for line in out.splitlines()])
        assert not report.of("error"), report.of("error")
        return report

    def close(self) -> None:
        for run in self._runs.values():
            if run.poll() is None:
                run.kill()
            run.communicate()


def framework(name: str) -> Path:
    """The Python of the environment that `make clients` builds for an agent framework."""
    return HERE.parents[1] / "build" / "clients" / name / "bin" / "python"


@contextlib.contextmanager
def agents(name: str, scenes: Sequence[str], url: str, folder: Path) -> Iterator[Programs]:
    """Run the `program.py` of a framework for each scene, with a spoken turn that it may stream from `folder`."""
    sound = folder / "turn.pcm"
    sound.write_bytes(turn(RATE))
    program = [str(framework(name)), "program.py"]
    commands = {scene: [*program, scene, url, KEY, str(sound)] for scene in scenes}
    with contextlib.closing(Programs(commands, folder=HERE / name)) as started:
        yield started
