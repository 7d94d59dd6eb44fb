"""Who may enter and how fast, before anything costly is done for them. Pure: time is an argument.

Checks in the order of their cost: state, rates, sessions per address and per key, places and memory. A refusal is an
HTTP answer before the upgrade, because accepting to say no costs as much as a session.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.config import ServerConfig

MAX_ADDRESSES = 10_000
BURST_S = 2.0
"""A rate may be exceeded by what would have come in so long."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer instead of a WebSocket."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None


LOADING = Refusal(503, "loading", "The model is still loading; try again in a moment.", 2)
DRAINING = Refusal(503, "draining", "The server is shutting down.", 1)
TOO_MANY_HANDSHAKES = Refusal(429, "rate_limit_exceeded", "Too many connection attempts.", 1)
TOO_MANY_FAILED_KEYS = Refusal(429, "rate_limit_exceeded", "Too many attempts with wrong keys.", 60)
TOO_MANY_OF_ADDRESS = Refusal(429, "rate_limit_exceeded", "Too many sessions of this address.")
TOO_MANY_OF_KEY = Refusal(429, "rate_limit_exceeded", "Too many sessions of this key.")
FULL = Refusal(503, "full", "All places are taken.", 5)
OVERLOADED = Refusal(503, "full", "The server is behind with its replies.", 5)
OUT_OF_MEMORY = Refusal(503, "full", "The server is short of memory.", 10)


class TokenBucket:
    """So many tokens a second, and a burst."""

    __slots__ = ("_burst", "_filled_ms", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = self._tokens = burst
        self._filled_ms: int | None = None

    def _fill(self, now_ms: int) -> None:
        if self._filled_ms is not None:
            gained = (now_ms - self._filled_ms) * self._rate_per_s / 1000
            self._tokens = min(self._burst, self._tokens + gained)
        self._filled_ms = now_ms

    def take(self, now_ms: int, count: float = 1) -> bool:
        """Take tokens if they are there."""
        self._fill(now_ms)
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def has(self, now_ms: int, count: float = 1) -> bool:
        self._fill(now_ms)
        return self._tokens >= count

    def spend(self, now_ms: int, count: float) -> float:
        """Take tokens in any case; return the seconds until the debt is paid."""
        self._fill(now_ms)
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate_per_s)


class Buckets:
    """A bucket per address; those not seen for longest are forgotten."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def of(self, address: str) -> TokenBucket:
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = TokenBucket(self._rate_per_s, self._burst)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(address)
        return bucket


@dataclass(frozen=True, slots=True)
class Place:
    """A session's seat; give it back exactly once."""

    address: str
    principal: str


class Admission:
    """Counts and decides."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        rate, each = config.handshakes_per_s, config.handshakes_per_s_per_address
        self._handshakes = TokenBucket(rate, max(1.0, rate * BURST_S))
        self._of_address = Buckets(each, max(1.0, each * BURST_S))
        failed = config.failed_keys_per_minute
        self._failed_keys = Buckets(failed / 60, failed)
        self._refused_pages = Buckets(failed / 60, failed)
        """Apart from the keys: a stranger's page must not lock out who else is at the address of its visitor."""
        self._by_address: Counter[str] = Counter()
        self._by_principal: Counter[str] = Counter()
        self.num_taken = 0
        self.num_places = 0
        """Set whenever a worker comes or goes."""
        self.is_draining = False
        self.memory_part = 0.0
        """Of the machine or its container, set once a second."""
        self.lateness_s = 0.0
        """Of the worker that is least behind, set once a second."""

    def knock(self, address: str, now_ms: int) -> Refusal | None:
        """Judge a handshake before looking at what it brings."""
        if self.is_draining:
            return DRAINING
        if self.num_places == 0:
            return LOADING
        if not self._failed_keys.of(address).has(now_ms):
            return TOO_MANY_FAILED_KEYS
        if not self._of_address.of(address).take(now_ms) or not self._handshakes.take(now_ms):
            return TOO_MANY_HANDSHAKES
        return None

    def enter(self, address: str, principal: str) -> Place | Refusal:
        """Take a place, or say why not."""
        config = self._config
        if _is_reached(self._by_address[address], config.sessions_per_address):
            return TOO_MANY_OF_ADDRESS
        if _is_reached(self._by_principal[principal], config.sessions_per_key):
            return TOO_MANY_OF_KEY
        if self.num_taken >= min(self.num_places, config.max_sessions or self.num_places):
            return FULL
        if self.lateness_s > config.max_lateness_s:
            return OVERLOADED
        if self.memory_part > config.max_memory_part:
            return OUT_OF_MEMORY
        self.num_taken += 1
        self._by_address[address] += 1
        self._by_principal[principal] += 1
        return Place(address, principal)

    def leave(self, place: Place) -> None:
        self.num_taken -= 1
        for counter, key in (
            (self._by_address, place.address),
            (self._by_principal, place.principal),
        ):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        assert self.num_taken >= 0, "a place was given back twice"

    def count_failed_key(self, address: str, now_ms: int) -> None:
        self._failed_keys.of(address).spend(now_ms, 1)

    def may_explain(self, address: str, now_ms: int) -> bool:
        """Whether a wrong key over HTTP is worth more than a 429; counts as a failed key."""
        return self._failed_keys.of(address).take(now_ms)

    def may_explain_page(self, address: str, now_ms: int) -> bool:
        """Whether a refused page is worth an upgrade to be told why; as often as keys may fail."""
        return self._refused_pages.of(address).take(now_ms)


def _is_reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit


def address_group(host: str) -> str:
    """What counts as one address: an IPv6 customer has a whole /64."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


def memory_part(read: dict[str, str]) -> float:
    """Part of the memory in use, from the texts of a container's `memory.max`, `memory.current` and `memory.stat`, or
    of the machine's `meminfo`. What the kernel can drop at once (cached files) is free."""
    limit, used = read.get("memory.max", "max").strip(), read.get("memory.current", "").strip()
    if limit.isdigit() and used.isdigit() and int(limit) > 0:
        stat = dict(line.split(" ", 1) for line in read.get("memory.stat", "").splitlines())
        return max(0, int(used) - int(stat.get("inactive_file", 0))) / int(limit)
    fields = dict(
        line.split(":", 1) for line in read.get("meminfo", "").splitlines() if ":" in line
    )
    try:
        total, free = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (KeyError, IndexError, ValueError):
        return 0.0
    return 1 - free / total
