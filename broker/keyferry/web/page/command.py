"""``keyferry page``: from its command line to its end. It needs neither typer nor pydantic, nor the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyferry.errors import KeyferryError
from keyferry.web.arguments import Parser
from keyferry.web.page.peers import DIRECT, HEADERS, Peers, parse_peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

OK, FAILED, INVALID = 0, 1, 2
LEVELS: Final = ("debug", "info", "warning", "error")
VIEWERS: Final = (
    "A Kubernetes token whose bearer may list ServiceIdentities, such as one that"
    " “kubectl create token NAME --duration 10m” prints for a service account."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Where the page is, and whom it asks."""

    host: str
    port: int
    url: str
    broker: str
    token: Path
    authorities: Path | None = None
    certificate: tuple[Path, Path] | None = None
    """The page's own, and its key; without them, somebody before it speaks TLS."""
    peers: Peers = DIRECT
    """Knows the proxies in front of it."""


def main(arguments: list[str]) -> int:
    """Serve the page until SIGTERM or SIGINT; return the exit code."""
    with _ending_when_told():
        try:
            asyncio.run(serve(parse(arguments)))
        except ValueError as error:
            sys.stderr.write(f"keyferry page: {error}. Try `keyferry page --help`.\n")
            return INVALID
        except SystemExit as leaving:
            return int(leaving.code or OK)
        except KeyferryError as error:
            sys.stderr.write(f"keyferry page: {error}\n")
            return FAILED
    return OK


def parse(arguments: list[str]) -> PageSettings:
    """Read the command line, and begin to log. Raises ValueError with a sentence for people."""
    from keyferry.web.page.site import check_url  # noqa: PLC0415 - after the help, which may be all that is wanted
    from keyferry.web.serving import parse_address  # noqa: PLC0415

    given = _parser().parse_args(arguments)
    host, port = parse_address(given.listen)
    if (given.tls_certificate is None) != (given.tls_key is None):
        raise ValueError("--tls-certificate and --tls-key go together")
    for option, text in (("--page-url", given.page_url), ("--broker", given.broker), ("--token", given.token)):
        if not text:
            raise ValueError(f"{option} is needed")
    if not given.broker.startswith("https://"):
        raise ValueError(f"--broker: {given.broker!r} does not begin with https://")
    peers = parse_peers(given.trusted_proxies, given.forwarded_header)
    logging.basicConfig(format="keyferry: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("keyferry").setLevel(given.log_level.upper())
    pair = None if given.tls_key is None else (given.tls_certificate, given.tls_key)
    return PageSettings(host, port, check_url(given.page_url), given.broker, given.token, given.ca, pair, peers)


def _parser() -> Parser:
    parser = Parser(
        prog="keyferry page", description="Serve the page on which people approve and log in, in a cluster."
    )
    add, environment = parser.add_argument, os.environ
    add("--listen", metavar="ADDR", default="127.0.0.1:8080", help="[HOST:]PORT to serve on. Default: %(default)s")
    add(
        "--page-url",
        metavar="URL",
        default=environment.get("KEYFERRY_PAGE_URL"),
        help="where people find the page: https://HOST, without a path (KEYFERRY_PAGE_URL)",
    )
    add(
        "--broker",
        metavar="URL",
        default=environment.get("KEYFERRY_BROKER"),
        help="the operator's broker API; every address of the name is asked in turn (KEYFERRY_BROKER)",
    )
    add("--token", metavar="FILE", type=Path, help="the page's own service-account token, for the audience keyferry")
    add("--ca", metavar="FILE", type=Path, help="authorities of the broker API. Default: the system's")
    add("--tls-certificate", metavar="FILE", type=Path, help="speak TLS with this certificate; else a proxy must")
    add("--tls-key", metavar="FILE", type=Path, help="the certificate's key")
    add(
        "--trusted-proxies",
        metavar="CIDR[,CIDR...]",
        default=environment.get("KEYFERRY_TRUSTED_PROXIES"),
        help="proxies whose word on who asks is believed, for the rates. Default: none (KEYFERRY_TRUSTED_PROXIES)",
    )
    add(
        "--forwarded-header",
        metavar="NAME",
        default=environment.get("KEYFERRY_FORWARDED_HEADER"),
        help=f"where they say it: {' or '.join(HEADERS)}. Default: {HEADERS[0]} (KEYFERRY_FORWARDED_HEADER)",
    )
    level = environment.get("KEYFERRY_LOG_LEVEL", "info").lower()
    add("--log-level", choices=LEVELS, default=level if level in LEVELS else "info", help="Default: %(default)s")
    return parser


async def serve(settings: PageSettings) -> None:
    """Serve until told to stop. Raises KeyferryError."""
    from keyferry.web.page.certificate import ServingCertificate  # noqa: PLC0415 - slow to import
    from keyferry.web.page.client import BrokerApprovals  # noqa: PLC0415
    from keyferry.web.page.site import ApprovalPage, Site  # noqa: PLC0415

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    approvals = BrokerApprovals(settings.broker, token_file=settings.token, authorities_file=settings.authorities)
    serving = None if settings.certificate is None else ServingCertificate(*settings.certificate)
    tls = serving.context if serving is not None else None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(approvals.close)
        site = Site(settings.url, VIEWERS, settings.peers)
        await stack.enter_async_context(ApprovalPage(approvals, site, settings.host, settings.port, tls=tls))
        if serving is not None:
            watching = asyncio.create_task(serving.watch(), name="certificate")
            stack.callback(watching.cancel)
        log.info("the approval page is at %s", settings.url)
        await stop.wait()


@contextlib.contextmanager
def _ending_when_told() -> Iterator[None]:
    """Leave with 0 at SIGTERM and SIGINT also before the page is up, as the first process of a container too."""

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        os._exit(OK)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
