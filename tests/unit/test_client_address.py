"""Whose request counts against whose limit: nothing that a client writes moves it to another's."""

import pytest
from starlette.types import Scope

from functions.gateway.limits import client_address

PEER = "198.51.100.9"


def scope(*forwarded: str, peer: tuple[str, int] | None = (PEER, 4711)) -> Scope:
    return {
        "type": "http",
        "client": peer,
        "headers": [(b"x-forwarded-for", one.encode("latin-1")) for one in forwarded],
    }


def test_without_proxies_it_is_the_peer_whatever_the_headers_say() -> None:
    assert client_address(scope("203.0.113.7"), 0) == PEER
    assert client_address(scope(), 0) == PEER


@pytest.mark.parametrize(
    ("forwarded", "hops", "address"),
    [
        (["203.0.113.7"], 1, "203.0.113.7"),
        (["203.0.113.7, 10.0.0.1"], 2, "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7"], 1, "203.0.113.7"),
        (["6.6.6.6,7.7.7.7 , 203.0.113.7,10.0.0.1"], 2, "203.0.113.7"),
        (["6.6.6.6", "203.0.113.7"], 1, "203.0.113.7"),
        (["6.6.6.6, 7.7.7.7", "203.0.113.7", "10.0.0.1"], 2, "203.0.113.7"),
        (["garbage, ,,'--, 203.0.113.7"], 1, "203.0.113.7"),
        (["203.0.113.7:61234"], 1, "203.0.113.7"),
        (['"203.0.113.7:61234"'], 1, "203.0.113.7"),
        (["2001:db8:1:2:3:4:5:6"], 1, "2001:db8:1:2::/64"),
        (["[2001:db8:1:2:3:4:5:6]:61234"], 1, "2001:db8:1:2::/64"),
        (["[2001:db8:1:2::]"], 1, "2001:db8:1:2::/64"),
        (["::ffff:203.0.113.7"], 1, "203.0.113.7"),
        (["fe80::1%eth0"], 1, "fe80::/64"),
    ],
)
def test_behind_proxies_it_is_what_the_outermost_of_them_was_called_from(forwarded: list[str], hops: int, address: str) -> None:
    assert client_address(scope(*forwarded), hops) == address


@pytest.mark.parametrize(
    "forwarded", [[], [""], [" "], [","], ["garbage"], ["203.0.113.7,"], ["203.0.113.999"], ["unknown"], ["\xff"], ["[::1"[:1]]]
)
def test_where_there_is_no_address_in_that_place_the_peer_counts(forwarded: list[str]) -> None:
    assert client_address(scope(*forwarded), 1) == PEER


def test_a_header_that_is_too_short_is_not_believed() -> None:
    assert client_address(scope("6.6.6.6"), 2) == PEER
    assert client_address(scope("6.6.6.6", "7.7.7.7"), 3) == PEER


def test_neighbours_in_one_ipv6_network_are_one_client() -> None:
    assert client_address(scope(peer=("2001:db8::1", 1)), 0) == client_address(scope(peer=("2001:db8::ffff:1", 1)), 0)
    assert client_address(scope(peer=("2001:db8::1", 1)), 0) != client_address(scope(peer=("2001:db8:0:1::1", 1)), 0)


def test_a_peer_without_an_address_is_one_of_all_those() -> None:
    assert client_address(scope(peer=None), 0) == client_address(scope(peer=("", 0)), 0) == "unknown"
