"""`parley check`: whether this machine, these weights and a short conversation work, one line for each."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from server.talk import Question, talk
from streaming.errors import ParleyError
from streaming.media import INPUT_SAMPLE_RATE, SAMPLE_BYTES
from streaming.packets import ReplyOptions, SessionSettings
from streaming.silero import SpeechModel, model_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "onnxruntime", "av")
WEIGHT_FILES = ("*.safetensors",)
CONVERSATION = "Say hello."


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    is_good: bool
    detail: str


async def check(model: str, worker_arguments: Sequence[str]) -> list[Finding]:
    """Look at everything; what depends on something missing is not tried."""
    findings = [check_machine(), *map(check_package, PACKAGES), check_speech_model()]
    findings.append(check_weights(model))
    if all(finding.is_good for finding in findings):
        findings.append(await check_conversation(worker_arguments))
    return findings


def check_machine() -> Finding:
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    gib = pages * page_bytes / 1024**3
    graphics = "NVIDIA driver found" if shutil.which("nvidia-smi") else "no GPU driver"
    python = platform.python_version()
    return Finding(
        "machine", True, f"Python {python}, {os.cpu_count()} cores, {gib:.0f} GiB, {graphics}"
    )


def check_package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "missing: make install")


def check_speech_model() -> Finding:
    try:
        SpeechModel(model_path())
    except ParleyError as error:
        return Finding("speech detection", False, str(error))
    return Finding("speech detection", True, "loads")


def check_weights(model: str) -> Finding:
    folder = Path(model).expanduser()
    if not folder.exists():
        is_path = model.startswith((".", "/", "~")) or model.count("/") != 1
        if is_path:
            return Finding("weights", False, f"{model} does not exist")
        return Finding("weights", True, f"{model}: a hub name, fetched when it is first loaded")
    files = [path for pattern in WEIGHT_FILES for path in folder.glob(pattern)]
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type", "unknown")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        return Finding("weights", False, f"{folder}/config.json cannot be read: {reason}")
    if not files:
        return Finding("weights", False, f"{folder} holds no *.safetensors")
    mib = sum(path.stat().st_size for path in files) / 1024**2
    return Finding("weights", True, f"{kind}, {mib:.0f} MiB in {len(files)} files")


async def check_conversation(worker_arguments: Sequence[str]) -> Finding:
    """Start a worker and have it answer one short turn."""
    begun = time.monotonic()
    question = Question(bytes(SAMPLE_BYTES * INPUT_SAMPLE_RATE), text=CONVERSATION)
    options = ReplyOptions(max_text_tokens=8, max_codes=100)
    try:
        answer = await talk(
            question,
            worker_arguments,
            settings=SessionSettings(),
            options=options,
            is_paced=False,
            on_loading=lambda loading: None,
            on_reply=lambda reply: None,
        )
    except ParleyError as error:
        return Finding("conversation", False, str(error))
    assert answer.done is not None
    if answer.done.message:
        return Finding("conversation", False, f"{answer.done.code}: {answer.done.message}")
    if answer.first_sound_ms is None:
        return Finding("conversation", False, "the reply had no sound")
    return Finding(
        "conversation",
        True,
        f"first sound after {answer.first_sound_ms:.0f} ms, {answer.seconds:.1f} s of speech in "
        f"{answer.done_ms / 1000:.1f} s ({time.monotonic() - begun:.1f} s with loading)",
    )


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False)
    for finding in findings:
        table.add_row(
            "[green]ok[/]" if finding.is_good else "[red]no[/]", finding.what, finding.detail
        )
    console.print(table)
