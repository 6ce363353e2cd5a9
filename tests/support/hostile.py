"""Addresses that lead to where nothing may be called, and names that do."""

import asyncio
import socket
from collections.abc import Sequence

NAMES: dict[str, list[str]] = {
    "public.test": ["127.0.0.1"],
    "inside.test": ["127.0.0.2"],
    "loopback.test": ["127.0.0.1"],
    "loopback6.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "mixed.test": ["93.184.216.34", "127.0.0.1"],
    "mixed6.test": ["93.184.216.34", "::1"],
    "metadata.test": ["169.254.169.254"],
    "unspecified.test": ["0.0.0.0"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "zoned.test": ["fe80::1%lo"],
    "nothing.test": [],
    "127.0.0.1.nip.test": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
}


async def resolve(host: str, port: int) -> Sequence[str]:
    """The names of the tests; address literals are themselves. Nobody outside is asked."""
    if host in NAMES:
        return NAMES[host]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [str(address[0]) for *_, address in found]


HOSTILE = (
    # This machine and its network, plainly
    "http://127.0.0.1:{port}/", "http://127.0.0.1/", "https://127.0.0.1:{port}/", "http://localhost:{port}/", "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/", "http://sub.localhost:{port}/", "http://localhost.localdomain:{port}/", "http://0.0.0.0:{port}/",
    "http://10.0.0.1/", "http://192.168.0.1/", "http://172.16.0.1/", "http://100.64.0.1/", "http://224.0.0.1/", "http://255.255.255.255/",
    # IPv4 in other spellings
    "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://017700000001:{port}/", "http://0177.0.0.1:{port}/",
    "http://0x7f.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://127.1:{port}/", "http://127.0.1:{port}/", "http://0:{port}/",
    "http://127.0.0.1.:{port}/", "http://127.000.000.001:{port}/", "http://127.0.0.0x1:{port}/", "http://127。0。0。1:{port}/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{port}/", "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/",
    "http://%31%32%37.0.0.1:{port}/", "http://127%2e0.0.1:{port}/",
    # IPv6
    "http://[::1]:{port}/", "http://[::]:{port}/", "http://[0:0:0:0:0:0:0:1]:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/", "http://[::127.0.0.1]:{port}/", "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/", "http://[2002:7f00:1::]:{port}/", "http://[2001:0:7f00:1::]:{port}/", "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/", "http://[fe80::1%lo]:{port}/", "http://[fc00::1]:{port}/", "http://[fd00:ec2::254]/",
    "http://[::1]public.test:{port}/", "http://[127.0.0.1]:{port}/", "http://[::1:{port}/",
    # Clouds' metadata
    "http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/", "http://2852039166/", "http://168.63.129.16/",
    "http://100.100.100.200/", "http://192.0.0.192/", "http://metadata.google.internal/computeMetadata/v1/",
    "http://METADATA.google.internal./", "http://metadata/", "http://instance-data/",
    # User info and other ways to hide a host
    "http://example.com@127.0.0.1:{port}/", "http://example.com:80@127.0.0.1:{port}/", "http://127.0.0.1:{port}@public.test/",
    "http://public.test#@127.0.0.1:{port}/", "http://public.test:80#@127.0.0.1:{port}/", "http://public.test\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@public.test/", "http:\\\\127.0.0.1:{port}\\", "http://public.test\t@127.0.0.1:{port}/",
    "ht\ntp://127.0.0.1:{port}/", "http://127.0.0.1\n:{port}/", "http://127.0.0.1:{port}/\r\nX: y", " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/ ", "http://127.0.0.1:{port}/\x00", "http://127.0.0.1 :{port}/", "//127.0.0.1:{port}/",
    "127.0.0.1:{port}", "http:127.0.0.1:{port}", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/", "http://:{port}/",
    "http://", "",
    # Other schemes and ports
    "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "gopher://127.0.0.1:{port}/_GET", "ftp://127.0.0.1:{port}/",
    "data:text/plain,hello", "dict://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "javascript:alert(1)",
    "unix:/var/run/docker.sock", "http+unix://%2fvar%2frun%2fdocker.sock/", "http://93.184.216.34:22/", "http://93.184.216.34:8080/",
    "http://93.184.216.34:-80/",
    "http://93.184.216.34:80000/", "http://93.184.216.34:0/", "http://93.184.216.34:x/",
    # Names that lead here
    "http://loopback.test:{port}/", "http://loopback6.test:{port}/", "http://mapped.test:{port}/", "http://mixed.test:{port}/",
    "http://mixed6.test:{port}/", "http://metadata.test/", "http://unspecified.test:{port}/", "http://nat64.test:{port}/",
    "http://zoned.test:{port}/", "http://nothing.test/", "http://127.0.0.1.nip.test:{port}/", "http://unknown.test/",
    "http://printer.local:{port}/", "http://router.lan/", "http://wiki.corp/", "http://db.internal:{port}/", "http://1.0.0.127.in-addr.arpa/",
    "http://" + "a." * 200 + "test/", "http://public.test/" + "a" * 2048,
)  # fmt: skip
