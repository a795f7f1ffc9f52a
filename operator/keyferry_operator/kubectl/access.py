"""Which API server, and as whom: what a kubeconfig says, read by the ``kubernetes`` package.

That package knows certificates, tokens, exec credential plug-ins and OIDC; of what kubectl knows besides, impersonation
(``as``, ``as-groups``) is read here: without it a command would act with more rights than its user meant.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_incluster_config
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

from keyferry.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_PATH: Final = "~/.kube/config"
POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LONGEST: Final = 300
"""Characters that are shown of what a credential plug-in says."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach an API server, and as whom."""

    server: str
    tls: ssl.SSLContext
    namespace: str
    """The context's own; ``default`` where it names none."""
    authorization: Callable[[], str]
    """Returns the value of the Authorization header, renewed where it lapsed; empty where a certificate speaks."""
    proxy: str | None = None
    """The context's ``proxy-url``; without it HTTPS_PROXY and NO_PROXY count."""
    server_name: str | None = None
    """The name in the server's certificate, where it is another than the address."""
    impersonation: tuple[tuple[str, str], ...] = ()
    """Headers that ask to be somebody else."""


@dataclass(frozen=True, slots=True)
class Person:
    """Whom the options of a command line ask to be."""

    user: str | None = None
    groups: tuple[str, ...] = ()

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers of impersonation (none without a user)."""
        if not self.user:
            return ()
        return (("Impersonate-User", self.user), *(("Impersonate-Group", group) for group in self.groups))


def load(kubeconfig: Path | None = None, context: str | None = None, person: Person | None = None) -> Access:
    """Read the kubeconfig that is named, else KUBECONFIG, else ``~/.kube/config``, else the pod's own access.

    Raises CommandError with what is wrong, and never with anything that stands in the file.
    """
    person = person or Person()
    paths = str(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG") or DEFAULT_PATH
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and not _any_there(paths):
        return _pod(person)
    if not _any_there(paths):
        raise CommandError(f"there is no kubeconfig at {paths}: name one with --kubeconfig", ExitCode.INVALID)
    configuration = Configuration()
    try:
        with _complaints() as heard:
            merger = KubeConfigMerger(paths)  # type: ignore[no-untyped-call]
            loader = KubeConfigLoader(  # type: ignore[no-untyped-call]
                merger.config, context, config_persister=merger.save_changes
            )
            chosen: dict[str, Any] = loader.current_context["context"]
            user = _user(merger, chosen)
            loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise CommandError(f"the kubeconfig cannot be used: {_line(str(error))}", ExitCode.INVALID) from None
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # What the library says of such a file may quote it.
        raise CommandError(
            f"the kubeconfig {paths} cannot be read ({type(error).__name__})", ExitCode.INVALID
        ) from None
    if heard:
        raise CommandError(f"the credential plug-in of the kubeconfig failed: {_line(heard[0])}")
    asked = person if person.user else Person(user.get("as"), tuple(user.get("as-groups") or ()))
    return _access(configuration, str(chosen.get("namespace") or "default"), asked, getattr(loader, "proxy", None))


def _pod(person: Person) -> Access:
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        namespace = POD_NAMESPACE.read_text().strip()
    except (ConfigException, OSError):
        raise CommandError("there is no kubeconfig, and this pod has no service account", ExitCode.INVALID) from None
    return _access(configuration, namespace, person)


def _access(configuration: Configuration, namespace: str, person: Person, proxy: str | None = None) -> Access:
    def authorization() -> str:
        held = configuration.auth_settings().get("BearerToken")
        return str(held["value"] or "") if held is not None else ""

    try:
        tls = _tls(configuration)
    except (OSError, ssl.SSLError) as error:
        raise CommandError(
            f"a certificate of the kubeconfig cannot be used ({type(error).__name__})", ExitCode.INVALID
        ) from None
    return Access(
        server=configuration.host.rstrip("/"),
        tls=tls,
        namespace=namespace,
        authorization=authorization,
        proxy=proxy or None,
        server_name=configuration.tls_server_name or None,
        impersonation=person.headers(),
    )


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    # Authorities of clusters are often older than what Python 3.13 began to ask of a certificate; kubectl takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:  # insecure-skip-tls-verify: the user's own decision
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    return context


def _user(merger: KubeConfigMerger, context: dict[str, Any]) -> dict[str, Any]:
    for item in merger.config.value.get("users") or ():
        if item["name"] == context.get("user"):
            found: dict[str, Any] = getattr(item, "value", item)["user"] or {}
            return getattr(found, "value", found)
    return {}


def _any_there(paths: str) -> bool:
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Hear what the library logs of a plug-in that failed; it would go on without credentials."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                heard.append(record.getMessage())

    root, ear = logging.getLogger(), Ear()
    before = list(root.handlers)
    root.handlers[:] = [ear]
    try:
        yield heard
    finally:
        root.handlers[:] = before


def _line(text: str) -> str:
    """Return one printable line of what somebody else's program said.

    The library names a place in a kubeconfig by all that stands there, tokens too: from the first brace on it is cut.
    """
    if "NoneType" in text:  # the library stumbles over a plug-in that told the terminal itself
        return "what it said stands above"
    text, brace, _ = text.partition("{")
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return plain[:LONGEST] + ("…" if brace or len(plain) > LONGEST else "")
