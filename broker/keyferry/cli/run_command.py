"""``keyferry run``: the broker itself."""

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, CommandError, ExitCode
from keyferry.engine.status import Level
from keyferry.web.page.peers import HEADERS, Peers, parse_peers

if TYPE_CHECKING:
    from keyferry.cli.running import RunOptions

app = typer.Typer(add_completion=False)

LOOPBACK_HOSTS: Final = ("127.0.0.1", "::1")
SWITCH_INTERVAL: Final = 0.0005
"""Seconds for which the event loop may keep the interpreter from a thread that comes back from the disk.

A token's files take dozens of calls, and each of them waits for that: Python's own 5 ms are too long for them.
"""


@app.command(help=f"Keep the tokens of all identities under PATH fresh, until stopped.\n\n{EXIT_HELP}")
def run(
    paths: opt.Paths = None,
    *,
    out: opt.Out = None,
    state: opt.State = None,
    secrets: opt.Secrets = None,
    secret_env: opt.SecretEnv = None,
    service_account_token: opt.ServiceAccountTokens = None,
    once: Annotated[
        bool, typer.Option("--once", help="End as soon as all tokens are fresh, or cannot be; never ask anybody.")
    ] = False,
    timeout: opt.Timeout = "60s",
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR", envvar="KEYFERRY_METRICS", help="Serve Prometheus metrics on HOST:PORT.", show_default=False
        ),
    ] = None,
    loopback: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            envvar="KEYFERRY_LOOPBACK",
            help="Serve loopback endpoints on [HOST:]PORT, for formats AIoD and LabArchives.",
            show_default=False,
        ),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            envvar="KEYFERRY_PAGE",
            help="Serve the approval page on [HOST:]PORT.",
            show_default=False,
        ),
    ] = None,
    page_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="KEYFERRY_PAGE_URL",
            help="Where people find the approval page: https://HOST, without a path. Default: the loopback address.",
            show_default=False,
        ),
    ] = None,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(
            metavar="CIDR,...",
            envvar="KEYFERRY_TRUSTED_PROXIES",
            help="Proxies before the page whose word on who asks is believed, for the rates.",
            show_default=False,
        ),
    ] = None,
    forwarded_header: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="KEYFERRY_FORWARDED_HEADER",
            help=f"The header in which they say it: {' or '.join(HEADERS)}. Default: {HEADERS[0]}.",
            show_default=False,
        ),
    ] = None,
    allow_host: opt.AllowHosts = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            envvar="KEYFERRY_NAMESPACE",
            help="Namespace of resources that name none. Default: default.",
            show_default=False,
        ),
    ] = None,
    log_level: opt.LogLevel = None,
) -> None:
    """Run in the foreground."""
    if not paths:
        raise CommandError("name the resource files: keyferry run PATH... (or KEYFERRY_RESOURCES)", ExitCode.INVALID)
    given = opt.Options(
        namespace=namespace,
        state=state,
        out=out,
        resources=paths,
        secrets=secrets,
        secret_env=secret_env,
        service_account_tokens=service_account_token,
        allow_hosts=allow_host,
    )
    level = opt.read_level(log_level, Level.INFO) if log_level else None
    if metrics is not None:
        opt.address(metrics, "--metrics")
    patience = opt.duration(timeout, "--timeout")
    served = _page(page, page_url, once=once)
    from keyferry.cli.running import RunOptions  # noqa: PLC0415 - slow to import

    options = RunOptions(
        once=patience if once else None,
        metrics=metrics,
        loopback=_loopback(loopback, once=once),
        page=served[0] if served is not None else None,
        peers=_peers(trusted_proxies, forwarded_header),
    )
    opt.leave(_run(given, options, served[1] if served is not None else "", level))


def _run(given: opt.Options, options: "RunOptions", page_url: str, level: Level | None) -> int:
    from keyferry.cli.outputs import make_output  # noqa: PLC0415 - slow to import
    from keyferry.cli.running import run_broker  # noqa: PLC0415

    settings = replace(given.run_settings(), page_url=page_url)
    output = make_output(level)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        return asyncio.run(run_broker(settings, options, output))
    finally:
        output.close()


def _loopback(text: str | None, *, once: bool) -> tuple[str, int] | None:
    """Read ``--loopback``: an address that only this machine can reach. Raises CommandError."""
    if text is None:
        return None
    host, port = opt.address(text, "--loopback")
    if host not in LOOPBACK_HOSTS:
        raise CommandError(
            f"--loopback: {host} is not the loopback: name a port of {' or '.join(LOOPBACK_HOSTS)}", ExitCode.INVALID
        )
    if once:
        raise CommandError("--loopback and --once exclude each other: nothing would be served", ExitCode.INVALID)
    return host, port


def _peers(proxies: str | None, header: str | None) -> Peers:
    """Read ``--trusted-proxies`` and ``--forwarded-header``. Raises CommandError."""
    try:
        return parse_peers(proxies, header)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.INVALID) from None


def _page(text: str | None, url: str | None, *, once: bool) -> tuple[tuple[str, int], str] | None:
    """Read ``--page`` and ``--page-url``: where to listen, and where people find it. Raises CommandError."""
    if text is None:
        if url is not None:
            raise CommandError("--page-url goes with --page ADDR, which says where to listen", ExitCode.INVALID)
        return None
    host, port = opt.address(text, "--page")
    if once:
        raise CommandError("--page and --once exclude each other: with --once nobody is asked", ExitCode.INVALID)
    if url is None and (host not in LOOPBACK_HOSTS or not port):
        raise CommandError("--page: say with --page-url where people find the page", ExitCode.INVALID)
    from keyferry.web.serving import base_url  # noqa: PLC0415 - slow to import

    return (host, port), opt.page_url(url or base_url(host, port), "--page-url")
