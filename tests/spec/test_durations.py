from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.spec.durations import DURATION_PATTERN, LONGEST, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("7d", 604800), ("0s", 0), ("1d2h3m4s", 93784), ("36500d", LONGEST)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5", "-5s", "1.5h", "500ms", "30m1h", "1h 30m", "5M", "5s\n", "٣s", "1w", "36501d", "9999999999s"]
)
def test_other_texts_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        parse_duration(text)
    assert len(text) < 3 or text not in str(caught.value)


@given(st.integers(min_value=0, max_value=LONGEST))
def test_what_is_written_is_read_back(seconds: int) -> None:
    text = format_duration(seconds)
    assert parse_duration(text) == seconds
    assert re.fullmatch(DURATION_PATTERN, text)


def test_fractions_are_rounded() -> None:
    assert format_duration(89.6) == "1m30s"
    assert format_duration(-1) == "0s"
