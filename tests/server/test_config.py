"""Settings: who wins, what is refused, and that no message repeats a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.config import ConfigFault, is_loopback, load_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PARLEY_PORT", "PARLEY_HOST", "PARLEY_API_KEYS", "PARLEY_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_config({}).port == 8000
    (tmp_path / "parley.toml").write_text("port = 1\ndrain_s = 7\nmodel = 'file'\n")
    assert load_config({}).port == 1
    monkeypatch.setenv("PARLEY_PORT", "2")
    assert load_config({"model": "flag"}).port == 2
    resolved = load_config({"port": 3, "model": "flag", "host": None})
    assert (resolved.port, resolved.model, resolved.drain_s, resolved.host) == (
        3,
        "flag",
        7,
        "127.0.0.1",
    )


def test_lists_are_written_with_commas_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_API_KEYS", "one, two")
    keys = load_config({}).api_keys
    assert [key.get_secret_value() for key in keys] == ["one", "two"]


def test_a_named_file_must_exist_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match=r"other\.toml does not exist"):
        load_config({}, tmp_path / "other.toml")
    (tmp_path / "other.toml").write_text("port = ")
    with pytest.raises(ConfigFault, match=r"other\.toml cannot be read"):
        load_config({}, tmp_path / "other.toml")


def test_a_setting_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "parley.toml").write_text("prot = 1\n")
    with pytest.raises(ConfigFault, match="prot: Extra inputs are not permitted"):
        load_config({})


def test_a_wrong_value_is_named_and_not_repeated() -> None:
    with pytest.raises(ConfigFault, match="port: ") as fault:
        load_config({"port": "marked-secret", "api_keys": 17})
    assert "marked-secret" not in str(fault.value)
    assert "api_keys: " in str(fault.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_other_machines_are_not_served_without_a_key(host: str) -> None:
    with pytest.raises(
        ConfigFault, match=r"can be reached from other machines and there is no key"
    ):
        load_config({"host": host})
    assert load_config({"host": host, "api_keys": ["k"]}).host == host
    assert load_config({"host": host, "let_everyone_on_the_network_in": True}).host == host


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "[::1]", "LOCALHOST"]
)
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.evil.com", "127.0.0.1.evil.com", "10.0.0.1", ""])
def test_what_looks_like_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="belong together"):
        load_config({"tls_cert": tmp_path})
    with pytest.raises(ConfigFault, match="leave tls_cert out"):
        load_config({"tls_cert": tmp_path, "tls_key": tmp_path, "tls_self_signed": True})


def test_keys_do_not_show_in_the_settings() -> None:
    resolved = load_config({"api_keys": ["marked-secret"], "secret_key": "marked-secret"})
    assert "marked-secret" not in repr(resolved) + str(resolved)
