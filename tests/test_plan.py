import math
from dataclasses import replace

import pytest

from keyferry.doubt import DoubtPolicy
from keyferry.errors import Reason, RetryClass
from keyferry.model import ObjectKey, TokenSet
from keyferry.plan import Action, Failure, Observed, PublishedState, Route, is_behind, next_renewal, plan, route
from keyferry.record import Claim, Record
from keyferry.secret import SecretValue

NOW = 1_000.0
TOKEN = TokenSet(SecretValue("at"), "Bearer", issued_at=900.0, expires_at=1_500.0)
RECORD = Record(
    uid="u",
    key=ObjectKey("batch", "nightly"),
    origin="here",
    generation=3,
    revision=5,
    spec_hash="spec",
    seed="seed",
    token=TOKEN,
    refresh_token=SecretValue("rt"),
    refresh_issued_at=900.0,
    renewal_time=1_300.0,
)
PUBLISHED = PublishedState(uid="u", revision=5, generation=3, files_hash="files", intact=True)
FINE = Observed(
    key=ObjectKey("batch", "nightly"),
    uid="u",
    origin="here",
    spec_hash="spec",
    files_hash="files",
    grant_refreshes=True,
    record=RECORD,
    published=PUBLISHED,
)
FAILURE = Failure(2, 1_100.0, Reason.RETRYING, RetryClass.TRANSIENT, "refused", "connection refused")
CLAIM = Claim("digest", "attempt", 1, "other", 990.0, 10.0)


def with_record(**changes: object) -> Observed:
    return replace(FINE, record=replace(RECORD, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("observed", "action", "reason", "at"),
    [
        pytest.param(FINE, Action.KEEP, Reason.ISSUED, 1_300.0, id="all is well"),
        pytest.param(replace(FINE, suspended=True), Action.KEEP, Reason.SUSPENDED, math.inf, id="suspended"),
        pytest.param(replace(FINE, origin="else"), Action.KEEP, Reason.STATE_FOREIGN, math.inf, id="another state's"),
        pytest.param(replace(FINE, uid="else"), Action.KEEP, Reason.STATE_FOREIGN, math.inf, id="another identity's"),
        pytest.param(
            with_record(key=ObjectKey("batch", "copied")),
            Action.KEEP,
            Reason.STATE_FOREIGN,
            math.inf,
            id="a copied record",
        ),
        pytest.param(
            with_record(token=replace(TOKEN, issued_at=NOW + 3_600, expires_at=NOW + 7_200), renewal_time=NOW + 5_000),
            Action.EXCHANGE,
            Reason.ISSUED,
            NOW,
            id="issued in the future: the clock went back",
        ),
        pytest.param(replace(FINE, record=None, published=None), Action.EXCHANGE, Reason.PENDING, NOW, id="new"),
        pytest.param(with_record(token=None), Action.EXCHANGE, Reason.PENDING, NOW, id="no token"),
        pytest.param(
            with_record(wrong_subject=True), Action.EXCHANGE, Reason.WRONG_SUBJECT, NOW, id="the last was another's"
        ),
        pytest.param(replace(FINE, published=None), Action.PUBLISH, Reason.ISSUED, NOW, id="not published"),
        pytest.param(
            replace(FINE, published=replace(PUBLISHED, intact=False)), Action.PUBLISH, Reason.ISSUED, NOW, id="edited"
        ),
        pytest.param(
            replace(FINE, publish_again=True), Action.PUBLISH, Reason.ISSUED, NOW, id="perhaps not written before"
        ),
        pytest.param(
            replace(FINE, known_revision=6),
            Action.EXCHANGE,
            Reason.REFRESH_IN_DOUBT,
            NOW,
            id="behind what was told of it",
        ),
        pytest.param(
            replace(with_record(refresh_token=None), known_revision=6),
            Action.KEEP,
            Reason.ISSUED,
            1_300.0,
            id="behind, with nothing that could be spent",
        ),
        pytest.param(
            replace(FINE, published=replace(PUBLISHED, revision=4)),
            Action.PUBLISH,
            Reason.ISSUED,
            NOW,
            id="older files",
        ),
        pytest.param(
            replace(with_record(token=replace(TOKEN, access_token=SecretValue(""))), published=None),
            Action.EXCHANGE,
            Reason.ISSUED,
            NOW,
            id="the files are gone, and the token with them",
        ),
        pytest.param(replace(FINE, files_hash="new"), Action.PUBLISH, Reason.ISSUED, NOW, id="another form"),
        pytest.param(
            replace(FINE, published=None, publish_failed=True),
            Action.KEEP,
            Reason.ISSUED,
            1_300.0,
            id="not published, but the disk is full",
        ),
        pytest.param(
            replace(FINE, publishes=False, published=None), Action.KEEP, Reason.ISSUED, 1_300.0, id="kept to itself"
        ),
        pytest.param(replace(FINE, publishes=False), Action.PUBLISH, Reason.ISSUED, NOW, id="no longer published"),
        pytest.param(
            replace(FINE, failure=FAILURE, renew_requested=True), Action.KEEP, Reason.RETRYING, 1_100.0, id="backoff"
        ),
        pytest.param(
            replace(FINE, failure=FAILURE, published=None),
            Action.PUBLISH,
            Reason.ISSUED,
            NOW,
            id="drift during backoff",
        ),
        pytest.param(replace(FINE, spec_hash="new"), Action.EXCHANGE, Reason.RETRYING, NOW, id="spec changed"),
        pytest.param(replace(FINE, renew_requested=True), Action.EXCHANGE, Reason.ISSUED, NOW, id="asked for"),
        pytest.param(
            replace(FINE, wanted_remaining=501.0), Action.EXCHANGE, Reason.ISSUED, NOW, id="too short for a job"
        ),
        pytest.param(replace(FINE, wanted_remaining=500.0), Action.KEEP, Reason.ISSUED, 1_300.0, id="long enough"),
        pytest.param(with_record(renewal_time=NOW), Action.EXCHANGE, Reason.ISSUED, NOW, id="due"),
        pytest.param(with_record(refresh_idle=300.0), Action.EXCHANGE, Reason.ISSUED, NOW, id="keepalive due"),
        pytest.param(with_record(refresh_idle=600.0), Action.KEEP, Reason.ISSUED, 1_100.0, id="keepalive next"),
        pytest.param(
            with_record(refresh_idle=300.0, refresh_ended="over"),
            Action.KEEP,
            Reason.ISSUED,
            1_300.0,
            id="session over",
        ),
        pytest.param(
            with_record(token=replace(TOKEN, expires_at=NOW)), Action.EXCHANGE, Reason.EXPIRED, NOW, id="expired"
        ),
        pytest.param(
            replace(FINE, published=replace(PUBLISHED, generation=4)),
            Action.EXCHANGE,
            Reason.REFRESH_IN_DOUBT,
            NOW,
            id="restored",
        ),
        pytest.param(
            replace(with_record(claim=CLAIM), claim_settled=False, claim_settles_at=1_020.0),
            Action.KEEP,
            Reason.REFRESH_IN_DOUBT,
            1_020.0,
            id="somebody may be sending",
        ),
        pytest.param(
            replace(with_record(claim=CLAIM), doubt=DoubtPolicy(reuse_window=60)),
            Action.EXCHANGE,
            Reason.REFRESH_IN_DOUBT,
            NOW,
            id="within the grace window",
        ),
        pytest.param(
            replace(with_record(claim=CLAIM), doubt=DoubtPolicy(replay_once=False)),
            Action.EXCHANGE,
            Reason.REFRESH_IN_DOUBT,
            NOW,
            id="a person is asked",
        ),
        pytest.param(
            with_record(claim=CLAIM), Action.KEEP, Reason.REFRESH_IN_DOUBT, 1_470.0, id="replayed shortly before expiry"
        ),
    ],
)
def test_the_first_check_that_has_something_to_say_decides(
    observed: Observed, action: Action, reason: Reason, at: float
) -> None:
    step = plan(observed, NOW)
    assert (step.action, step.reason, step.at) == (action, reason, at)


@pytest.mark.parametrize(
    ("observed", "seed", "can_login", "expected"),
    [
        pytest.param(replace(FINE, record=None), "seed", False, Route.SEED, id="first spend of a seed"),
        pytest.param(FINE, "other", False, Route.SEED, id="a new seed"),
        pytest.param(FINE, "seed", False, Route.REFRESH, id="refresh"),
        pytest.param(
            with_record(former_seeds=("other",)), "other", False, Route.REFRESH, id="a seed that was sent before"
        ),
        pytest.param(
            with_record(former_seeds=("other",), refresh_ended="over"),
            "other",
            False,
            Route.ASK,
            id="and nothing is left",
        ),
        pytest.param(FINE, "another-user", True, Route.OBTAIN, id="another user logs in"),
        pytest.param(
            replace(FINE, spec_hash="new", asks_by_session=True), "seed", True, Route.OBTAIN, id="other scopes"
        ),
        pytest.param(
            replace(FINE, spec_hash="new"), "seed", True, Route.REFRESH, id="a changed key of the same session"
        ),
        pytest.param(with_record(refresh_ended="over"), "seed", False, Route.ASK, id="ended, and the seed is spent"),
        pytest.param(
            with_record(refresh_ended="over"), "other", False, Route.SEED, id="ended, and a new seed is there"
        ),
        pytest.param(with_record(claim=CLAIM), "seed", False, Route.WAIT, id="in doubt, not yet time"),
        pytest.param(
            replace(with_record(claim=CLAIM), doubt=DoubtPolicy(reuse_window=60)),
            "seed",
            False,
            Route.REPLAY,
            id="replay",
        ),
        pytest.param(with_record(claim=replace(CLAIM, attempt=2)), "seed", False, Route.ASK, id="replayed already"),
        pytest.param(replace(FINE, record=None), None, True, Route.OBTAIN, id="first login"),
        pytest.param(FINE, None, True, Route.REFRESH, id="session going"),
        pytest.param(with_record(refresh_token=None), None, True, Route.OBTAIN, id="no session"),
        pytest.param(with_record(refresh_ended="over"), None, True, Route.OBTAIN, id="session over"),
        pytest.param(
            replace(with_record(claim=CLAIM), doubt=DoubtPolicy(can_login=True)),
            None,
            True,
            Route.OBTAIN,
            id="in doubt",
        ),
        pytest.param(replace(FINE, grant_refreshes=False), None, True, Route.OBTAIN, id="a grant without sessions"),
    ],
)
def test_the_way_to_a_token(observed: Observed, seed: str | None, can_login: bool, expected: Route) -> None:  # noqa: FBT001
    assert route(observed, seed=seed, can_login=can_login, now=NOW) is expected


def test_only_older_state_of_the_same_identity_counts_as_restored() -> None:
    assert not is_behind(FINE)
    assert is_behind(replace(FINE, published=replace(PUBLISHED, revision=6)))
    assert not is_behind(replace(FINE, published=replace(PUBLISHED, revision=6, uid="another")))


def test_a_grant_without_sessions_is_not_kept_alive() -> None:
    record = replace(RECORD, refresh_idle=30.0)
    assert next_renewal(record, refreshes=True) == 910.0
    assert next_renewal(record, refreshes=False) == 1_300.0
