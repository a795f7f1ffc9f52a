"""Who asks, as trusted proxies say: what anybody else writes into their headers must count for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.web.page.peers import FORWARDED, X_FORWARDED_FOR, Peers, parse_peers
from keyferry.web.page.site import WRITES, ApprovalPage, Site
from tests.page.conftest import HINT
from tests.page.fake import FakeApprovals
from tests.support.asking import NO_TLS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

PROXIES = "10.0.3.0/24, 192.0.2.7,2001:db8:5::/64"
PROXY = "10.0.3.9"


@pytest.mark.parametrize(
    ("values", "asking"),
    [
        ([], PROXY),
        (["198.51.100.4"], "198.51.100.4"),
        (["198.51.100.4:4711"], "198.51.100.4"),
        (["203.0.113.1, 198.51.100.4"], "198.51.100.4"),  # the left one is what the client wrote
        (["203.0.113.1", "198.51.100.4"], "198.51.100.4"),
        (["198.51.100.4, 192.0.2.7,10.0.3.1"], "198.51.100.4"),
        (["203.0.113.1,198.51.100.4, 192.0.2.7"], "198.51.100.4"),
        (["10.0.3.2, 10.0.3.1"], "10.0.3.2"),  # a proxy that asks for itself
        (["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        (["[2001:db8:1:2::9]:4711"], "2001:db8:1:2::/64"),
        (["198.51.100.4, 2001:db8:5::1"], "198.51.100.4"),
        (["::ffff:198.51.100.4"], "198.51.100.4"),
        (["198.51.100.4, 10.0.3.1, nonsense"], PROXY),
        (["198.51.100.4, nonsense, 10.0.3.1"], "10.0.3.1"),
        (["198.51.100.4,"], PROXY),
        (["198.51.100.4, unknown"], PROXY),
        (["198.51.100.400"], PROXY),
        (["198.51.100.4 10.0.3.1"], PROXY),
        (["fe80::1%eth0"], PROXY),
        (["1" * 8000], PROXY),
        ([""], PROXY),
    ],
)
def test_nearest_address_that_is_no_trusted_proxy_asks(values: Sequence[str], asking: str) -> None:
    assert parse_peers(PROXIES, X_FORWARDED_FOR).of(PROXY, values) == asking


@pytest.mark.parametrize(
    ("values", "asking"),
    [
        (["for=198.51.100.4"], "198.51.100.4"),
        (['For="198.51.100.4:4711";proto=https;by=203.0.113.43'], "198.51.100.4"),
        (['for="[2001:db8:1:2::9]:4711"'], "2001:db8:1:2::/64"),
        (["for=203.0.113.1, for=198.51.100.4;host=a"], "198.51.100.4"),
        (["for=203.0.113.1", "proto=https;for=198.51.100.4 , for=192.0.2.7"], "198.51.100.4"),
        (['for=203.0.113.1;host="a,for=1.2.3.4", for=198.51.100.4'], "198.51.100.4"),
        (["for=unknown"], PROXY),
        (["for=198.51.100.4, for=_hidden"], PROXY),
        (["for=198.51.100.4, proto=https"], PROXY),
        (["for=198.51.100.4;for=198.51.100.5"], PROXY),
        (['for="203.0.113.1, for=198.51.100.4'], PROXY),  # an open quote would swallow what the proxy added
        (['for="\\"203.0.113.1", for=198.51.100.4'], PROXY),
        (["198.51.100.4"], PROXY),
        (["for=198.51.100.4,,"], PROXY),
        ([""], PROXY),
        (['"' * 8000], PROXY),
        (["for=a;" * 1300], PROXY),
    ],
)
def test_header_of_rfc_7239_says_the_same(values: Sequence[str], asking: str) -> None:
    assert parse_peers(PROXIES, FORWARDED.lower()).of(PROXY, values) == asking


@pytest.mark.parametrize("remote", ["198.51.100.4", "10.0.4.1", "192.0.2.8"])
def test_nobody_else_is_believed(remote: str) -> None:
    assert parse_peers(PROXIES, None).of(remote, ["203.0.113.1"]) == remote
    assert Peers().of(remote, ["203.0.113.1"]) == remote


def test_connection_counts_as_it_is_where_it_has_no_address() -> None:
    assert parse_peers(PROXIES, None).of("", ["203.0.113.1"]) == ""
    assert parse_peers(PROXIES, None).of("::ffff:10.0.3.9", ["203.0.113.1"]) == "203.0.113.1"
    assert Peers().of("2001:db8:1:2:3:4:5:6", []) == "2001:db8:1:2::/64"


@pytest.mark.parametrize(
    ("proxies", "header", "said"),
    [
        ("ingress.example.org", None, "'ingress.example.org' is no address"),
        ("10.0.3.0/24,", None, "'' is no address"),
        ("10.0.3.1/24", None, "write 10.0.3.0/24"),
        ("0.0.0.0/0", None, "everybody"),
        ("::/0", None, "everybody"),
        ("10.0.3.0/24", "X-Real-IP", "write X-Forwarded-For or Forwarded"),
    ],
)
def test_mistakes_are_told_in_sentences(proxies: str, header: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=r"--trusted-proxies|--forwarded-header") as refused:
        parse_peers(proxies, header)
    assert said in str(refused.value)


@pytest.fixture
async def clients(url: str) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Return clients of a page behind a trusted proxy at 127.0.0.1, and of one that trusts nobody there."""
    proxied = Site(url, HINT, parse_peers("127.0.0.1", None))
    aloof = Site(url, HINT, parse_peers("127.0.0.2", None))
    port = int(url.rpartition(":")[2])
    async with (
        ApprovalPage(FakeApprovals(), proxied, "127.0.0.1", port),
        ApprovalPage(FakeApprovals(), aloof, "127.0.0.2", port),
        httpx.AsyncClient(base_url=url, verify=NO_TLS, headers={"Origin": url}) as one,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.2:{port}",
            verify=NO_TLS,
            headers={"Origin": url, "Host": url.removeprefix("http://")},
        ) as other,
    ):
        yield one, other


async def flood(page: httpx.AsyncClient, forwarded: str) -> int:
    """Send more forms than anybody may, each as of another address; return the last answer's status."""
    status = 0
    for number in range(int(WRITES[1]) + 20):
        headers = {X_FORWARDED_FOR: forwarded.format(f"203.0.113.{number}")}
        status = (await page.post("/", data={"token": "guess"}, headers=headers)).status_code
    return status


async def test_each_person_behind_a_trusted_proxy_has_a_rate_of_their_own(
    clients: tuple[httpx.AsyncClient, httpx.AsyncClient],
) -> None:
    page, _ = clients
    # What the client wrote itself is another each time.
    assert await flood(page, "{}, 198.51.100.4") == 429
    for headers in ({X_FORWARDED_FOR: "198.51.100.5"}, {FORWARDED: "for=198.51.100.4"}):
        assert (await page.post("/", data={"token": "guess"}, headers=headers)).status_code == 403


async def test_headers_of_somebody_who_is_not_trusted_give_no_rate(
    clients: tuple[httpx.AsyncClient, httpx.AsyncClient],
) -> None:
    _, page = clients
    assert await flood(page, "{}") == 429
