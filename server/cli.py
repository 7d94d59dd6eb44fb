"""The `parley` command: parse arguments, build values, call one function."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from server.check import check, show_findings
from server.config import load_config
from server.logs import json_logs
from server.serve import serve
from server.talk import Answer, read_question, talk, write_answer
from streaming.errors import ParleyError
from streaming.packets import (
    InputRefused,
    ReplyOptions,
    SamplingOptions,
    SessionSettings,
    TextDelta,
)

if TYPE_CHECKING:
    from streaming.packets import Loading, Reply

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(stderr=True)


@app.callback()
def main() -> None:
    """Voice and video conversation with Qwen2.5-Omni models."""


WORKER_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(name="serve", context_settings=WORKER_OPTIONS)
def serve_command(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="checkpoint folder or hub name")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one [8000]")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="who may enter: KEY, NAME=KEY or NAME=sha256:HEX; may be repeated"),
    ] = None,
    api_keys_file: Annotated[Path | None, typer.Option(help="the same, one a line")] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="a page of another host that may connect: https://example.com"),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate chain, PEM")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its key, PEM")] = None,
    tls_self_signed: Annotated[
        bool | None, typer.Option("--tls-self-signed", help="make a certificate: phones need TLS")
    ] = None,
    num_workers: Annotated[int | None, typer.Option(help="one per GPU [1]")] = None,
    max_sessions: Annotated[int | None, typer.Option(help="at most so many at once")] = None,
    drain_s: Annotated[
        float | None, typer.Option(help="seconds to finish in when asked to stop [60]")
    ] = None,
    instructions: Annotated[
        str | None, typer.Option(help="system prompt of sessions that bring none")
    ] = None,
    demo: Annotated[bool | None, typer.Option(help="serve the demo page")] = None,
    let_everyone_on_the_network_in: Annotated[
        bool | None,
        typer.Option(
            "--let-everyone-on-the-network-in", help="no key, and not only this machine: dangerous"
        ),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING, ERROR")] = None,
    config: Annotated[Path | None, typer.Option(help="settings file [parley.toml]")] = None,
) -> None:
    """Serve conversations over WebSockets. Every setting may also stand in `parley.toml` or, as PARLEY_NAME, in the
    environment. Options that are not listed go to the worker (`python -m streaming.engine --help`):
    --device cuda, --num-lanes 32."""
    flags = {
        name: value
        for name, value in context.params.items()
        if name not in ("config", "api_key", "origin")
    }
    flags |= {"api_keys": api_key or None, "origins": origin or None}
    flags["worker_args"] = tuple(context.args) or None
    try:
        resolved = load_config(flags, config)
        with json_logs(resolved.log_level) as logs:
            status = serve(resolved, _show_line, lambda: logs.num_dropped)
    except ParleyError as error:
        _show_line(f"error: {error}")
        raise typer.Exit(2) from None
    raise typer.Exit(status)


@app.command(name="check", context_settings=WORKER_OPTIONS)
def check_command(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="checkpoint folder or hub name")],
) -> None:
    """Say whether this machine, these weights and a short conversation work."""
    findings = asyncio.run(check(model, ["--model", model, *context.args]))
    show_findings(findings, console)
    raise typer.Exit(0 if all(finding.is_good for finding in findings) else 1)


@app.command(
    name="bench",
    context_settings={**WORKER_OPTIONS, "help_option_names": []},
    add_help_option=False,
)
def bench_command(context: typer.Context) -> None:
    """Call a server as many users would, in real time, and tell how long they wait."""
    # A client of the public protocol like any other: it runs as its own program and imports nothing of the server.
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.load", *context.args])


@app.command(name="talk", context_settings=WORKER_OPTIONS)
def talk_command(
    context: typer.Context,
    question: Annotated[Path, typer.Argument(help="WAV file with the question")],
    model: Annotated[str, typer.Option(help="checkpoint folder or hub name")],
    video: Annotated[
        Path | None, typer.Option(help="video shown while the question is asked")
    ] = None,
    text: Annotated[str, typer.Option(help="text added after the question")] = "",
    out: Annotated[Path, typer.Option(help="WAV file to write")] = Path("reply.wav"),
    voice: Annotated[str | None, typer.Option(help="default: the checkpoint's first")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    max_text_tokens: Annotated[int | None, typer.Option(help="limit of the reply's text")] = None,
    max_codes: Annotated[int | None, typer.Option(help="limit of the reply's sound")] = None,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 0,
    fast: Annotated[bool, typer.Option(help="do not wait for real time while asking")] = False,
) -> None:
    """Ask one question from files and hear the answer; options that are not listed go to the worker
    (`python -m streaming.engine --help`), --device cuda for example."""
    options = ReplyOptions(
        voice=voice,
        talker=SamplingOptions(seed=seed),
        max_text_tokens=max_text_tokens,
        max_codes=max_codes,
        noise_seed=seed,
    )
    try:
        asked = read_question(question, video, text)
        answer = asyncio.run(
            talk(
                asked,
                ["--model", model, *context.args],
                settings=SessionSettings(system, voice),
                options=options,
                is_paced=not fast,
                on_loading=_show_loading,
                on_reply=_show_reply,
            )
        )
    except ParleyError as error:
        console.print(f"[red]error:[/] {error}")
        raise typer.Exit(2) from None
    write_answer(answer, out)
    _show_figures(answer, out)


def _show_line(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)  # [::1] is no markup


def _show_loading(loading: Loading) -> None:
    console.print(f"[dim]{loading.stage} {loading.progress:4.0%}[/]", end="\r")


def _show_reply(reply: Reply) -> None:
    match reply:
        case TextDelta():
            sys.stdout.write(reply.text)
            sys.stdout.flush()
        case InputRefused():
            console.print(f"[yellow]left out:[/] {reply.message}")


def _show_figures(answer: Answer, out: Path) -> None:
    assert answer.done is not None
    if answer.done.message:
        console.print(f"\n[red]{answer.done.code}:[/] {answer.done.message}")
        raise typer.Exit(1)
    usage = answer.done.usage
    console.print(
        f"\n{answer.seconds:.2f} s of speech in {out}; {usage.input_text_tokens} text and {usage.input_audio_tokens} "
        f"audio tokens in, {usage.output_text_tokens} text and {usage.output_audio_tokens} codec tokens out"
    )
    console.print(
        f"after the question: first text {_ms(answer.first_text_ms)}, first sound {_ms(answer.first_sound_ms)}, "
        f"all {_ms(answer.done_ms)}, {answer.num_underruns} underruns"
    )


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} ms"
