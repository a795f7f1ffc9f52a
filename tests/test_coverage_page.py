"""The table of what the guides of the three systems ask for names tests that exist."""

from __future__ import annotations

from tests.documents import missing_tests, page, rows

PAGE = page("coverage.md")
REASONED = ("no place", "none")


def test_every_test_that_is_named_exists() -> None:
    assert missing_tests(PAGE) == []


def test_every_row_has_a_test_or_a_reason() -> None:
    for row in rows(PAGE):
        tested = len(row) == 3 and "`tests/" in row[2]
        assert tested or any(reason in row[1] for reason in REASONED), row[0]
