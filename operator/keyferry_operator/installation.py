"""What an installation allows: the settings file of ``keyferry operator --settings``, which the chart writes.

Flags are for what every operator needs; what is a list of things with parts of their own stands in this file, so that
chart values reach the operator as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from keyferry.io.addresses import HostRule
from keyferry.spec.common import QUALIFIED_PATTERN, Duration, Flag, Model, Text, rule_error
from keyferry.spec.documents import read_documents
from keyferry.spec.explain import explain
from keyferry.spec.frozen import EMPTY
from keyferry.spec.problem import Problem, join_path
from keyferry_operator.injection.settings import ANY_USER

if TYPE_CHECKING:
    from pathlib import Path

ANY: Final = "*"
_DOMAIN: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_ALLOWED_KEY: Final = re.compile(rf"{QUALIFIED_PATTERN[1:-1]}|{_DOMAIN}/\*|\*")


class InstallationError(Exception):
    """The settings file cannot be used; the message says why, for people."""


def _check_host(text: str) -> str:
    try:
        rule = HostRule.parse(text)
    except ValueError:
        raise rule_error("must be a host name, an IPv4 address, or an IPv6 address in brackets") from None
    if rule.port is not None:
        raise rule_error("must not hold a port; it belongs to port")
    return rule.host


def _check_key(text: str) -> str:
    if _ALLOWED_KEY.fullmatch(text) is None:
        raise rule_error("must be a key such as example.org/team or team, domain/*, or *")
    return text


def _network(value: object) -> object:
    try:
        return ip_network(value) if isinstance(value, str) else value
    except ValueError:
        raise rule_error("must be a network such as 10.0.0.0/8, with no bits set after its prefix") from None


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
AllowedKey = Annotated[str, Field(max_length=317), AfterValidator(_check_key)]
"""A label or annotation key, ``domain/*``, or ``*``."""


class AllowedHost(Model):
    """A host whose private and loopback addresses are open."""

    host: Annotated[str, AfterValidator(_check_host)] = Field(description="Host name or address; no scheme, no path.")
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = Field(
        default=None, description="The one port. Unset: every port."
    )
    plain_http: Flag = Field(default=False, alias="plainHTTP", description="Permit plain HTTP as well.")
    namespaces: tuple[str, ...] = Field(
        default=(), description="For TokenProviders of these namespaces. Empty: for every provider."
    )

    def rule(self) -> HostRule:
        """Return it as the address policy wants it."""
        return HostRule(self.host, self.port, self.plain_http)


class ProviderSettings(Model):
    """Where credentials may be sent."""

    allowed_hosts: tuple[AllowedHost, ...] = Field(default=(), description="Hosts that are open though not public.")
    denied_cidrs: tuple[Network, ...] = Field(
        default=(), alias="deniedCIDRs", description="Networks that are closed whatever is allowed."
    )


class ProxySettings(Model):
    """What goes past the proxy, whose URL is no setting of this file: it may hold a password."""

    no_proxy: tuple[str, ...] = Field(default=(), description="HOST[:PORT] of providers that are asked directly.")

    def rules(self) -> tuple[HostRule, ...]:
        """Return them as rules. Raises `ValueError`."""
        return tuple(HostRule.parse(text) for text in self.no_proxy)


class TargetSettings(Model):
    """What identities may write on the Secrets that are published for them."""

    labels: tuple[AllowedKey, ...] = Field(default=(), description="Keys of labels: a key, domain/*, or *.")
    annotations: tuple[AllowedKey, ...] = Field(default=(), description="Keys of annotations: a key, domain/*, or *.")


class SidecarSettings(Model):
    """What the sidecars are that the webhook puts into pods."""

    image: Text = Field(description="Their image.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When it is pulled, as Kubernetes has it."
    )
    resources: Mapping[str, Any] = Field(
        default=EMPTY, description="Their requests and limits, as Kubernetes has them."
    )
    run_as_user: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=ANY_USER,
        description="Whom they run as where the pod does not say, or says root. null leaves it to the cluster.",
    )
    host_network: Flag = Field(
        default=False, description="Let pods on their node's network have one; the whole node can reach its endpoints."
    )
    minimum_remaining: Duration | None = Field(
        default=None, description="How long tokens must be good for when containers start, where a pod does not say."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="What they log.")


class Installation(Model):
    """The settings file."""

    providers: ProviderSettings = Field(default=ProviderSettings(), description="Where credentials may be sent.")
    proxy: ProxySettings = Field(default=ProxySettings(), description="What goes past the proxy.")
    targets: TargetSettings = Field(default=TargetSettings(), description="What published Secrets may carry.")
    sidecar: SidecarSettings | None = Field(
        default=None, description="What the webhook puts into pods. Unset: there is no webhook."
    )


def read_installation(path: Path) -> Installation:
    """Read the settings file (YAML). Raises InstallationError, whose message names the field."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InstallationError(f"{path} cannot be read: {error.strerror}") from None
    value: object = {}
    for document in read_documents(raw, str(path)):
        if isinstance(document, Problem):
            raise InstallationError(str(document))
        for fault in document.faults:
            raise InstallationError(f"{path}:{fault.line}: {fault.message}")
        value = document.value
    try:
        found = Installation.model_validate(value, by_alias=True, by_name=False)
        found.proxy.rules()
    except ValidationError as error:
        mistakes = "; ".join(f"{join_path(field)} {message}" for field, message in explain(error, Installation))
        raise InstallationError(f"{path}: {mistakes}") from None
    except ValueError as error:
        raise InstallationError(f"{path}: proxy.noProxy: {error}") from None
    return found
