from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import Ambiguous, NotSent, Reason, RetryClass
from keyferry.io.addresses import AddressPolicy
from keyferry.io.tls import ClientCertificate, TlsSettings, build_context
from keyferry.model import HttpRequest
from keyferry.secret import SecretValue
from tests.support.peers import (
    CANARY,
    GENEROUS,
    OK,
    SHORT,
    Peer,
    always_ok,
    driving,
    failing,
    post,
    serving,
)
from tests.support.pki import EXPIRED, Authority, self_signed, server_context

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return build_context(TlsSettings(authority.certificate))


class TestNothingWasSent:
    async def test_connection_refused(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # bound, but not listening
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
            async with driving() as driver:
                for one_time in (False, True):
                    error = await failing(driver, post(url, one_time=one_time))
                    assert isinstance(error, NotSent)
                    assert (error.code, error.message) == ("refused", "127.0.0.1: connection refused")
                    assert error.retry is RetryClass.TRANSIENT

    async def test_a_name_that_does_not_exist(self) -> None:
        async with driving() as driver:
            error = await failing(driver, post("https://nothing.invalid/"))
        assert isinstance(error, NotSent)
        assert (error.code, error.message) == ("dns", "nothing.invalid: the name cannot be resolved")

    @pytest.mark.parametrize(
        ("case", "words"),
        [
            ("unknown authority", "unable to get local issuer certificate"),
            ("self-signed", "self-signed certificate"),
            ("another host", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
            ("expired", "certificate has expired"),
        ],
    )
    async def test_a_certificate_that_is_not_accepted(
        self, case: str, words: str, authority: Authority, trusting: ssl.SSLContext, tmp_path: Path
    ) -> None:
        certificate = {
            "unknown authority": lambda: Authority.create("Another").server(),
            "self-signed": lambda: self_signed("127.0.0.1"),
            "another host": lambda: authority.server(["auth.example.org"]),
            "expired": lambda: authority.server(validity=EXPIRED),
        }[case]()
        async with (
            serving(always_ok, tls=server_context(certificate, tmp_path)) as server,
            driving(tls=trusting) as driver,
        ):
            error = await failing(driver, post(server.tls_url))
        assert isinstance(error, NotSent)
        assert error.code == "certificate"
        assert error.message == f"127.0.0.1: its certificate is not accepted: {words}"
        assert server.arrivals == []

    async def test_a_server_that_does_not_speak_tls(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, post(server.tls_url))
        assert isinstance(error, NotSent)
        assert error.code == "tls"
        assert error.message.startswith("127.0.0.1: the TLS handshake failed: ")

    async def test_a_server_that_hangs_up_in_the_handshake(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.reader.read(1)
            peer.reset()

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, post(server.tls_url))
        assert isinstance(error, NotSent)
        assert error.code == "reset"

    async def test_a_handshake_that_stalls(self) -> None:
        async with serving(Peer.gone) as server, driving(connect_timeout=SHORT) as driver:
            error = await failing(driver, post(server.tls_url))
        assert isinstance(error, NotSent)
        assert (error.code, error.message) == ("connect_timeout", "127.0.0.1: no connection: timed out")

    @pytest.mark.parametrize(("connect", "whole"), [(SHORT, GENEROUS), (GENEROUS, SHORT)])
    async def test_a_connection_that_stalls(self, connect: float, whole: float) -> None:
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            address = listening.getsockname()
            for _ in range(3):  # more than the backlog holds: from then on nothing is answered
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(address)
            async with driving(connect_timeout=connect, timeout=whole) as driver:
                error = await failing(driver, post(f"http://127.0.0.1:{address[1]}/", one_time=True))
        assert isinstance(error, NotSent)
        assert error.code == "connect_timeout"

    async def test_waiting_for_a_free_connection(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.gone()

        async with serving(talk) as server, driving(connect_timeout=SHORT, max_connections=1) as driver:
            first = asyncio.ensure_future(driver.send(post(server.url)))
            await server.arrived.wait()
            error = await failing(driver, post(server.url))
            assert isinstance(error, NotSent)
            assert error.code == "connect_timeout"
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        assert len(server.arrivals) == 1

    async def test_a_host_that_is_not_allowed(self) -> None:
        async with serving(always_ok) as server, driving(AddressPolicy()) as driver:
            for url in (server.url, server.tls_url, f"https://localhost:{server.port}/"):
                error = await failing(driver, post(url))
                assert isinstance(error, NotSent)
                assert error.reason is Reason.HOST_NOT_ALLOWED
                assert error.retry is RetryClass.NEEDS_CONFIGURATION
        assert server.connections == 0

    async def test_plain_http_to_a_public_host_is_refused_before_anything_is_resolved(self) -> None:
        async with driving(AddressPolicy()) as driver:
            error = await failing(driver, post("http://nothing.invalid/"))
        assert error.reason is Reason.HOST_NOT_ALLOWED

    @pytest.mark.parametrize(
        "text",
        [f"{CANARY}\r\nX-Injected: 1", f"{CANARY}\n", f"{CANARY}\x00", f"{CANARY}é", f" {CANARY}", f"{CANARY} ",
         f"{CANARY}\ud800"],
    )  # fmt: skip
    async def test_a_header_that_http_does_not_allow(self, text: str) -> None:
        async with serving(always_ok) as server, driving() as driver:
            for headers in ({"Authorization": text}, {text: "x"}):
                error = await failing(driver, HttpRequest("POST", server.url, headers))
                assert isinstance(error, NotSent)
                assert error.code == "invalid_header"
        assert server.connections == 0


class TestNobodyKnows:
    """Something was sent and no whole answer came."""

    @pytest.mark.parametrize("one_time", [False, True])
    @pytest.mark.parametrize("method", ["POST", "GET"])
    @pytest.mark.parametrize(("how", "code"), [("close", "disconnected"), ("reset", "reset")])
    async def test_the_connection_breaks_before_an_answer(
        self,
        *,
        one_time: bool,
        method: str,
        how: str,
        code: str,
    ) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            if how == "reset":
                peer.reset()

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, HttpRequest(method, server.url, one_time=one_time))
        assert isinstance(error, Ambiguous)
        assert error.code == code
        assert len(server.arrivals) == 1  # a new connection is no reason to try again

    @pytest.mark.parametrize("how", ["close", "reset"])
    @pytest.mark.parametrize(
        ("part", "codes"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-", {"disconnected", "reset"}),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", {"truncated", "reset"}),
            (b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"a', {"truncated", "reset"}),
            (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a"', {"truncated", "reset"}),
        ],
    )
    async def test_the_connection_breaks_within_the_answer(self, part: bytes, how: str, codes: set[str]) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(part)
            if how == "reset":
                await asyncio.sleep(0.05)  # so that the part is read before the reset discards it
                peer.reset()

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, post(server.url))
        assert isinstance(error, Ambiguous)
        assert error.code in codes
        assert len(server.arrivals) == 1

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
    async def test_the_answer_stalls(self, part: bytes) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(part)
            await peer.gone()

        async with serving(talk) as server, driving(timeout=SHORT) as driver:
            error = await failing(driver, post(server.url, one_time=True))
        assert isinstance(error, Ambiguous)
        assert error.code == "timeout"
        assert len(server.arrivals) == 1

    async def test_an_answer_that_drips_does_not_outlive_the_deadline(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                await peer.send(b" ")
                await asyncio.sleep(0.02)

        async with serving(talk) as server, driving(timeout=SHORT) as driver:
            error = await failing(driver, post(server.url))
        assert isinstance(error, Ambiguous)
        assert (error.code, error.message) == ("timeout", "127.0.0.1: no whole answer within 2 s")

    @pytest.mark.parametrize(
        "head", [b"Content-Length: 2097152\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n200000\r\n", b"\r\n"]
    )
    async def test_an_answer_that_is_too_large(self, head: bytes) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n" + head, b"x" * (2 << 20))

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, post(server.url))
        assert isinstance(error, Ambiguous)
        assert (error.code, error.message) == ("too_large", "127.0.0.1: the answer is larger than 1048576 bytes")

    async def test_an_answer_of_exactly_the_limit_is_taken(self) -> None:
        async def talk(peer: Peer) -> None:
            while True:
                await peer.request()
                await peer.send(OK)

        async with serving(talk) as server, driving(max_body=2) as driver:
            assert (await driver.send(post(server.url))).body == b"{}"
        async with serving(talk) as server, driving(max_body=1) as driver:
            assert (await failing(driver, post(server.url))).code == "too_large"

    @pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate, gzip"])
    async def test_a_compressed_answer(self, encoding: bytes) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: " + encoding + b"\r\n\r\n"))

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, post(server.url))
        assert isinstance(error, Ambiguous)
        assert error.code == "compressed"

    @pytest.mark.parametrize(
        "answer",
        [
            b"SSH-2.0-" + CANARY.encode() + b"\r\n\r\n",
            b"HTTP/1.1 abc " + CANARY.encode() + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nBad\x00Name: " + CANARY.encode() + b"\r\n\r\n",
        ],
    )
    async def test_an_answer_that_is_not_http(self, answer: bytes) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(answer)

        async with serving(talk) as server, driving() as driver:
            error = await failing(driver, post(server.url))
        assert isinstance(error, Ambiguous)
        assert (error.code, error.message) == ("malformed", "127.0.0.1: the answer is not HTTP")

    async def test_a_client_certificate_that_the_server_refuses(self, authority: Authority, tmp_path: Path) -> None:
        context = server_context(authority.server(), tmp_path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority.certificate)
        stranger = self_signed("stranger", ["stranger"])
        ours = ClientCertificate(stranger.certificate, SecretValue(stranger.private_key))
        # With TLS 1.3 the refusal comes after the request went out.
        async with (
            serving(always_ok, tls=context) as server,
            driving(tls=build_context(TlsSettings(authority.certificate, ours))) as driver,
        ):
            error = await failing(driver, post(server.tls_url))
        assert isinstance(error, Ambiguous)
        assert error.code in {"tls", "reset", "disconnected"}
        assert server.arrivals == []
