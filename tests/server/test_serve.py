"""What is said to whoever starts the server, and that it refuses in time."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from server.check import check_package, check_speech_model, check_weights
from server.cli import app
from server.config import ConfigFault, ServerConfig
from server.serve import addresses, bind

if TYPE_CHECKING:
    from pathlib import Path


def config(**settings: object) -> ServerConfig:
    return ServerConfig(**settings)  # type: ignore[arg-type]  # pydantic checks them


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, "http://127.0.0.1:80"),
        ({"host": "::1"}, "http://[::1]:80"),
        ({"host": "localhost", "tls_self_signed": True}, "https://localhost:80"),
        ({"host": "0.0.0.0", "api_keys": ["k"]}, "http://127.0.0.1:80"),
        ({"host": "::", "api_keys": ["k"]}, "http://127.0.0.1:80"),
        ({"host": "192.0.2.1", "api_keys": ["k"]}, "http://192.0.2.1:80"),
    ],
)
def test_the_address_to_open_is_one_that_can_be_opened(
    settings: dict[str, object], first: str
) -> None:
    shown = addresses(config(**settings), 80)
    assert shown[0] == first
    assert not any(
        "0.0.0.0" in address or "//:" in address or "[::]" in address for address in shown
    )


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigFault, match=f"port {port}: Address already in use"):
            bind("127.0.0.1", port, 1)
    with pytest.raises(ConfigFault, match="cannot listen on 192.0.2.77"):
        bind("192.0.2.77", 0, 1)
    with bind("::1", 0, 1) as sock:
        assert sock.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "there is no key"),
        (["--port", "99999"], "port: "),
        (["--tls-cert", "x.pem"], "belong together"),
        (["--config", "absent.toml"], "absent.toml does not exist"),
        (["--api-key", "not a key"], "an API key may have"),
        (["--origin", "example.com"], "write it as https://example.com"),
        (["--log-level", "LOUD"], "log_level: "),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert result.output.startswith("error: ") and result.output.count("\n") == 1


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    assert check_package("fastapi").is_good
    assert check_package("no-such-package").detail == "missing: make install"
    assert check_speech_model().is_good
    assert check_weights(str(tmp_path / "absent")).detail.endswith("does not exist")
    assert "config.json cannot be read" in check_weights(str(tmp_path)).detail
    (tmp_path / "config.json").write_text("[")
    assert "not JSON" in check_weights(str(tmp_path)).detail
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_omni"}')
    assert "holds no *.safetensors" in check_weights(str(tmp_path)).detail
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert check_weights(str(tmp_path)).is_good
    assert check_weights("Qwen/Qwen2.5-Omni-7B").is_good


@pytest.mark.slow
def test_check_holds_a_short_conversation(checkpoint_dir: Path) -> None:
    arguments = ["check", "--model", str(checkpoint_dir), "--dtype", "fp32"]
    result = CliRunner().invoke(app, arguments)
    assert "conversation" in result.output
    assert result.exit_code == 0 or "the reply had no sound" in result.output


def test_check_stops_where_something_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "--model", str(tmp_path / "absent")])
    assert result.exit_code == 1
    assert "does not exist" in " ".join(result.output.split())
