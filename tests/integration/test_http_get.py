"""`http_get` against real servers of this machine: what it reads, and that nothing leads it to where it may not go."""

import asyncio
import gzip
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.ai import ToolContext
from shared.ai.tools import fetching as fetching_module
from shared.ai.tools.fetching import MOST_BYTES, fetching
from shared.clock import SystemClock
from shared.errors import InputError
from shared.http import calling
from shared.http.addresses import Gate, PublicNetwork, is_public
from tests.support.hostile import HOSTILE, NAMES, resolve
from tests.support.sites import Site, moved, page, site


def public_is_this_machine(address: str) -> bool:
    """As if 127.0.0.1, and it alone, were the internet."""
    return address == "127.0.0.1"


async def get(url: str, gate: Gate, *, tls: ssl.SSLContext | None = None) -> Any:
    clock = SystemClock()
    return await fetching(gate, tls).call({"url": url}, ToolContext("", clock.now() + timedelta(seconds=30), clock))


async def refusal(url: str, gate: Gate, *, tls: ssl.SSLContext | None = None) -> str:
    """Why it is not fetched: one line that names no address."""
    with pytest.raises(InputError) as caught:
        await get(url, gate, tls=tls)
    reason = str(caught.value)
    assert "\n" not in reason
    assert not [secret for secret in ("127.0", "169.254", "::1", "/etc", "[Errno") if secret in reason.partition(": ")[2]]
    return reason


async def read(answer: bytes) -> Any:
    async with site({"/": answer}) as server:
        return await get(f"http://public.test:{server.port}/", open_gate(server))


def open_gate(server: Site) -> Gate:
    return Gate(may_connect=public_is_this_machine, resolve=resolve, ports={server.port})


# Where it may not go


async def test_no_address_leads_to_this_machine_or_its_network() -> None:
    async with site() as server, site(host="127.0.0.2") as other:
        gate = Gate(resolve=resolve, ports={80, 443, server.port})
        assert len(set(HOSTILE)) == len(HOSTILE) > 100
        for url in HOSTILE:
            await refusal(url.replace("{port}", str(server.port)), gate)
        assert (server.connections, other.connections) == (0, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "public.test", "PUBLIC.test", "loopback.test", "127.0.0.1.nip.test"])
async def test_the_same_server_is_reached_once_the_gate_is_open(host: str) -> None:
    async with site() as server:
        assert (await get(f"http://{host}:{server.port}/", open_gate(server)))["text"] == "hello"
        assert server.paths == ["/"]


AMBIGUOUS = (
    "http://user@public.test:{port}/", "http://user:password@public.test:{port}/", "http://@public.test:{port}/",
    "http://127.0.0.1@public.test:{port}/", "http://public.test:{port}@public.test:{port}/", "http://public%2etest:{port}/",
    "http://public.test\\:{port}/", "http:\\\\public.test:{port}/", "http://pub\tlic.test:{port}/", "http://public.test:{port}/\n",
    "\nhttp://public.test:{port}/", "http://public.test:{port}/a b", "http://public.test:{port}/\x7f", "http://public.test:{port}/\xa0",
    "http://public.test.:{port}/", "http://\uff50ublic.test:{port}/", "http://public\u3002test:{port}/", "http://127.1:{port}/",
    "http://0x7f000001:{port}/", "http://127.0.0.1.:{port}/", "http://public.test:1{port}/", "http://public.test:0{port}0/",
    "public.test:{port}",
)  # fmt: skip


@pytest.mark.parametrize("url", AMBIGUOUS)
async def test_an_address_that_parsers_could_read_in_two_ways_is_refused_wherever_it_leads(url: str) -> None:
    async with site() as server:
        await refusal(url.replace("{port}", str(server.port)), open_gate(server))
        assert server.connections == 0


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost", "loopback.test", "mixed.test", "::1", "nothing.test"],
)
async def test_what_the_first_gate_would_let_through_is_stopped_where_connections_are_made(host: str) -> None:
    """The second gate alone, with the machine's own resolver for what is no name of the tests."""
    gate = Gate(resolve=resolve) if host in NAMES else Gate()
    async with site() as server:
        with pytest.raises(InputError, match="not on the public internet"):
            await PublicNetwork(gate).connect_tcp(host, server.port)
        assert server.connections == 0
        # The machine does read these spellings as its own address: that the gate stands there matters.
        if host not in ("::1", "nothing.test"):
            stream = await PublicNetwork(Gate(lambda _: True, gate.resolve)).connect_tcp(
                host.replace("mixed", "loopback"), server.port
            )
            await stream.aclose()


async def test_no_socket_file_is_ever_connected_to() -> None:
    with pytest.raises(InputError):
        await PublicNetwork(Gate(may_connect=lambda _: True)).connect_unix_socket("/var/run/docker.sock")


ELSEWHERE = (
    "http://127.0.0.2:{other}/", "//127.0.0.2:{other}/", "http://inside.test:{other}/", "http://2130706434:{other}/",
    "http://[::ffff:127.0.0.2]:{other}/", "http://public.test@127.0.0.2:{other}/", "http://127.0.0.2:{other}\\@public.test/",
    "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "https://127.0.0.2:{other}/", "file:///etc/passwd",
    "gopher://127.0.0.2:{other}/", "data:text/html,hello", "ftp://127.0.0.2/", "http://public.test:22/", "http://[::1", "\thttp://127.0.0.2:{other}/",
)  # fmt: skip


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_a_redirect_goes_through_the_same_gate(status: str) -> None:
    async with site() as server, site(host="127.0.0.2") as other:
        gate = Gate(may_connect=public_is_this_machine, resolve=resolve, ports={80, server.port, other.port})
        for number, place in enumerate(ELSEWHERE):
            server.pages = {
                "/": moved(f"/{number}", status),
                f"/{number}": moved(place.replace("{other}", str(other.port)), status),
            }
            await refusal(f"http://public.test:{server.port}/", gate)
        assert len(server.requests) == 2 * len(ELSEWHERE)
        assert other.connections == 0
        assert (await get(f"http://inside.test:{other.port}/", Gate(lambda _: True, resolve, {other.port})))["text"] == "hello"


async def test_five_redirects_are_followed_and_no_more() -> None:
    async with site() as server:
        server.pages = {f"/{number}": moved(f"{number + 1}") for number in range(9)} | {"/6": page("arrived")}
        found = await get(f"http://public.test:{server.port}/1", open_gate(server))
        assert (found["text"], found["url"]) == ("arrived", f"http://public.test:{server.port}/6")
        assert "redirected more than 5 times" in await refusal(f"http://public.test:{server.port}/0", open_gate(server))
        assert server.paths == ["/1", "/2", "/3", "/4", "/5", "/6", "/0", "/1", "/2", "/3", "/4", "/5"]


async def test_a_name_that_changes_after_it_was_looked_at_gains_nothing() -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    async with site() as server:
        other = Site()
        there = await asyncio.start_server(other.serve, "127.0.0.2", server.port)
        async with there:
            gate = Gate(may_connect=public_is_this_machine, resolve=rebinding, ports={server.port})
            server.pages["/again"] = moved("/")
            assert (await get(f"http://public.test:{server.port}/", gate))["text"] == "hello"
            assert asked == ["public.test"], "the name is resolved once, and the connection goes to what was looked at"
            asked.clear()
            assert "not on the public internet" in await refusal(f"http://public.test:{server.port}/again", gate)
            assert asked == ["public.test"] * 2
            assert other.connections == 0


async def test_the_next_address_of_a_host_is_tried_when_one_does_not_answer() -> None:
    async def several(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.3", "127.0.0.1"]

    async with site() as server:
        gate = Gate(may_connect=lambda _: True, resolve=several, ports={server.port})
        assert (await get(f"http://public.test:{server.port}/", gate))["text"] == "hello"


def test_what_is_used_is_closed_to_all_but_the_public_internet() -> None:
    gate = Gate()
    assert gate.may_connect is is_public
    assert gate.ports == {80, 443}


# What it says, and what it does not


async def test_a_request_says_who_asks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site({"/": page("one", set_cookie="a=b"), "/two": page("two")}) as server:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9/")
        for path in ("/", "/two"):
            await get(f"http://public.test:{server.port}{path}#part", open_gate(server))
        assert server.requests[1].lower().splitlines() == [
            "get /two http/1.1",
            f"host: public.test:{server.port}",
            "user-agent: agent-team/0.1 (http_get; reads one page)",
            "accept: text/html, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.8",
            "accept-encoding: identity",
            "connection: close",
            "",
        ]


# What it reads


async def test_a_page_is_its_text() -> None:
    found = await read(page("<title>T</title><script>x</script><p>Caf\u00e9 &amp; bar", content_type="text/html; charset=UTF-8"))
    assert found.pop("url").startswith("http://public.test:")
    assert found == {"status": 200, "content_type": "text/html", "text": "T\nCaf\u00e9 & bar"}


async def test_an_error_page_is_a_page_that_says_its_status() -> None:
    found = await read(page("not here", status="404 Not Found"))
    assert (found["status"], found["text"]) == (404, "not here")


@pytest.mark.parametrize(
    ("charset", "body", "text"),
    [
        ("iso-8859-1", b"caf\xe9", "caf\u00e9"),
        ("utf-8", b"caf\xe9", "caf\ufffd"),
        ("nonsense", "caf\u00e9".encode(), "caf\u00e9"),
        ("punycode", b"caf-dma", "caf-dma"),
        ("zlib", b"caf", "caf"),
        ("shift_jis", "\u30d5\u30a7\u30ea\u30fc".encode("shift_jis"), "\u30d5\u30a7\u30ea\u30fc"),
    ],
)
async def test_text_is_read_in_its_charset(charset: str, body: bytes, text: str) -> None:
    assert (await read(page(body, content_type=f"text/plain; charset={charset}")))["text"] == text


@pytest.mark.parametrize(
    "kind", ["application/json", "application/problem+json", "application/atom+xml", "text/csv", "text/markdown"]
)
async def test_what_is_text_in_any_form_is_read_as_it_is(kind: str) -> None:
    assert (await read(page("<a>1</a>", content_type=kind)))["text"] == "<a>1</a>"


@pytest.mark.parametrize(
    "kind", ["image/png", "application/pdf", "application/octet-stream", "video/mp4", "multipart/mixed; boundary=x"]
)
async def test_what_is_no_text_is_refused(kind: str) -> None:
    async with site({"/": page(b"\x00", content_type=kind)}) as server:
        assert "not text" in await refusal(f"http://public.test:{server.port}/", open_gate(server))


async def test_what_comes_compressed_unasked_is_not_unpacked() -> None:
    bomb = page(gzip.compress(b"0" * 50_000_000), content_encoding="gzip")
    async with site({"/": bomb}) as server:
        assert "compressed" in await refusal(f"http://public.test:{server.port}/", open_gate(server))


async def test_of_an_endless_page_only_the_beginning_is_read() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent += 65_536
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await get(f"http://public.test:{port}/", Gate(public_is_this_machine, resolve, {port}))
    assert set(found["text"]) == {"x"}
    assert found["cut"] == "the page goes on; only its beginning is here"
    assert MOST_BYTES <= sent + 65_536 < 20 * MOST_BYTES


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke off or broke the rules of HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broke off or broke the rules of HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", "broke off or broke the rules of HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", "broke off or broke the rules of HTTP"),
    ],
)
async def test_an_answer_that_is_no_http_is_an_error_of_one_line(answer: bytes, reason: str) -> None:
    async with site({"/": answer}) as server:
        assert await refusal(f"http://public.test:{server.port}/", open_gate(server)) == f"the page cannot be fetched: it {reason}"


async def test_a_server_that_is_not_there_is_an_error_of_one_line() -> None:
    async with site() as server:
        gate = open_gate(server)
    assert await refusal(f"http://public.test:{server.port}/", gate) == "the page cannot be fetched: it cannot be reached"


async def test_a_server_that_says_nothing_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time
    async with site({}) as server:
        fetched = asyncio.create_task(refusal(f"http://public.test:{server.port}/", open_gate(server)))
        async with asyncio.timeout(20):
            await server.asked.wait()
        assert not fetched.done()
        monkeypatch.setattr(loop, "time", lambda: now() + fetching_module._SECONDS)
        assert "took longer than 30 s" in await fetched
        assert server.connections == 1


async def test_a_call_that_is_cancelled_lets_go_of_the_server() -> None:
    async with site({}) as server:
        call = asyncio.ensure_future(get(f"http://public.test:{server.port}/", open_gate(server)))
        async with asyncio.timeout(10):
            await server.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await server.left.wait()


# TLS


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """What a server shows that is called `name`; its certificate is in `folder`."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


async def test_certificates_that_the_environment_names_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = certificate(tmp_path, "public.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    calling._believed.cache_clear()
    async with site(tls=shown) as server:
        assert "certificate is not valid" in await refusal(f"https://public.test:{server.port}/", open_gate(server))
    calling._believed.cache_clear()


async def test_a_certificate_must_be_valid_for_the_name_that_was_asked_for(tmp_path: Path) -> None:
    shown = certificate(tmp_path, "public.test")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    async with site(tls=shown) as server:
        gate = open_gate(server)
        assert (await get(f"https://public.test:{server.port}/", gate, tls=trusting))["text"] == "hello"
        for host, tls in (("loopback.test", trusting), ("127.0.0.1", trusting), ("public.test", None)):
            reason = await refusal(f"https://{host}:{server.port}/", gate, tls=tls)
            assert reason == "the page cannot be fetched: its certificate is not valid for its name"
        assert len(server.requests) == 1
