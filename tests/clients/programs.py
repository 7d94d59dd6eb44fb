"""Programs in other languages or environments: started all at once, as each mostly waits, and read in turn."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LIMIT_S = 90

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
