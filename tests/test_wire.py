"""What the broker API and its askers say to each other: what one side writes, the other reads, and nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.model import ObjectKey
from keyferry.providers.labarchives.login import LabArchivesUser, Notebook, SignedCall
from keyferry.providers.labarchives.signature import AccessKey, sign
from keyferry.secret import SecretValue
from keyferry.wire import (
    HeldReport,
    Malformed,
    Problem,
    ProblemReason,
    TokenAnswer,
    TokenFile,
    decode_call,
    decode_user,
    encode_call,
    encode_user,
    identity_path,
)

CANARY = "canary-5e1f"
ANSWER = TokenAnswer(
    access_token=SecretValue(f"token-{CANARY}"),
    token_type="Bearer",
    issued_at=1_700_000_000.0,
    expires_at=1_700_003_600.0,
    scope="openid",
    revision=7,
    files=(
        TokenFile("token", SecretValue(f"token-{CANARY}")),
        TokenFile(
            ".aiod/token.toml",
            SecretValue('refresh_token = "@@keyferry:placeholder@@"\nurl = "@@keyferry:endpoint@@/"\n'),
            local=True,
        ),
        TokenFile(".tiled/tokens/https%3A%2F%2Ftiled.example.org%2Fapi%2Fv1/access_token", SecretValue("x")),
    ),
    age=0.25,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _through(value: object) -> object:
    return json.loads(json.dumps(value))


def test_a_token_passes_whole() -> None:
    sent = ANSWER.to_json(now=ANSWER.issued_at + 60.5)
    assert sent["expires_in"] == 3539
    assert TokenAnswer.from_json(_through(sent)) == ANSWER
    without_age = replace(ANSWER, age=None)
    assert TokenAnswer.from_json(_through(without_age.to_json())) == without_age


def test_a_token_that_lapsed_lives_for_no_seconds() -> None:
    assert ANSWER.to_json(now=ANSWER.expires_at + 100)["expires_in"] == 0


def test_nothing_that_is_printed_shows_a_token() -> None:
    assert CANARY not in repr(ANSWER)
    assert CANARY not in str(ANSWER.files)


def test_a_local_file_is_completed_and_another_is_left_as_it_is() -> None:
    plain, local, _ = ANSWER.files
    completed = local.completed("http://127.0.0.1:7531/nightly", SecretValue("held-in-the-pod"))
    assert completed.reveal() == 'refresh_token = "held-in-the-pod"\nurl = "http://127.0.0.1:7531/nightly/"\n'
    marked = replace(plain, content=SecretValue("@@keyferry:endpoint@@"))
    assert marked.completed("http://elsewhere", SecretValue("x")) == marked.content


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../token", "a/../b", "a//b", "a/./b", "a\\b", "a\nb", "a/", ".", "..", "a\0b"]
)
def test_no_file_leads_out_of_its_directory(path: str) -> None:
    body = ANSWER.to_json()
    body["files"][0]["path"] = path
    with pytest.raises(Malformed):
        TokenAnswer.from_json(body)


@pytest.mark.parametrize("name", sorted(ANSWER.to_json().keys() - {"expires_in", "age"}))
@pytest.mark.parametrize("value", [None, {}, -1, True, 1e300])
def test_a_malformed_token_is_refused_without_being_shown(name: str, value: object) -> None:
    with pytest.raises(Malformed) as caught:
        TokenAnswer.from_json({**ANSWER.to_json(), name: value})
    assert CANARY not in str(caught.value)


@given(JSON_VALUES)
def test_whatever_comes_is_read_or_refused(value: object) -> None:
    for read in (TokenAnswer.from_json, HeldReport.from_json, decode_call, decode_user):
        try:
            read(value)
        except Malformed:
            continue
    assert Problem.from_json(value, 503).status == 503


def test_a_report_passes_whole() -> None:
    report = HeldReport(7, time.time(), 0.02)
    assert HeldReport.from_json(_through(report.to_json())) == report
    silent = replace(report, delay_seconds=None)
    assert HeldReport.from_json(_through(silent.to_json())) == silent


@pytest.mark.parametrize("change", [{"revision": 0}, {"written_at": -1}, {"delay_seconds": -1}, {"written_at": "now"}])
def test_a_report_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        HeldReport.from_json({**HeldReport(7, 1.0, 1.0).to_json(), **change})


def test_a_problem_says_what_it_is() -> None:
    problem = Problem(409, "ApprovalRequired", "Somebody must approve first.", next_attempt_time=1_700_000_000.0)
    body = problem.to_json()
    assert body["type"] == "tag:keyferry.dev,2026:problem/approval-required"
    assert (body["title"], body["status"]) == ("Approval required", 409)
    assert body["nextAttemptTime"] == "2023-11-14T22:13:20Z"
    assert Problem.from_json(_through(body), 409) == problem


def test_an_error_that_is_no_problem_document_is_one_all_the_same() -> None:
    answers: tuple[object, ...] = (None, [], "", {"reason": 1, "detail": ["x"]}, {"reason": "<b>", "detail": "\x1b[2J"})
    for answer in answers:
        assert Problem.from_json(answer, 404).reason == ProblemReason.NOT_FOUND
    assert Problem.from_json(None, 421).reason == ProblemReason.MISDIRECTED
    assert Problem.from_json(None, 502).reason == ProblemReason.UNAVAILABLE


def test_signed_calls_and_users_pass_without_the_key_and_the_user_id() -> None:
    key = AccessKey(SecretValue("AKID"), SecretValue("password"))
    call = SignedCall("https://api.example.org", SecretValue("uid-1"), sign(key, "add_entry", 1_700_000_000.0))
    sent = _through(encode_call(call))
    assert decode_call(sent) == call
    assert "password" not in json.dumps(sent)
    user = LabArchivesUser(SecretValue("uid-1"), "a@x.org", "Ada", True, (Notebook("n", "Lab", False),))
    sent = _through(encode_user(user))
    assert "uid-1" not in json.dumps(sent)
    assert decode_user(sent) == replace(user, uid=SecretValue(""))


def test_the_path_of_an_identity() -> None:
    assert identity_path(ObjectKey("batch", "nightly")) == "/v1/namespaces/batch/identities/nightly"
