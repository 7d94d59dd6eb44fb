"""A certificate of our own: for the right names, kept, renewed in time, its key private."""

from __future__ import annotations

import datetime
import ssl
from typing import TYPE_CHECKING

from cryptography import x509

from server.tls import LIFETIME, default_folder, machine_names, self_signed

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
NAMES = ["localhost", "127.0.0.1", "::1"]


def test_a_certificate_is_made_once_and_for_every_name(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "tls", NAMES, NOW)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    held = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert len(names.get_values_for_type(x509.IPAddress)) == 2
    assert key.stat().st_mode & 0o077 == 0
    content = certificate.read_bytes()
    self_signed(tmp_path / "tls", NAMES[:2], NOW)
    assert certificate.read_bytes() == content


def test_it_is_made_anew_for_a_new_name_before_it_ends_and_when_it_is_broken(
    tmp_path: Path,
) -> None:
    certificate, _ = self_signed(tmp_path, NAMES, NOW)
    contents = {certificate.read_bytes()}
    self_signed(tmp_path, [*NAMES, "10.0.0.7"], NOW)
    contents.add(certificate.read_bytes())
    self_signed(tmp_path, NAMES, NOW + LIFETIME - datetime.timedelta(days=1))
    contents.add(certificate.read_bytes())
    certificate.write_text("nonsense")
    self_signed(tmp_path, NAMES, NOW)
    contents.add(certificate.read_bytes())
    assert len(contents) == 4


def test_this_machine_has_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {"localhost", "127.0.0.1", "::1"} <= set(machine_names())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "parley" / "tls"
