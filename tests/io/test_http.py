from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import Ambiguous
from keyferry.io.addresses import AddressPolicy, HostRule
from keyferry.io.http import drive
from keyferry.model import HttpRequest, HttpResponse
from tests.support.peers import (
    CANARY,
    GENEROUS,
    OK,
    Names,
    Peer,
    Server,
    always_ok,
    driving,
    failing,
    post,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Generator


class TestAnswers:
    async def test_a_request_arrives_as_it_was_made_and_the_answer_comes_back_whole(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(
                b"HTTP/1.1 400 Bad Request\r\nX-One: a\r\nX-one: b\r\nContent-Length: 5\r\n\r\n", b"he", b"llo"
            )

        async with serving(talk) as server, driving() as driver:
            answer = await driver.send(post(server.url))
        assert answer == HttpResponse(400, {"x-one": "a, b", "content-length": "5"}, b"hello")
        head, _, body = server.arrivals[0].partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == f"POST /token?sig={CANARY} HTTP/1.1"
        headers = {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines[1:]}
        assert headers == {
            "host": f"127.0.0.1:{server.port}",
            "user-agent": "keyferry/test",
            "accept": "*/*",
            "accept-encoding": "identity",
            "content-type": "application/x-www-form-urlencoded",
            "authorization": f"Basic {CANARY}",
            "content-length": str(len(body)),
        }
        assert body == f"refresh_token={CANARY}".encode()

    async def test_a_get_has_no_body_and_a_post_without_one_says_so(self) -> None:
        async with serving(always_ok) as server, driving() as driver:
            assert (await driver.send(HttpRequest("GET", server.url))).body == b"{}"
            await driver.send(HttpRequest("POST", server.url))
        assert b"content-length" not in server.arrivals[0].lower()
        assert b"content-length: 0\r\n" in server.arrivals[1].lower()

    async def test_chunked_answers_and_answers_that_end_with_the_connection_are_whole(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
            await peer.request()
            await peer.send(b"HTTP/1.0 200 OK\r\n\r\n", b"{", b"}")

        async with serving(talk) as server, driving() as driver:
            assert (await driver.send(post(server.url))).body == b"{}"
            assert (await driver.send(post(server.url))).body == b"{}"
        assert server.connections == 1

    async def test_a_redirect_is_an_answer_like_another(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 307 Elsewhere\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")

        async with serving(talk) as server, driving() as driver:
            assert (await driver.send(post(server.url))).status == 307
        assert len(server.arrivals) == 1

    async def test_cookies_are_forgotten(self) -> None:
        async def talk(peer: Peer) -> None:
            while True:
                await peer.request()
                await peer.send(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n"))

        # By name: cookies of a bare address would be dropped in any case.
        policy, names = AddressPolicy((HostRule("auth.example.org"),)), Names(auth_example_org=["127.0.0.1"])
        async with serving(talk) as server, driving(policy, resolver=names) as driver:
            for _ in range(2):
                await driver.send(post(f"http://auth.example.org:{server.port}/token"))
        assert b"cookie" not in server.arrivals[1].lower()

    async def test_connections_are_kept_but_for_one_time_requests(self) -> None:
        async with serving(always_ok) as server, driving() as driver:
            for _ in range(3):
                await driver.send(post(server.url))
            assert server.connections == 1
            for _ in range(2):
                await driver.send(post(server.url, one_time=True))
            assert server.connections == 3
            await driver.send(post(server.url))
        assert server.connections == 3
        assert [b"connection: close" in arrival.lower() for arrival in server.arrivals] == [False] * 3 + [True] * 2 + [
            False
        ]

    async def test_an_answer_may_come_before_the_whole_request_was_read(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            await peer.gone()

        async with serving(talk) as server, driving() as driver:
            request = HttpRequest("POST", server.url, body=b"x" * 1_000_000, one_time=True)
            assert (await driver.send(request)).status == 413


class TestKeptConnections:
    @staticmethod
    async def once_then_silent(peer: Peer) -> None:
        """Answer one request; take a second one and hang up, as a server does whose patience just ended."""
        await peer.request()
        await peer.send(OK)
        await peer.request()

    @pytest.mark.parametrize("method", ["POST", "GET"])
    async def test_a_repeatable_request_goes_out_again_once(self, method: str) -> None:
        async with serving(self.once_then_silent) as server, driving() as driver:
            await driver.send(HttpRequest(method, server.url))
            assert (await driver.send(HttpRequest(method, server.url))).body == b"{}"
        assert (len(server.arrivals), server.connections) == (3, 2)

    async def test_and_no_more_than_once(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            if server.connections == 1:
                await peer.send(OK)
                await peer.request()

        async with serving(talk) as server, driving() as driver:
            await driver.send(post(server.url))
            error = await failing(driver, post(server.url))
        assert isinstance(error, Ambiguous)
        assert error.code == "disconnected"
        assert len(server.arrivals) == 3

    async def test_several_stale_connections_cost_one_second_try(self) -> None:
        meet = asyncio.Barrier(4)

        async def talk(peer: Peer) -> None:
            await peer.request()
            if server.connections <= 4 and not meet.broken:
                await meet.wait()
            await peer.send(OK)
            await peer.request()

        async with serving(talk) as server, driving() as driver:
            await asyncio.gather(*(driver.send(post(server.url)) for _ in range(4)))
            await meet.abort()
            assert (await driver.send(post(server.url))).status == 200
        assert len(server.arrivals) == 6

    async def test_a_one_time_request_arrives_exactly_once(self) -> None:
        async with serving(self.once_then_silent) as server, driving() as driver:
            await driver.send(post(server.url))
            await driver.send(post(server.url, one_time=True))
        assert (len(server.arrivals), server.connections) == (2, 2)

    async def test_a_reset_counts_like_a_close(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            await peer.request()
            peer.reset()

        async with serving(talk) as server, driving() as driver:
            await driver.send(post(server.url))
            assert (await driver.send(post(server.url))).status == 200

    async def test_a_broken_answer_is_not_asked_for_again(self) -> None:
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")

        async with serving(talk) as server, driving() as driver:
            await driver.send(post(server.url))
            assert (await failing(driver, post(server.url))).code == "truncated"
        assert len(server.arrivals) == 2

    async def test_when_the_second_try_cannot_connect_something_may_still_have_been_sent(self) -> None:
        stop = asyncio.Event()

        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            await peer.request()
            listening.close()
            stop.set()

        server = Server(talk)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listening.sockets[0].getsockname()[1]
        async with driving() as driver:
            await driver.send(post(server.url))
            error = await failing(driver, post(server.url))
        await stop.wait()
        assert isinstance(error, Ambiguous)
        assert error.code == "refused"


class TestLife:
    async def test_a_cancelled_request_gives_its_connection_back(self) -> None:
        noticed = asyncio.Event()

        async def talk(peer: Peer) -> None:
            await peer.request()
            if server.connections > 1:
                await peer.send(OK)
            else:
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
                await peer.gone()
                noticed.set()

        async with serving(talk) as server, driving(max_connections=1) as driver:
            sending = asyncio.ensure_future(driver.send(post(server.url)))
            await server.arrived.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            async with asyncio.timeout(GENEROUS):
                await noticed.wait()
            assert (await driver.send(post(server.url))).status == 200

    async def test_nothing_secret_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)

        async def talk(peer: Peer) -> None:
            while True:
                await peer.request()
                if server.connections > 1:
                    return
                await peer.send(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=" + CANARY.encode() + b'"\xff\r\n\r\n'))

        async with serving(talk) as server, driving() as driver:
            await driver.send(post(server.url))
            await failing(driver, post(server.url, one_time=True))
        assert CANARY not in caplog.text

    async def test_many_at_once_stay_within_their_connections(self) -> None:
        async with serving(always_ok) as server, driving(max_connections=4) as driver:
            answers = await asyncio.gather(*(driver.send(post(server.url)) for _ in range(40)))
        assert {answer.status for answer in answers} == {200}
        assert len(server.arrivals) == 40
        assert server.connections <= 4


class TestDrive:
    @staticmethod
    def exchange(closed: list[str]) -> Generator[HttpRequest, HttpResponse, int]:
        try:
            first = yield HttpRequest("GET", "one")
            second = yield HttpRequest("GET", "two")
        finally:
            closed.append("closed")
        return first.status + second.status

    async def test_an_exchange_is_sent_its_answers_and_returns(self) -> None:
        async def send(request: HttpRequest) -> HttpResponse:
            return HttpResponse({"one": 1, "two": 20}[request.url])

        closed: list[str] = []
        assert await drive(self.exchange(closed), send) == 21
        assert closed == ["closed"]

    async def test_an_error_is_raised_and_the_exchange_is_closed(self) -> None:
        async def send(request: HttpRequest) -> HttpResponse:
            if request.url == "two":
                raise Ambiguous("lost", code="reset")
            return HttpResponse(1)

        closed: list[str] = []
        with pytest.raises(Ambiguous, match="lost"):
            await drive(self.exchange(closed), send)
        assert closed == ["closed"]
