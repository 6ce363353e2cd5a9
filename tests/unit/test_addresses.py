"""Which addresses are of the public internet."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.http.addresses import Gate, is_public, parse

PRIVATE_V4 = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
)  # fmt: skip
PRIVATE_V6 = (
    "::", "::1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "2606:4700::1111%lo",
)  # fmt: skip
PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "192.167.255.255", "2606:4700:4700::1111", "2a00:1450:4001::1")


@pytest.mark.parametrize("address", [*PRIVATE_V4, *PRIVATE_V6, "", "example.org", "127.1", "0177.0.0.1", "8.8.8.8 "])
def test_an_address_that_is_special_in_any_way_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_gets_through_in_the_clothes_of_ipv6(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for prefix, shift in (("::ffff:0:0", 0), ("::", 0), ("64:ff9b::", 0), ("64:ff9b:1::", 0), ("2002::", 80), ("2001::", 0)):
        assert not is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number << shift)))


@given(st.ip_addresses(v=6))
def test_what_is_public_is_global_unicast(address: ipaddress.IPv6Address) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert address.exploded[0] in "23"


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://example.org", "example.org", 80, "/"),
        ("HTTPS://WWW.Example.ORG:443/a%20b/c?d=e&f#g", "www.example.org", 443, "/a%20b/c?d=e&f"),
        ("https://xn--mnchen-3ya.de/straße?ü", "xn--mnchen-3ya.de", 443, "/stra%C3%9Fe?%C3%BC"),
        ("http://example.org:443/", "example.org", 443, "/"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "/"),
        ("https://[2606:4700:4700::1111]/", "2606:4700:4700::1111", 443, "/"),
    ],
)
def test_a_plain_address_is_taken_apart(url: str, host: str, port: int, target: str) -> None:
    parsed = parse(url)
    assert (parsed.host.decode(), parsed.port, parsed.target.decode()) == (host, port, target)


LOOPBACK = Gate(loopback=True)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:9000/hook", "127.0.0.1", 9000),
        ("https://127.1.2.3/", "127.1.2.3", 443),
        ("http://[::1]:1/", "::1", 1),
        ("http://LOCALHOST:65535/", "localhost", 65535),
        ("https://example.org/", "example.org", 443),
    ],
)
def test_where_loopback_is_let_through_its_own_names_are_taken_on_any_port(url: str, host: str, port: int) -> None:
    parsed = parse(url, LOOPBACK)
    assert (parsed.host.decode(), parsed.port) == (host, port)


@pytest.mark.parametrize("address", [*PRIVATE_V4, *PRIVATE_V6])
def test_loopback_lets_no_other_private_address_through(address: str) -> None:
    own = address in ("::1", "127.0.0.1", "127.255.255.254")
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    with pytest.raises(InputError):
        parse(url)
    if own:
        parse(url, LOOPBACK)
    else:
        with pytest.raises(InputError):
            parse(url, LOOPBACK)


@pytest.mark.parametrize(
    "url",
    ["http://127.1:9000/", "http://2130706433/", "http://localhost.:9000/", "http://a.localhost/", "http://0.0.0.0:9000/",
     "http://[::ffff:127.0.0.1]/", "http://user@127.0.0.1:9000/", "http://127.0.0.1:0/", "http://example.org:9000/", "ftp://localhost/"],
)  # fmt: skip
def test_loopback_must_be_written_plainly(url: str) -> None:
    with pytest.raises(InputError):
        parse(url, LOOPBACK)


@pytest.mark.parametrize("url", ["http://[2606:4700:4700::1111]public.test/", "http://[2606:4700:4700::1111].public.test:80/"])
def test_a_host_is_a_name_or_an_address(url: str) -> None:
    with pytest.raises(InputError, match="not both"):
        parse(url)


def test_how_to_write_an_international_name_is_told() -> None:
    with pytest.raises(InputError, match="write international names in their xn-- form"):
        parse("https://m\u00fcnchen.de/")


@given(st.text("htps:/@[]%.:#?\\ab1. \t\n\uff10\u3002-_", max_size=40).map("http".__add__) | st.text(max_size=30))
def test_any_text_is_a_plain_address_or_refused_in_one_line(url: str) -> None:
    try:
        parsed = parse(url)
    except InputError as refusal:
        assert "\n" not in str(refusal)  # noqa: PT017
    else:
        assert parsed.port in (80, 443)
        assert parsed.scheme in (b"http", b"https")
        assert not set(b" \t\r\n\\@%/?#") & set(parsed.host)
        assert not set(b" \t\r\n") & set(parsed.target)
