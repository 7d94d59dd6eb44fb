"""Who is at the door: API keys, short-lived client secrets, and the pages that may connect."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from server.config import ConfigFault, is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SECRET_PREFIX = "ek_"
SHORTEST_SECRET_S, LONGEST_SECRET_S = 10, 7200
MAX_STORED_CONFIGURATIONS = 10_000
KEY_SUBPROTOCOL = "openai-insecure-api-key."
_HASHED = "sha256:"
_KEY = re.compile(r"[A-Za-z0-9._-]{1,512}")
_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64})=(.+)", re.DOTALL)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a session belongs to; the name may be logged."""

    name: str
    is_full: bool = True
    """A client secret opens sessions only; a full key may also ask for secrets."""
    configuration: Mapping[str, Any] | None = None
    """Session settings stored with a client secret."""


ANYONE = Principal("anyone")
"""Where no key is configured."""


class Keyring:
    """The API keys, as hashes."""

    def __init__(self, given: Iterable[str], file: Path | None) -> None:
        """Raises ConfigFault: a key cannot be used, or the file cannot be read."""
        self._given = dict(_parse_key(line) for line in given)
        self._file = file
        self._file_stamp: tuple[int, int] | None = None
        self._from_file: dict[bytes, str] = {}
        self.refresh()

    @property
    def is_open(self) -> bool:
        """No key is configured: everyone may enter."""
        return not self._given and self._file is None

    def refresh(self) -> bool:
        """Read the file again if it changed; True if it did. Raises ConfigFault."""
        if self._file is None:
            return False
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._file_stamp:
                return False
            lines = self._file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigFault(
                f"api_keys_file {self._file} cannot be read: {type(error).__name__}"
            ) from None
        kept = (line.strip() for line in lines)
        self._from_file = dict(_parse_key(x) for x in kept if x and not x.startswith("#"))
        self._file_stamp = stamp
        return True

    def find(self, key: str) -> Principal | None:
        """Whose key this is. Looks at every key, so that time tells nothing."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, name in [*self._given.items(), *self._from_file.items()]:
            if hmac.compare_digest(digest, known):
                found = Principal(name)
        return found

    def holds(self, name: str) -> bool:
        """Whether a principal still has a key."""
        return name in self._given.values() or name in self._from_file.values()


def _parse_key(line: str) -> tuple[bytes, str]:
    named = _NAMED.fullmatch(line)
    name, key = (named[1], named[2]) if named else ("", line)
    if key.startswith(_HASHED):
        try:
            digest = bytes.fromhex(key.removeprefix(_HASHED))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ConfigFault("an API key given as sha256: is not 64 hexadecimal digits")
    else:
        if not _KEY.fullmatch(key) or key.startswith(SECRET_PREFIX):
            raise ConfigFault(
                "an API key may have letters, digits, dot, dash and underscore, 512 at most, and not begin with ek_"
            )
        digest = hashlib.sha256(key.encode()).digest()
    return digest, name or f"key-{digest.hex()[:8]}"


class _Claims(msgspec.Struct, frozen=True, array_like=True):
    principal: str
    expires_s: int
    nonce: bytes


class SecretMint:
    """Makes and checks client secrets: signed claims, good in a header, a subprotocol and a URL.

    The session settings that belong to a secret stay here, so a secret stays short; the oldest are forgotten first.
    """

    def __init__(self, signing_key: bytes | None = None) -> None:
        self._signing_key = signing_key or secrets.token_bytes(32)
        self._configurations: OrderedDict[bytes, tuple[int, Mapping[str, Any]]] = OrderedDict()

    def issue(
        self,
        principal: str,
        lifetime_s: int,
        now_s: int,
        configuration: Mapping[str, Any] | None = None,
    ) -> tuple[str, int]:
        """Return the secret and when it expires. `lifetime_s` from SHORTEST_SECRET_S to LONGEST_SECRET_S."""
        assert SHORTEST_SECRET_S <= lifetime_s <= LONGEST_SECRET_S
        claims = _Claims(principal, now_s + lifetime_s, secrets.token_bytes(12))
        if configuration:
            self._store(claims, configuration, now_s)
        body = msgspec.msgpack.encode(claims)
        return f"{SECRET_PREFIX}{_text(body)}.{_text(self._sign(body))}", claims.expires_s

    def find(self, secret: str, now_s: int) -> Principal | None:
        """Whose secret this is, unless it has expired or was never ours."""
        head, _, tail = secret.removeprefix(SECRET_PREFIX).partition(".")
        try:
            body, signature = _bytes(head), _bytes(tail)
        except ValueError:
            return None
        if not hmac.compare_digest(signature, self._sign(body)):
            return None
        claims = msgspec.msgpack.decode(body, type=_Claims)
        if now_s >= claims.expires_s:
            return None
        _, configuration = self._configurations.get(claims.nonce, (0, None))
        return Principal(claims.principal, is_full=False, configuration=configuration)

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._signing_key, body, "sha256")

    def _store(self, claims: _Claims, configuration: Mapping[str, Any], now_s: int) -> None:
        for nonce in [n for n, (until, _) in self._configurations.items() if until <= now_s]:
            del self._configurations[nonce]
        if len(self._configurations) >= MAX_STORED_CONFIGURATIONS:
            self._configurations.popitem(last=False)
        self._configurations[claims.nonce] = (claims.expires_s, configuration)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


class Doorkeeper:
    """Keys and secrets together: what was presented, and whose it is."""

    def __init__(self, keyring: Keyring, mint: SecretMint, *, allow_query_key: bool) -> None:
        self.keyring = keyring
        self.mint = mint
        self._allow_query_key = allow_query_key

    def identify(self, presented: str | None, now_s: int) -> Principal | None:
        """Whose key or secret this is; None: nobody's."""
        if presented is not None and presented.startswith(SECRET_PREFIX):
            found = self.mint.find(presented, now_s)
            if found is not None and (self.keyring.is_open or self.keyring.holds(found.name)):
                return found
            return ANYONE if self.keyring.is_open else None
        if self.keyring.is_open:
            return ANYONE
        return None if presented is None else self.keyring.find(presented)

    def presented(
        self,
        headers: Mapping[str, str],
        subprotocols: Sequence[str],
        query: Mapping[str, str],
    ) -> str | None:
        """The first key that came with a request. Header names in lower case."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
        if headers.get("api-key"):
            return headers["api-key"]
        for name in subprotocols:
            if name.startswith(KEY_SUBPROTOCOL):
                return name.removeprefix(KEY_SUBPROTOCOL)
        return query.get("api-key") if self._allow_query_key else None


class OriginRule:
    """Which pages may connect. A browser names the page's origin; other programs need not."""

    def __init__(self, allowed: Iterable[str], *, must_be_local: bool) -> None:
        """`must_be_local`: no key protects the server, so a page must have been loaded from this very machine. Without
        that a stranger's page whose name is made to point to 127.0.0.1 would be of the same host as we are.

        Raises:
            ConfigFault: no origin.
        """
        self._allowed = frozenset(map(_configured_origin, allowed))
        self._must_be_local = must_be_local

    def admits(self, origin: str | None, host: str | None) -> bool:
        """`host` is the request's Host header."""
        if origin is None:
            return True
        if origin.lower() in self._allowed:
            return True
        # A Host without port means the default one, and only the page's own scheme can say which that is.
        page, ours = _place(origin), _place(f"{urlsplit(origin).scheme}://{host}")
        if page is None or page != ours:
            return False
        return not self._must_be_local or is_loopback(page[0])

    def allows_reading(self, origin: str) -> bool:
        """Whether answers may be read by a page of another host (CORS)."""
        return origin.lower() in self._allowed


def _configured_origin(text: str) -> str:
    if _place(text) is None:
        raise ConfigFault(f"origin {text!r} is none; write it as https://example.com")
    return text.lower()


def _place(origin: str) -> tuple[str, int] | None:
    """Host name and port of an origin, or None if it is none (`null`, a path, user info)."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    is_bare = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    if port is None or not parts.hostname or not is_bare or parts.scheme not in _DEFAULT_PORTS:
        return None
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return name.lower(), port
