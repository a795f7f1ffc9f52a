"""``keyferry run``: the broker itself."""

import asyncio
from typing import Annotated, Final

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, CommandError, ExitCode
from keyferry.engine.status import Level

app = typer.Typer(add_completion=False)

LOOPBACK_HOSTS: Final = ("127.0.0.1", "::1")


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
    opt.leave(_run(given, patience if once else None, metrics, _loopback(loopback, once=once), level))


def _run(
    given: opt.Options,
    once: float | None,
    metrics: str | None,
    loopback: tuple[str, int] | None,
    level: Level | None,
) -> int:
    from keyferry.cli.outputs import make_output  # noqa: PLC0415 - slow to import
    from keyferry.cli.running import RunOptions, run_broker  # noqa: PLC0415

    settings = given.run_settings()
    output = make_output(level)
    try:
        return asyncio.run(run_broker(settings, RunOptions(once, metrics, loopback), output))
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
