"""``keyferry operator``: its flags, and the life of its process."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

import kopf
import typer
from aiohttp import web

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.options import leave, read_level
from keyferry.cli.outputs import LinesOutput
from keyferry.engine import Level
from keyferry.io.addresses import HostRule
from keyferry.io.file_escrow import FileEscrow
from keyferry.io.http import check_proxy
from keyferry.run.metrics import MetricsServer, parse_address
from keyferry.secret import SecretValue
from keyferry_operator.errors import ApiError
from keyferry_operator.installation import Installation, InstallationError, read_installation
from keyferry_operator.operator import Operator, OperatorSettings

log = logging.getLogger(__name__)

TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where the kubelet keeps a pod's own token fresh."""
CONNECT_PAUSE: Final = 5.0
"""Seconds until the API server is tried again at the start."""
EXECUTOR_THREADS: Final = 4
MOST_SHARDS: Final = 64
"""Each costs its holder a request every two seconds."""
EXIT_HELP: Final = "Exit codes: 0 stopped as asked · 1 failed · 2 wrong usage"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the API server."""

    info: kopf.ConnectionInfo
    token_file: Path | None
    """Read again and again, where the token is the pod's own."""


@app.command(help=f"Keep the Secrets of a cluster's ServiceIdentities fresh, until stopped.\n\n{EXIT_HELP}")
def operator(
    *,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            envvar="POD_NAMESPACE",
            help="The operator's own: private state, Lease, credentials of cluster providers.",
            show_default=False,
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(envvar="POD_NAME", help="Name of this replica. Default: the host's name.", show_default=False),
    ] = None,
    watch_namespace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE", help="Look after this namespace only (repeatable). Default: all.", show_default=False
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Permit plain HTTP, private and loopback addresses for that host (repeatable).",
            show_default=False,
        ),
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            metavar="FILE",
            help="What the installation allows (YAML): providers, proxy, targets.",
            show_default=False,
        ),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="KEYFERRY_PROXY",
            help="Reach providers by this HTTP proxy: http://[USER:PASSWORD@]HOST:PORT. Default: none.",
            show_default=False,
            show_envvar=True,
        ),
    ] = None,
    service_account_tokens: Annotated[
        bool,
        typer.Option(
            "--service-account-tokens/--no-service-account-tokens",
            help="Let identities use tokens of labelled ServiceAccounts.",
        ),
    ] = False,
    touch_pods: Annotated[
        bool,
        typer.Option(
            "--touch-pods/--no-touch-pods", help="Let identities have the pods that mount their Secret annotated."
        ),
    ] = False,
    suspend_all: Annotated[
        bool, typer.Option("--suspend-all", help="Exchange nothing: for the first start after a restore.")
    ] = False,
    escrow: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            envvar="KEYFERRY_ESCROW",
            help="Keeps answers until they are committed; it should outlive a container.",
        ),
    ] = Path("/var/lib/keyferry"),
    api_audience: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AUDIENCE",
            help="One more audience that the API server accepts; no token is asked for it (repeatable).",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            envvar="KEYFERRY_METRICS",
            help="Serve Prometheus metrics, /healthz and /readyz on HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    leader_election: Annotated[
        bool,
        typer.Option("--leader-election/--no-leader-election", help="Work only where this replica holds the Lease."),
    ] = True,
    shards: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_SHARDS,
            envvar="KEYFERRY_SHARDS",
            help="Into how many parts the work falls, by provider, that replicas share. The same for all of them.",
        ),
    ] = 1,
    level: Annotated[
        str | None,
        typer.Option(
            "--log-level",
            metavar="LEVEL",
            envvar="KEYFERRY_LOG_LEVEL",
            help="debug, info, warning or error. Default: info.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run in the foreground."""
    access = find_access()
    where = namespace or access.info.default_namespace
    if not where:
        raise CommandError("say which namespace is the operator's own: --namespace, or POD_NAMESPACE", ExitCode.INVALID)
    default = OperatorSettings(where, instance or socket.gethostname())
    settings = OperatorSettings(
        namespace=where,
        instance=default.instance,
        watch_namespaces=tuple(dict.fromkeys(watch_namespace or ())),
        allowed_hosts=_hosts(allow_host or []),
        installation=_installation(settings_file),
        proxy=_proxy(proxy),
        api_audiences=default.api_audiences | frozenset(api_audience or ()),
        service_account_tokens=service_account_tokens,
        touch_pods=touch_pods,
        suspend_all=suspend_all,
        leader_election=leader_election,
        shards=shards,
        escrow=escrow,
    )
    _check_address(metrics)
    leave(_run(settings, access, metrics, read_level(level, Level.INFO)))


def find_access() -> Access:
    """Return the pod's own access, else what KUBECONFIG or ``~/.kube/config`` says. Raises CommandError."""
    settings = kopf.OperatorSettings()
    try:
        info = kopf.login_with_service_account(settings=settings)
        if info is not None:
            # The address that the kubelet gave each pod works without the cluster's DNS, too.
            host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
            if host:
                address = f"[{host}]" if ":" in host else host
                info = dataclasses.replace(info, server=f"https://{address}:{port}")
            return Access(info, TOKEN_FILE)
        info = kopf.login_with_kubeconfig(settings=settings)
    except (kopf.LoginError, OSError, ValueError, LookupError, AttributeError) as error:
        raise CommandError(f"the kubeconfig cannot be used: {type(error).__name__}", ExitCode.INVALID) from None
    if info is None:
        raise CommandError(
            "there is no API server to talk to: this is no pod with a service account, and neither KUBECONFIG nor"
            " ~/.kube/config names a cluster",
            ExitCode.INVALID,
        )
    return Access(info, None)


def _login() -> kopf.ConnectionInfo:
    """Read the access afresh: tokens and certificates are rotated."""
    return find_access().info


def _hosts(texts: list[str]) -> tuple[HostRule, ...]:
    try:
        return tuple(HostRule.parse(text) for text in texts)
    except ValueError as error:
        raise CommandError(f"--allow-host: {error}", ExitCode.INVALID) from None


def _installation(path: Path | None) -> Installation:
    try:
        return Installation() if path is None else read_installation(path)
    except InstallationError as error:
        raise CommandError(f"--settings: {error}", ExitCode.INVALID) from None


def _proxy(url: str | None) -> SecretValue | None:
    """Check the proxy's URL at the start; it may hold a password, so no message repeats it."""
    if not url:
        return None
    secret = SecretValue(url)
    try:
        check_proxy(secret)
    except ValueError as error:
        raise CommandError(f"--proxy: {error}", ExitCode.INVALID) from None
    return secret


def _check_address(metrics: str | None) -> None:
    try:
        parse_address(metrics if metrics is not None else "9464")
    except ValueError as error:
        raise CommandError(f"--metrics: {error}", ExitCode.INVALID) from None


def _run(settings: OperatorSettings, access: Access, metrics: str | None, level: Level) -> int:
    output = LinesOutput(level)
    # Libraries stay at warnings: in their details stand whole Secrets.
    logging.getLogger("keyferry_operator").setLevel(level.upper())
    try:
        with ThreadPoolExecutor(EXECUTOR_THREADS, thread_name_prefix="keyferry-escrow") as executor:
            process = Operator(settings, _login, FileEscrow(settings.escrow, executor), token_file=access.token_file)
            return asyncio.run(serve(process, metrics, output))
    finally:
        output.close()


async def serve(process: Operator, metrics: str | None, output: LinesOutput) -> int:
    """Run ``process``, with probes at ``metrics``, until a signal; return the exit code."""
    stopping = asyncio.Event()
    with _signals(stopping):
        async with contextlib.AsyncExitStack() as stack:
            if not await _connect(process, stopping):
                return ExitCode.DONE
            stack.push_async_exit(process.__aexit__)
            process.reporter.listeners.append(output)
            await stack.enter_async_context(_metrics(process, metrics))
            running = asyncio.create_task(process.run())
            asked = asyncio.create_task(stopping.wait())
            await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            process.stop()
            await running
    return ExitCode.DONE


async def _connect(process: Operator, stopping: asyncio.Event) -> bool:
    """Wait until the API server answers; False where a signal came first.

    To end instead would have Kubernetes wait longer and longer before each start, and answers in escrow with it.
    """
    while not stopping.is_set():
        try:
            await process.__aenter__()
        except ApiError as error:
            log.error("the operator cannot start yet: %s; trying again in %.0f s", error.message, CONNECT_PAUSE)  # noqa: TRY400 - its place says nothing
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_PAUSE):
                    await stopping.wait()
        else:
            return True
    return False


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for an orderly end; a second SIGINT ends at once."""
    loop = asyncio.get_running_loop()

    def hear(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            os._exit(128 + number)
        if not stopping.is_set():
            log.info("stopping: what is being spent and committed is finished first, for at most a minute")
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _Probes(MetricsServer):
    """Metrics, among them whose the shards are, ``/healthz``, and ``/readyz``: a standby is ready too, for rollouts."""

    def __init__(self, process: Operator, address: str) -> None:
        super().__init__(process.engine, address)
        self._process = process
        self._count = process.settings.shards

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if request.path != "/readyz" or request.method not in {"GET", "HEAD"}:
            answer = await super()._handle(request)
            if request.path == "/metrics" and isinstance(answer.body, bytes) and answer.status == HTTPStatus.OK:
                answer.body += self._shards()
            return answer
        ready = self._process.ready
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "not ready\n")

    def _shards(self) -> bytes:
        """Return the series of the shards in the Prometheus text format."""
        held = self._process.engine.held_shards
        lines = [
            "# HELP keyferry_shard_held 1 where this replica works on the shard, else 0.",
            "# TYPE keyferry_shard_held gauge",
            *(f'keyferry_shard_held{{shard="{each}"}} {int(each in held)}' for each in range(self._count)),
        ]
        return ("\n".join(lines) + "\n").encode()


@contextlib.asynccontextmanager
async def _metrics(process: Operator, address: str | None) -> AsyncIterator[None]:
    if address is None:
        yield
        return
    server = _Probes(process, address)
    await server.start()
    process.reporter.listeners.append(server)
    try:
        log.info("metrics are at %s", server.url)
        yield
    finally:
        process.reporter.listeners.remove(server)
        await server.close()
