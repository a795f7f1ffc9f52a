"""The table of what must hold names tests that exist, or says what falls short."""

from __future__ import annotations

from tests.documents import missing_tests, page, rows

PAGE = page("proof.md")


def test_every_test_that_is_named_exists() -> None:
    assert missing_tests(PAGE) == []


def test_every_claim_has_a_test_or_a_bench_or_says_what_falls_short() -> None:
    for row in rows(PAGE):
        assert len(row) == 2, row
        assert "`tests/" in row[1] or "`bench/" in row[1] or row[1].startswith("Falls short"), row[0]
