"""How times, codes and addresses are written, and how often one address may ask."""

from __future__ import annotations

import pytest

from keyferry.web.page.pages import host_of
from keyferry.web.page.rates import MOST_ADDRESSES, Rates
from keyferry.web.page.site import check_url
from keyferry.web.page.wording import groups, moment, relative, timestamp

NOON = 1795348800.0


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (0, "now"),
        (0.9, "now"),
        (1, "in 1 second"),
        (59, "in 59 seconds"),
        (60, "in 1 minute"),
        (599, "in 9 minutes"),
        (7200, "in 2 hours"),
        (200000, "in 2 days"),
        (-61, "1 minute ago"),
    ],
)
def test_distance_is_in_whole_units(distance: float, text: str) -> None:
    assert relative(NOON + distance, NOON) == text


def test_time_is_absolute_and_names_its_zone() -> None:
    assert moment(NOON) == "12:00 UTC on 22 November 2026"
    assert timestamp(NOON + 0.7) == "2026-11-22T12:00:00Z"


@pytest.mark.parametrize(
    ("code", "pieces"),
    [
        ("WDJB-MJHT", ["WDJB-MJHT"]),
        ("WDJBMJHT", ["WDJB", "MJHT"]),
        ("123456", ["123", "456"]),
        ("123456789", ["123", "456", "789"]),
        ("ABCDEFG", ["ABCD", "EFG"]),
        ("12345", ["12345"]),
    ],
)
def test_code_is_cut_and_not_changed(code: str, pieces: list[str]) -> None:
    assert groups(code) == pieces


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://auth.example.org/device?user_code=A", "auth.example.org"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
        ("https://good.example@evil.example/", "evil.example"),
        ("https://evil.example:x/", ""),
        ("https://[::1/", ""),
        ("javascript:alert(1)", ""),
        ("//host", ""),
        ("https://host/ with blanks", ""),
    ],
)
def test_host_is_where_a_browser_would_go(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://Page.Example.org/", "https://page.example.org"),
        ("https://page.example.org:443", "https://page.example.org"),
        ("http://127.0.0.1:7530", "http://127.0.0.1:7530"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_url_is_written_as_browsers_write_an_origin(text: str, url: str) -> None:
    assert check_url(text) == url


@pytest.mark.parametrize("text", ["page.example.org", "ftp://x", "https://x/path", "https://a@b", "https://x?y", ""])
def test_url_of_no_page_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a page"):
        check_url(text)


def test_rate_is_held_for_each_address() -> None:
    now = 0.0
    rates = Rates(2.0, 3.0, clock=lambda: now)
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]
    assert rates.take("b")
    now = 0.5
    assert [rates.take("a"), rates.take("a")] == [True, False]
    now = 60.0
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]


def test_addresses_that_are_remembered_are_bounded() -> None:
    rates = Rates(1.0, 1.0, clock=lambda: 0.0)
    for number in range(MOST_ADDRESSES + 10):
        rates.take(str(number))
    assert rates.take("0")  # forgotten, and so as good as new
    assert not rates.take(str(MOST_ADDRESSES))
