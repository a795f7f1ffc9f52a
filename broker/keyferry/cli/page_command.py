"""``keyferry page``: the approval page of a cluster, without rights of its own."""

import asyncio
import contextlib
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import CommandError, ExitCode

app = typer.Typer(add_completion=False)

VIEWERS: Final = (
    "A Kubernetes token whose bearer may list ServiceIdentities, such as one that"
    " “kubectl create token NAME --duration 10m” prints for a service account."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PageOptions:
    """Where the page is, and whom it asks."""

    host: str
    port: int
    url: str
    broker: str
    token: Path
    authorities: Path | None
    certificate: tuple[Path, Path] | None


@app.command(help="Serve the page on which people approve and log in, in a cluster.")
def page(
    *,
    listen: Annotated[str, typer.Option(metavar="ADDR", help="Serve on HOST:PORT.")] = "127.0.0.1:8080",
    url: Annotated[
        str,
        typer.Option(
            "--page-url",
            "--url",
            metavar="URL",
            envvar="KEYFERRY_PAGE_URL",
            help="Where people find the page: https://HOST, without a path.",
        ),
    ],
    broker: Annotated[str, typer.Option(metavar="URL", envvar="KEYFERRY_BROKER", help="The operator's broker API.")],
    token: Annotated[
        Path, typer.Option(metavar="FILE", help="The page's own service-account token, for the audience keyferry.")
    ],
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Authorities of the broker API. Default: the system's.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Speak TLS with this certificate; else a proxy must.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key.")] = None,
    log_level: opt.LogLevel = None,
) -> None:
    """Run in the foreground."""
    opt.set_up_stderr(log_level or "info")
    host, port = opt.address(listen, "--listen")
    if (tls_certificate is None) != (tls_key is None):
        raise CommandError("--tls-certificate and --tls-key go together", ExitCode.INVALID)
    pair = (tls_certificate, tls_key) if tls_certificate is not None and tls_key is not None else None
    given = PageOptions(host, port, opt.page_url(url, "--page-url"), _broker(broker), token, ca, pair)
    opt.leave(asyncio.run(serve(given)))


def _broker(text: str) -> str:
    if not text.startswith("https://"):
        raise CommandError(f"--broker: {text!r} does not begin with https://", ExitCode.INVALID)
    return text


async def serve(options: PageOptions) -> int:
    """Serve until SIGTERM or SIGINT. Raises KeyferryError."""
    from keyferry.web.page.certificate import ServingCertificate  # noqa: PLC0415 - slow to import
    from keyferry.web.page.client import BrokerApprovals  # noqa: PLC0415
    from keyferry.web.page.site import ApprovalPage, Site  # noqa: PLC0415

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    approvals = BrokerApprovals(options.broker, token_file=options.token, authorities_file=options.authorities)
    serving = None if options.certificate is None else ServingCertificate(*options.certificate)
    tls = serving.context if serving is not None else None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(approvals.close)
        site = Site(options.url, VIEWERS)
        await stack.enter_async_context(ApprovalPage(approvals, site, options.host, options.port, tls=tls))
        if serving is not None:
            watching = asyncio.create_task(serving.watch(), name="certificate")
            stack.callback(watching.cancel)
        log.info("the approval page is at %s", options.url)
        await stop.wait()
    return 0
