from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import NotSent, Reason
from keyferry.io.addresses import AddressPolicy, HostRule
from keyferry.io.tls import TlsSettings, build_context
from tests.support.peers import (
    CANARY,
    Names,
    Peer,
    always_ok,
    driving,
    failing,
    post,
    serving,
)
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

PROXY_AUTHORIZATION = b"proxy-authorization: basic " + base64.b64encode(f"user:{CANARY}".encode()).lower()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return build_context(TlsSettings(authority.certificate))


class TestNames:
    async def test_only_permitted_addresses_are_connected_to(self) -> None:
        names = Names(auth_example_org=["169.254.169.254", "127.0.0.1"])
        policy = AddressPolicy((HostRule("auth.example.org"),))
        async with serving(always_ok) as server, driving(policy, resolver=names) as driver:
            assert (await driver.send(post(f"http://auth.example.org:{server.port}/"))).status == 200
        assert b"host: auth.example.org:" in server.arrivals[0].lower()

    async def test_a_name_that_leads_inside_is_refused(self) -> None:
        names = Names(auth_example_org=["127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1"])
        async with serving(always_ok) as server, driving(AddressPolicy(), resolver=names) as driver:
            for one_time in (False, True):
                error = await failing(driver, post(f"https://auth.example.org:{server.port}/", one_time=one_time))
                assert isinstance(error, NotSent)
                assert error.reason is Reason.HOST_NOT_ALLOWED
                assert error.code == "host_not_allowed"
                assert "it resolves to a closed address, 127.0.0.1 (loopback)" in error.message
        assert server.connections == 0

    async def test_localhost_is_judged_by_where_it_leads(self, authority: Authority, tmp_path: Path) -> None:
        context = server_context(authority.server(), tmp_path)
        trusting = build_context(TlsSettings(authority.certificate))
        names = Names(localhost=["127.0.0.1"])
        async with (
            serving(always_ok, tls=context) as server,
            driving(tls=trusting, resolver=names) as driver,
            driving(AddressPolicy(private=True), tls=trusting, resolver=names) as strict,
        ):
            assert (await driver.send(post(f"https://localhost:{server.port}/"))).status == 200
            assert (await failing(strict, post(f"https://localhost:{server.port}/"))).code == "host_not_allowed"

    async def test_a_url_can_be_checked_without_a_request(self) -> None:
        names = Names(auth_example_org=["1.1.1.1"], inside_example_org=["10.0.0.1"])
        policy = AddressPolicy(denied=(ip_network("1.1.1.0/30"),), denial="closed by the installation")
        async with driving(AddressPolicy(), resolver=names) as driver, driving(policy, resolver=names) as strict:
            await driver.check("https://auth.example.org/token")
            await driver.check("https://[2606:4700::1111]/token")
            for checking, url, code, words in (
                (driver, "https://inside.example.org/token", "host_not_allowed", "10.0.0.1 (private)"),
                (driver, "https://none.example.org/token", "dns", "the name cannot be resolved"),
                (driver, "http://auth.example.org/token", "host_not_allowed", "plain HTTP"),
                (strict, "https://auth.example.org/token", "host_not_allowed", "(denied); closed by the installation"),
            ):
                with pytest.raises(NotSent) as caught:
                    await checking.check(url)
                assert caught.value.code == code
                assert words in caught.value.message
                assert caught.value.__context__ is None

    async def test_the_same_refusal_can_be_raised_again(self) -> None:
        async with driving(AddressPolicy(), resolver=Names(auth_example_org=["10.0.0.1"])) as driver:
            errors = await asyncio.gather(*(failing(driver, post("https://auth.example.org/")) for _ in range(3)))
        assert {error.code for error in errors} == {"host_not_allowed"}


class TestProxy:
    @staticmethod
    async def tunnel(peer: Peer) -> None:
        head = await peer.request()
        _, port = head.split(b" ")[1].rsplit(b":", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        await peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()

        try:
            await asyncio.wait(
                [asyncio.ensure_future(copy(peer.reader, writer)), asyncio.ensure_future(copy(reader, peer.writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            writer.close()
            await writer.wait_closed()

    async def test_tls_goes_through_a_tunnel(
        self, authority: Authority, trusting: ssl.SSLContext, tmp_path: Path
    ) -> None:
        certificate = authority.server(["auth.example.org"])
        async with (
            serving(always_ok, tls=server_context(certificate, tmp_path)) as server,
            serving(self.tunnel) as proxy,
            driving(AddressPolicy(), tls=trusting, proxy=f"http://user:{CANARY}@127.0.0.1:{proxy.port}") as driver,
        ):
            answer = await driver.send(post(f"https://auth.example.org:{server.port}/", one_time=True))
        assert answer.status == 200
        assert proxy.arrivals[0].startswith(f"CONNECT auth.example.org:{server.port} HTTP/1.1\r\n".encode())
        assert PROXY_AUTHORIZATION in proxy.arrivals[0].lower()
        assert b"proxy-authorization" not in server.arrivals[0].lower()

    async def test_a_check_leaves_the_names_to_the_proxy(self) -> None:
        names = Names(inside_example_org=["10.0.0.1"])
        async with driving(AddressPolicy(), proxy="http://127.0.0.1:1", resolver=names) as driver:
            await driver.check("https://inside.example.org/")
            with pytest.raises(NotSent, match="a closed address"):
                await driver.check("https://10.0.0.1/")

    async def test_plain_http_is_handed_to_the_proxy(self) -> None:
        policy = AddressPolicy((HostRule("auth.example.org"),))
        async with (
            serving(always_ok) as proxy,
            driving(policy, proxy=f"http://user:{CANARY}@127.0.0.1:{proxy.port}") as driver,
        ):
            assert (await driver.send(post("http://auth.example.org/token"))).status == 200
        assert proxy.arrivals[0].startswith(b"POST http://auth.example.org/token?sig=")
        assert PROXY_AUTHORIZATION in proxy.arrivals[0].lower()

    async def test_a_proxy_that_refuses_has_sent_nothing(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

        async with serving(talk) as proxy, driving(proxy=f"http://127.0.0.1:{proxy.port}") as driver:
            error = await failing(driver, post("https://auth.example.org/"))
        assert isinstance(error, NotSent)
        assert error.message == "auth.example.org: the proxy refused to connect: HTTP 407"

    async def test_a_proxy_that_is_away(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            async with driving(proxy=f"http://127.0.0.1:{bound.getsockname()[1]}") as driver:
                error = await failing(driver, post("https://auth.example.org/"))
        assert isinstance(error, NotSent)
        assert error.message == "auth.example.org: the proxy cannot be reached: connection refused"

    async def test_the_environment_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        async with serving(always_ok) as server, driving() as driver:
            assert (await driver.send(post(server.url))).status == 200

    @pytest.mark.parametrize("url", ["", "proxy", "socks5://h:1", f"http://u:{CANARY}@", f"http://u:{CANARY}@h:99999"])
    async def test_a_proxy_url_that_is_not_one(self, url: str) -> None:
        with pytest.raises(ValueError, match="the proxy is not a URL such as") as caught:
            async with driving(proxy=url):
                pass
        assert CANARY not in str(caught.value)
        assert caught.value.__context__ is None
