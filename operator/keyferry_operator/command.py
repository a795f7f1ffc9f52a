"""``keyferry operator``: its flags."""

import asyncio
import dataclasses
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import kopf
import typer

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.options import leave, page_url, read_level
from keyferry.cli.outputs import LinesOutput
from keyferry.engine import Level
from keyferry.io.addresses import HostRule
from keyferry.io.file_escrow import FileEscrow
from keyferry.io.http import check_proxy
from keyferry.secret import SecretValue
from keyferry.web.serving import parse_address
from keyferry_operator.api.broker import BrokerSettings
from keyferry_operator.installation import Installation, InstallationError, read_installation
from keyferry_operator.names import SERVICE
from keyferry_operator.operator import Operator, OperatorSettings
from keyferry_operator.process import serve

TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where the kubelet keeps a pod's own token fresh."""
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
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            envvar="KEYFERRY_BROKER",
            help="Serve the broker API for sidecars over HTTPS on HOST:PORT. Default: not at all.",
            show_default=False,
        ),
    ] = None,
    broker_certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="KEYFERRY_BROKER_CERTIFICATE",
            help="Serve it with tls.crt and tls.key of this directory, and have sidecars trust its ca.crt."
            " Default: the operator makes and rotates a certificate.",
            show_default=False,
        ),
    ] = None,
    broker_service: Annotated[
        str,
        typer.Option(metavar="NAME", help="The Service by which sidecars reach it, in the operator's namespace."),
    ] = SERVICE,
    broker_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="One more name or address for the certificate that the operator makes (repeatable).",
            show_default=False,
        ),
    ] = None,
    webhook: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Answer for the MutatingWebhookConfiguration of this name, which puts sidecars into pods. It needs"
            " --broker, and sidecar.image in --settings.",
            show_default=False,
        ),
    ] = "",
    page: Annotated[
        str | None,
        typer.Option(
            "--page-url",
            metavar="URL",
            envvar="KEYFERRY_PAGE_URL",
            help="Where people find the approval page (keyferry page): https://HOST, without a path. Default: there is"
            " none.",
            show_default=False,
        ),
    ] = None,
    page_account: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The approval page's ServiceAccount in the operator's namespace, which may ask the broker API for it.",
            show_default=False,
        ),
    ] = "",
    count_pods: Annotated[
        bool,
        typer.Option(
            "--count-pods/--no-count-pods", help="Count the pods that ask for a sidecar and came in without one."
        ),
    ] = False,
    broker_check_address: Annotated[
        bool,
        typer.Option(
            "--broker-check-address/--no-broker-check-address",
            help="Refuse a pod's token that comes from another address than the pod's.",
        ),
    ] = False,
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
        page_url=page_url(page, "--page-url") if page else "",
        webhook=webhook,
        count_pods=count_pods,
        broker=_broker(
            broker,
            BrokerSettings(
                certificate=broker_certificate,
                service=broker_service,
                hosts=tuple(broker_host or ()),
                check_address=broker_check_address,
                page_account=page_account,
            ),
        ),
    )
    _check_address(metrics)
    if webhook and (settings.broker is None or settings.installation.sidecar is None):
        raise CommandError("--webhook needs --broker, and sidecar.image in the file of --settings", ExitCode.INVALID)
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


def _broker(address: str | None, settings: BrokerSettings) -> BrokerSettings | None:
    if address is None:
        return None
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise CommandError(f"--broker: {error}", ExitCode.INVALID) from None
    return dataclasses.replace(settings, host=host, port=port)


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
