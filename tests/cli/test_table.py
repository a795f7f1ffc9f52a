from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from keyferry.engine import IdentityStatus
from keyferry.engine.status import Prompt
from keyferry.errors import Reason, RetryClass
from keyferry.model import ObjectKey
from keyferry.question import Account
from keyferry.run.table import relative, render

NOW = 1_000_000.0


def status(name: str = "one", namespace: str = "default", **fields: Any) -> IdentityStatus:
    fresh: dict[str, Any] = {
        "reason": Reason.ISSUED,
        "revision": 1,
        "expiration_time": NOW + 252,
        "renewal_time": NOW + 60,
    }
    return IdentityStatus(ObjectKey(namespace, name), "aiod", "ClientCredentials", **(fresh | fields))


def text(*statuses: IdentityStatus, width: int = 140, height: int | None = None, wide: bool = False) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(render(statuses, NOW, width=width, height=height, wide=wide))
    return capture.get()


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (None, "-"),
        (0.2, "now"),
        (4, "in 4s"),
        (252, "in 4m 12s"),
        (3 * 3600 + 5 * 60 + 7, "in 3h 5m"),
        (2 * 86400 + 3600, "in 2d 1h"),
        (-61, "1m 1s ago"),
    ],
)
def test_times_are_relative(at: float | None, words: str) -> None:
    assert relative(None if at is None else NOW + at, NOW) == words


def test_a_login_that_ends_soon_is_said_where_nothing_tells_of_events() -> None:
    ending = status("two", reauthorize_by_time=NOW + 7200)
    assert "default/two: its login ends in 2h 0m; a person must log in again before" in text(status(), ending)
    assert "login ends" not in text(ending, height=20)
    assert "login ends" not in text(status(reauthorize_by_time=NOW + 30 * 86400))


def test_who_approved_is_shown_where_there_is_room() -> None:
    approved = status("two", authorized_as=Account("f3c1", "ada@example.org"))
    assert "ada@example.org (subject f3c1)" in text(status(), approved, wide=True, width=200)
    assert "ada@example.org" not in text(status(), approved)
    assert "APPROVED BY" not in text(status(), wide=True, width=200)


def test_a_row_tells_all() -> None:
    failing = status(
        "two",
        reason=Reason.RETRYING,
        retry=RetryClass.TRANSIENT,
        message="connection refused",
        next_attempt_time=NOW + 9,
        expiration_time=NOW + 30,
    )
    lines = text(status(), failing).splitlines()
    assert lines[1].split() == ["one", "aiod", "ClientCredentials", "Fresh", "in", "4m", "12s", "in", "1m", "0s"]
    assert "Retrying" in lines[2]
    assert "in 9s" in lines[2]
    assert "connection refused" in lines[2]
    assert lines[3] == "2 identities: 1 retrying, 1 fresh"


def test_an_expired_token_is_expired_whatever_was_reported() -> None:
    assert "Expired" in text(status(expiration_time=NOW - 5))


def test_a_narrow_table_leaves_out_what_matters_least() -> None:
    error = status(retry=RetryClass.TRANSIENT, message="connection refused")
    for width, present, absent in ((80, "PROVIDER", "LAST ERROR"), (50, "EXPIRES", "PROVIDER")):
        shown = text(error, width=width)
        assert present in shown
        assert absent not in shown
        assert max(map(len, shown.splitlines())) <= width


def test_a_long_error_takes_one_line_unless_all_of_it_is_wanted() -> None:
    message = " ".join(["a long explanation"] * 30)
    error = status(retry=RetryClass.TRANSIENT, message=message)
    assert len(text(error).splitlines()) == 3
    whole = text(error, wide=True)
    assert whole.count("explanation") == 30


def test_where_all_do_not_fit_the_urgent_ones_are_shown() -> None:
    many = [status(f"fresh-{number}") for number in range(100)]
    many.append(status("broken", retry=RetryClass.NEEDS_PERSON, message="log in"))
    lines = text(*many, height=16).splitlines()
    assert len(lines) <= 16
    assert lines[1].startswith("broken")
    assert "101 identities: 1 stalled, 100 fresh (91 more than fit here)" in lines[-1]


def test_namespaces_are_shown_where_there_are_several() -> None:
    assert "batch/one" in text(status(), status(namespace="batch"))
    assert "default/one" not in text(status())


def test_nothing_in_it_steers_the_terminal() -> None:
    shown = text(status("one", retry=RetryClass.TRANSIENT, message="bad \x1b[2J\x07 [red]news[/red]"))
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "[red]news[/red]" in shown


PROMPT = Prompt("https://auth.example.org/go", "https://auth.example.org/go?c=WDJB-MJHT", "WDJB-MJHT", NOW + 600)


def test_a_person_sees_what_to_do_and_a_code_for_the_telephone() -> None:
    asking = status(reason=Reason.APPROVAL_REQUIRED, retry=RetryClass.TRANSIENT, prompt=PROMPT)
    shown = text(asking, height=40)
    assert "Asking" in shown
    assert PROMPT.verification_uri_complete in shown
    assert "WDJB-MJHT" in shown
    assert shown.count("█") > 100


def test_the_code_for_the_telephone_needs_room() -> None:
    asking = status(reason=Reason.APPROVAL_REQUIRED, prompt=PROMPT)
    for size in ({"width": 30, "height": 60}, {"width": 140, "height": 20}, {"width": 140, "height": None}):
        shown = text(asking, **size)
        assert "WDJB-MJHT" in shown
        assert "█" not in shown


def test_of_many_questions_the_first_are_shown_and_the_others_counted() -> None:
    many = [status(f"id-{number:02}", prompt=PROMPT) for number in range(10)]
    shown = text(*many, height=30)
    assert shown.count("WDJB-MJHT  and") == 3
    assert "7 more wait for a person" in shown
    assert len(shown.splitlines()) <= 30


@pytest.mark.parametrize(
    ("width", "wide"), [(60, False), (80, False), (104, False), (120, False), (200, False), (104, True), (200, True)]
)
def test_what_is_long_never_takes_the_room_of_states_and_times(width: int, wide: bool) -> None:  # noqa: FBT001
    approved = status(authorized_as=Account("f" * 64, "somebody.with.a.long.name@example.org"))
    reason = {"reason": Reason.RETRYING, "retry": RetryClass.TRANSIENT, "message": "why " * 90}
    lines = text(status("n" * 63, "s" * 63, **reason), approved, width=width, wide=wide).splitlines()
    assert {"IDENTITY", "STATE", "EXPIRES", "RENEWS"} <= set(lines[0].split())
    told = "\n".join(lines)
    assert all(words in told for words in ("ssss", "Retrying", "Fresh", "in 4m 12s", "in 1m 0s"))
    assert max(map(len, lines)) <= width
