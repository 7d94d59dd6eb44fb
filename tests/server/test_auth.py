"""Keys, secrets and origins: who is let in, in tables."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING

import pytest

from server.auth import (
    ANYONE,
    LONGEST_SECRET_S,
    MAX_STORED_CONFIGURATIONS,
    Doorkeeper,
    Keyring,
    OriginRule,
    SecretMint,
)
from server.config import ConfigFault

if TYPE_CHECKING:
    from pathlib import Path

NOW_S = 1_800_000_000


def doorkeeper(*keys: str, allow_query_key: bool = False) -> Doorkeeper:
    return Doorkeeper(Keyring(keys, None), SecretMint(), allow_query_key=allow_query_key)


def test_a_key_opens_in_every_spelling_of_its_configuration() -> None:
    digest = hashlib.sha256(b"third").hexdigest()
    door = doorkeeper("first", "ana=second", f"bob=sha256:{digest}")
    names = [
        p.name if (p := door.identify(k, NOW_S)) else None for k in ("first", "second", "third")
    ]
    assert names == [f"key-{hashlib.sha256(b'first').hexdigest()[:8]}", "ana", "bob"]
    assert all(door.identify(key, NOW_S) is None for key in ("", "firs", "First", digest, None))


def test_without_keys_everyone_enters_whatever_they_present() -> None:
    door = doorkeeper()
    for presented in (None, "anything", "ek_made.up"):
        assert door.identify(presented, NOW_S) == ANYONE


@pytest.mark.parametrize("bad", ["", "with space", "ek_key", "schlüssel", "n=sha256:12", "x" * 513])
def test_a_key_that_cannot_be_used_is_refused_without_being_repeated(bad: str) -> None:
    with pytest.raises(ConfigFault) as fault:
        Keyring([bad], None)
    assert len(bad) < 3 or bad not in str(fault.value)


def test_keys_are_not_kept_as_they_are() -> None:
    ring = Keyring(["marked-secret"], None)
    assert "marked-secret" not in repr(vars(ring))


def test_a_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# staff\nana=one\n\nbob=two\n")
    ring = Keyring([], file)
    assert not ring.is_open
    assert ring.find("one") and ring.holds("bob")
    assert not ring.refresh()
    file.write_text("ana=one\n")
    os.utime(file, ns=(1, 1))
    assert ring.refresh()
    assert ring.find("two") is None and not ring.holds("bob")
    file.unlink()
    with pytest.raises(ConfigFault, match="cannot be read"):
        ring.refresh()
    assert ring.find("one")  # the keys stay as they were


def test_a_secret_is_good_until_it_expires() -> None:
    door = doorkeeper("ana=key")
    secret, expires_s = door.mint.issue("ana", 60, NOW_S, {"voice": "Ethan"})
    assert expires_s == NOW_S + 60
    assert re.fullmatch(r"ek_[A-Za-z0-9._-]+", secret)
    found = door.identify(secret, NOW_S + 59)
    assert found is not None
    assert (found.name, found.is_full, found.configuration) == ("ana", False, {"voice": "Ethan"})
    assert door.identify(secret, NOW_S + 60) is None


def test_a_secret_ends_with_the_key_it_came_from() -> None:
    mint = SecretMint(b"shared")
    secret, _ = mint.issue("ana", 60, NOW_S)
    assert Doorkeeper(Keyring(["ana=key"], None), mint, allow_query_key=False).identify(
        secret, NOW_S
    )
    assert not Doorkeeper(Keyring(["bob=key"], None), mint, allow_query_key=False).identify(
        secret, NOW_S
    )


def test_a_secret_that_was_changed_or_signed_by_others_is_nobodys() -> None:
    mint = SecretMint(b"ours")
    secret, _ = mint.issue("ana", 60, NOW_S)
    body, signature = secret.removeprefix("ek_").split(".")
    others, _ = SecretMint(b"theirs").issue("ana", 60, NOW_S)
    cases = [others, f"ek_{body}", f"ek_{body}.", f"ek_.{signature}", "ek_", "ek_ü.ü", "ek_a.b"]
    cases += [f"ek_{body[:-1]}.{signature}", f"ek_{body}.{signature[:-2]}"]
    cases += [f"ek_{chr(ord(body[3]) ^ 1).join((body[:3], body[4:]))}.{signature}"]
    assert [mint.find(case, NOW_S) for case in cases] == [None] * len(cases)
    assert mint.find(secret, NOW_S) is not None


def test_stored_configurations_are_bounded_and_expire() -> None:
    mint = SecretMint()
    first, _ = mint.issue("ana", 10, NOW_S, {"n": 0})
    for n in range(3):
        mint.issue("ana", LONGEST_SECRET_S, NOW_S + 11, {"n": n})
    assert len(mint._configurations) == 3  # the first has expired
    assert MAX_STORED_CONFIGURATIONS >= 1000
    found = mint.find(first, NOW_S)
    assert found is not None and found.configuration is None


def test_what_is_presented_first_counts() -> None:
    door = doorkeeper("k", allow_query_key=True)
    headers = {"authorization": "Bearer one", "api-key": "two"}
    offers, query = ["realtime", "openai-insecure-api-key.three"], {"api-key": "four"}
    assert door.presented(headers, offers, query) == "one"
    assert door.presented({"api-key": "two"}, offers, query) == "two"
    assert door.presented({}, offers, query) == "three"
    assert door.presented({"authorization": "Basic one"}, [], query) == "four"
    assert doorkeeper("k").presented({}, [], query) is None
    assert door.presented({"authorization": "bearer  one "}, [], {}) == "one"


@pytest.mark.parametrize(
    ("origin", "host", "is_admitted"),
    [
        (None, "parley.test", True),
        ("https://good.example.com", "parley.test", True),
        ("HTTPS://GOOD.example.com", "parley.test", True),
        ("http://good.example.com", "parley.test", False),  # other scheme
        ("https://good.example.com:444", "parley.test", False),
        ("https://good.example.com.evil.com", "parley.test", False),
        ("https://evil-good.example.com", "parley.test", False),
        ("https://sub.good.example.com", "parley.test", False),
        ("null", "parley.test", False),
        ("", "parley.test", False),
        ("file://", "parley.test", False),
        ("http://parley.test", "parley.test", True),
        ("https://parley.test", "parley.test", True),
        ("https://parley.test", "parley.test:443", True),
        ("http://parley.test:80", "parley.test", True),
        ("http://parley.test:8000", "parley.test:8000", True),
        ("http://parley.test:8001", "parley.test:8000", False),
        ("http://parley.test", "parley.test:8000", False),
        ("http://user@parley.test", "parley.test", False),
        ("http://parley.test/path", "parley.test", False),
        ("http://parley.test", None, False),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://parley.test:99999999", "parley.test", False),
    ],
)
def test_origins(origin: str | None, host: str | None, is_admitted: bool) -> None:
    rule = OriginRule(["https://good.example.com"], must_be_local=False)
    assert rule.admits(origin, host) is is_admitted


@pytest.mark.parametrize(
    ("origin", "is_admitted"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
        ("http://rebound.evil.com:8000", False),  # its name was made to point to 127.0.0.1
    ],
)
def test_without_keys_a_page_must_be_of_this_machine(origin: str, is_admitted: bool) -> None:
    rule = OriginRule([], must_be_local=True)
    assert rule.admits(origin, origin.removeprefix("http://")) is is_admitted


def test_an_origin_that_is_none_is_refused_at_start() -> None:
    with pytest.raises(ConfigFault, match="write it as"):
        OriginRule(["good.example.com"], must_be_local=False)
