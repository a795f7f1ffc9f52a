"""The page's way to the broker API, over TLS, to one and to several replicas."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from keyferry.errors import KeyferryError, Misdirected, NoSuchQuestion, Reason, Refused, RetryClass, StoreUnavailable
from keyferry.question import Question, Stage
from keyferry.secret import SecretValue
from keyferry.web.page.client import BrokerApprovals
from keyferry.web.page.wire import LONGEST_BODY, OPERATIONS, PATH, PageHandler
from keyferry.web.serving import Server, listen
from tests.page.fake import LINK, VIEWER, FakeApprovals, overviews, question
from tests.support.pki import Authority, server_context
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BROWSER, CODE = SecretValue("b" * 43), SecretValue("one-time-code")
HOST = "broker.keyferry.svc"
REPLICAS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@dataclass
class Broker:
    """Replicas of the API; each knows what its approvals know, or is away."""

    approvals: dict[str, FakeApprovals]
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """Replica, path with query, token."""
    plain_status: int = 0

    async def serve(self, request: web.BaseRequest) -> web.Response:
        address = request.transport.get_extra_info("sockname")[0] if request.transport is not None else ""
        self.seen.append((address, request.raw_path, request.headers["Authorization"]))
        if self.plain_status:
            return web.Response(status=self.plain_status, text="upstream is away")
        operation = request.path.removeprefix(PATH)
        status, body = await PageHandler().handle(self.approvals[address], operation, await request.read())
        return web.json_response(body, status=status)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[tuple[Broker, BrokerApprovals]]:
    """Return three replicas under one name, and a client of them."""
    authority = Authority.create()
    (tmp_path / "token").write_text("token-1\n")
    (tmp_path / "ca.crt").write_text(authority.certificate)
    tls, port = server_context(authority.server([HOST]), tmp_path), free_port()
    replicas = Broker({address: FakeApprovals() for address in REPLICAS})

    async def resolve(host: str, asked_port: int) -> list[str]:
        assert (host, asked_port) == (HOST, port)
        return list(REPLICAS)

    client = BrokerApprovals(
        f"https://{HOST}:{port}",
        token_file=tmp_path / "token",
        authorities_file=tmp_path / "ca.crt",
        resolve=resolve,
    )
    async with contextlib.AsyncExitStack() as stack:
        for address in REPLICAS:
            runner = await listen(Server(replicas.serve), address, port, what="It", advice="", tls=tls)
            stack.push_async_callback(runner.cleanup)
        stack.push_async_callback(client.close)
        yield replicas, client


def only(broker: Broker, knowing: str, otherwise: KeyferryError) -> FakeApprovals:
    """Leave one replica that knows the question."""
    for address, approvals in broker.approvals.items():
        approvals.trouble = None if address == knowing else otherwise
    return broker.approvals[knowing]


EVERY = [question(stage) for stage in Stage] + [
    question(Stage.LOGIN, takes_code=True, begun_here=True, message="m", scopes=(), expected="", target=""),
    question(Stage.ENDED, may_ask_again=True, account=None),
]


@pytest.mark.parametrize("given", EVERY)
async def test_question_comes_over_unchanged(broker: tuple[Broker, BrokerApprovals], given: Question) -> None:
    replicas, client = broker
    replicas.approvals[REPLICAS[0]].current = given
    assert await client.question(LINK, None) == given


async def test_every_operation_comes_over(broker: tuple[Broker, BrokerApprovals]) -> None:
    replicas, client = broker
    far = replicas.approvals[REPLICAS[0]]
    one, two, three = overviews(1000.0)
    far.identities = [two, one]
    replicas.approvals[REPLICAS[1]].identities = [three]
    assert await client.question(LINK, BROWSER) == far.current
    assert await client.begin(LINK, BROWSER) == far.address
    assert await client.arrive("uid", None, {"state": "s", "code": "ä"}) == LINK
    assert await client.give_code(LINK, BROWSER, "ada@example.org", CODE) == far.current
    assert await client.confirm(LINK, BROWSER) == far.current
    assert await client.decline(LINK, BROWSER) == far.current
    assert await client.ask_again(LINK) == far.current
    assert await client.overview(VIEWER) == [one, three, two]  # of all replicas, by namespace and name
    assert far.asked == [
        ("question", BROWSER),
        ("begin", BROWSER),
        ("arrive", "uid", None, {"state": "s", "code": "ä"}),
        ("code", BROWSER, "ada@example.org", CODE),
        ("confirm", BROWSER),
        ("decline", BROWSER),
        ("again",),
    ]
    assert [address for address, path, _ in replicas.seen if path.endswith("overview")] == list(REPLICAS)
    assert {path.removeprefix(PATH) for _, path, _ in replicas.seen} == set(OPERATIONS)


@pytest.mark.parametrize(
    "error",
    [
        NoSuchQuestion("none"),
        Refused("used before", reason=Reason.GRANT_REJECTED, retry=RetryClass.NEEDS_PERSON),
        StoreUnavailable("disk full"),
        KeyferryError("strange", reason=Reason.WRONG_SUBJECT),
    ],
)
async def test_errors_come_over(broker: tuple[Broker, BrokerApprovals], error: KeyferryError) -> None:
    replicas, client = broker
    for approvals in replicas.approvals.values():
        approvals.trouble = error
    with pytest.raises(KeyferryError) as caught:
        await client.confirm(LINK, BROWSER)
    assert (caught.value.message, caught.value.reason, caught.value.retry) == (error.message, error.reason, error.retry)
    assert isinstance(caught.value, Refused) == isinstance(error, Refused)
    assert isinstance(caught.value, NoSuchQuestion) == isinstance(error, NoSuchQuestion)


@pytest.mark.parametrize("otherwise", [Misdirected("not mine"), NoSuchQuestion("not mine")])
async def test_replica_that_knows_is_found_and_asked_first_from_then_on(
    broker: tuple[Broker, BrokerApprovals], otherwise: KeyferryError
) -> None:
    replicas, client = broker
    knowing = only(replicas, REPLICAS[2], otherwise)
    await client.confirm(LINK, BROWSER)
    await client.question(LINK, BROWSER)
    assert [address for address, _, _ in replicas.seen] == [*REPLICAS, REPLICAS[2]]
    assert knowing.asked == [("confirm", BROWSER), ("question", BROWSER)]


async def test_link_that_nobody_knows_is_none(broker: tuple[Broker, BrokerApprovals]) -> None:
    replicas, client = broker
    with pytest.raises(NoSuchQuestion):
        await client.question(SecretValue("u" * 43), None)
    assert [address for address, _, _ in replicas.seen] == list(REPLICAS)


async def test_question_that_nobody_looks_after_now_is_not_said_to_be_gone(
    broker: tuple[Broker, BrokerApprovals],
) -> None:
    replicas, client = broker
    for approvals in replicas.approvals.values():
        approvals.trouble = Misdirected("the shard is on its way")
    with pytest.raises(KeyferryError, match="cannot be reached just now") as caught:
        await client.question(LINK, None)
    assert not isinstance(caught.value, NoSuchQuestion)


async def test_refusal_is_not_tried_elsewhere(broker: tuple[Broker, BrokerApprovals]) -> None:
    replicas, client = broker
    only(replicas, REPLICAS[2], Refused("used before"))
    with pytest.raises(Refused):
        await client.confirm(LINK, BROWSER)
    assert len(replicas.seen) == 1


async def test_token_is_read_afresh(broker: tuple[Broker, BrokerApprovals], tmp_path: Path) -> None:
    replicas, client = broker
    await client.question(LINK, None)
    (tmp_path / "token").write_text("token-2")
    await client.question(LINK, None)
    assert [token for _, _, token in replicas.seen] == ["Bearer token-1", "Bearer token-2"]


async def test_new_authority_is_trusted_and_a_foreign_one_is_not(
    broker: tuple[Broker, BrokerApprovals], tmp_path: Path
) -> None:
    replicas, client = broker
    good = (tmp_path / "ca.crt").read_text()
    (tmp_path / "ca.crt").write_text(Authority.create().certificate)
    with pytest.raises(KeyferryError, match="cannot be reached"):
        await client.question(LINK, None)
    assert replicas.seen == []
    (tmp_path / "ca.crt").write_text(good)
    assert await client.question(LINK, None) == replicas.approvals[REPLICAS[0]].current


async def test_missing_token_is_told(broker: tuple[Broker, BrokerApprovals], tmp_path: Path) -> None:
    _, client = broker
    (tmp_path / "token").unlink()
    with pytest.raises(KeyferryError, match="cannot show the broker who it is"):
        await client.question(LINK, None)


@pytest.mark.parametrize(
    ("status", "said"),
    [(503, "cannot be reached"), (429, "cannot be reached"), (401, "does not understand"), (200, "does not")],
)
async def test_answer_of_something_else_is_told(broker: tuple[Broker, BrokerApprovals], status: int, said: str) -> None:
    replicas, client = broker
    replicas.plain_status = status
    with pytest.raises(KeyferryError, match=said) as caught:
        await client.question(LINK, None)
    assert "upstream" not in caught.value.message


async def test_nobody_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    client = BrokerApprovals(f"http://127.0.0.1:{free_port()}", token_file=tmp_path / "token")
    with pytest.raises(KeyferryError, match="cannot be reached"):
        await client.question(LINK, None)
    await client.close()


@pytest.mark.parametrize("operation", [*OPERATIONS, "nothing"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"link": 1}',
        b'{"link": ["l"], "browser": 5}',
        b"[" * 50000,
        b" " * (LONGEST_BODY + 1),
    ],
    ids=range(8),
)
async def test_malformed_bodies_are_refused_without_being_repeated(operation: str, body: bytes) -> None:
    approvals = FakeApprovals()
    status, answer = await PageHandler().handle(approvals, operation, body)
    assert status in {400, 404, 413}
    assert approvals.asked == []
    assert answer["status"] == status
    assert '"link"' not in json.dumps(answer)
