"""Places, rates, and that nothing is counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import (
    DRAINING,
    FULL,
    LOADING,
    MAX_ADDRESSES,
    OUT_OF_MEMORY,
    OVERLOADED,
    TOO_MANY_FAILED_KEYS,
    TOO_MANY_HANDSHAKES,
    TOO_MANY_OF_ADDRESS,
    TOO_MANY_OF_KEY,
    Admission,
    Buckets,
    Place,
    Refusal,
    TokenBucket,
    address_group,
    memory_part,
)
from server.config import ServerConfig


def admission(**settings: float) -> Admission:
    made = Admission(ServerConfig(**settings))  # type: ignore[arg-type]  # pydantic checks them
    made.num_places = 4
    return made


def test_the_cheapest_reason_comes_first() -> None:
    door = admission(handshakes_per_s_per_address=1, failed_keys_per_minute=1)
    assert door.knock("a", 0) is None
    door.num_places = 0
    assert door.knock("a", 0) is LOADING
    door.is_draining = True
    assert door.knock("a", 0) is DRAINING


def test_handshakes_of_an_address_and_of_all_are_metered() -> None:
    door = admission(handshakes_per_s_per_address=2, handshakes_per_s=3)
    assert [door.knock("a", 0) for _ in range(5)] == [None] * 4 + [TOO_MANY_HANDSHAKES]
    assert door.knock("b", 0) is None
    assert door.knock("b", 0) is None
    assert door.knock("c", 0) is TOO_MANY_HANDSHAKES  # six in all: the burst
    assert door.knock("a", 1000) is None


def test_wrong_keys_close_the_door_for_that_address_alone() -> None:
    door = admission(failed_keys_per_minute=2)
    for _ in range(2):
        assert door.knock("a", 0) is None
        door.count_failed_key("a", 0)
    assert door.knock("a", 0) is TOO_MANY_FAILED_KEYS
    assert door.knock("b", 0) is None
    assert door.knock("a", 30_000) is None


def test_a_refused_page_costs_its_address_no_key() -> None:
    door = admission(failed_keys_per_minute=2)
    assert [door.may_explain_page("a", 0) for _ in range(3)] == [True, True, False]
    assert door.may_explain_page("b", 0) and door.may_explain_page("a", 30_000)
    assert door.knock("a", 0) is None


def test_places_end() -> None:
    door = admission(sessions_per_address=2, sessions_per_key=3)
    assert door.enter("a", "k") == Place("a", "k")
    assert isinstance(door.enter("a", "k"), Place)
    assert door.enter("a", "other") is TOO_MANY_OF_ADDRESS
    assert isinstance(door.enter("b", "k"), Place)
    assert door.enter("c", "k") is TOO_MANY_OF_KEY
    last = door.enter("c", "l")
    assert isinstance(last, Place)
    assert door.enter("d", "m") is FULL
    door.leave(last)
    door.memory_part = 0.9
    assert door.enter("d", "m") is OUT_OF_MEMORY


def test_nobody_new_is_let_in_while_the_server_is_behind() -> None:
    door = admission(max_lateness_s=5)
    door.lateness_s = 5.1
    assert door.enter("a", "k") is OVERLOADED
    door.lateness_s = 4.9
    assert isinstance(door.enter("a", "k"), Place)


@settings(deadline=None)  # of a busy machine it measures the others
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("kl"), st.booleans())))
def test_what_is_taken_is_what_was_not_given_back(visits: list[tuple[str, str, bool]]) -> None:
    door = admission(sessions_per_address=2)
    held: list[Place] = []
    for address, principal, leaves in visits:
        if leaves and held:
            door.leave(held.pop())
        elif not isinstance(place := door.enter(address, principal), Refusal):
            held.append(place)
        assert door.num_taken == len(held) <= 4
    for place in held:
        door.leave(place)
    assert door.num_taken == 0 and not door._by_address and not door._by_principal


def test_a_place_given_back_twice_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="twice"):
        admission().leave(Place("a", "k"))


def test_a_debt_is_paid_by_waiting() -> None:
    bucket = TokenBucket(100, 50)
    assert bucket.spend(0, 50) == 0
    assert bucket.spend(0, 10) == pytest.approx(0.1)
    assert bucket.spend(100, 0) == 0
    assert not bucket.take(100, 1)
    assert bucket.take(110, 1)
    assert not bucket.has(110)


def test_addresses_nobody_comes_from_are_forgotten() -> None:
    buckets = Buckets(1, 1)
    for i in range(MAX_ADDRESSES + 5):
        buckets.of(str(i))
    assert len(buckets._buckets) == MAX_ADDRESSES
    assert "0" not in buckets._buckets


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_ipv6_customer_is_one_address(host: str, group: str) -> None:
    assert address_group(host) == group


def test_memory_is_the_containers_or_the_machines() -> None:
    machine = "MemTotal: 1000 kB\nMemAvailable: 250 kB\n"
    container = {
        "memory.max": "100\n",
        "memory.current": "90\n",
        "memory.stat": "inactive_file 40\n",
    }
    assert memory_part({"meminfo": machine}) == 0.75
    assert memory_part({"meminfo": machine, **container}) == 0.5
    assert memory_part({"meminfo": machine, "memory.max": "max\n"}) == 0.75
    assert memory_part({}) == 0.0
