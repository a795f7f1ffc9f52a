"""Which hosts and addresses Keyferry may talk to.

Whoever may write a provider chooses where a credential is sent and what the broker's place in the network lets it
reach (server-side request forgery). So public addresses over TLS are open, everything else is closed until the
installation opens it for a host, and link-local addresses and the clouds' metadata services are never reached.

The ranges are those of the IANA special-purpose address registries (RFC 6890), written out here because the
standard library's ``is_global`` changes from one Python to the next.
"""

from __future__ import annotations

import enum
import re
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from keyferry.errors import NotSent, Reason, RetryClass

if TYPE_CHECKING:
    from collections.abc import Iterator

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_NUMBER: Final = re.compile(r"\d+|0x[0-9a-f]*")
"""A last label that resolvers read as an IPv4 address in decimal, octal or hexadecimal (WHATWG URL, 3.5)."""
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")
_MAX_PORT: Final = 65535


class Kind(enum.StrEnum):
    """What an address is for; the value is the word that people read."""

    PUBLIC = "public"
    PRIVATE = "private"
    SHARED = "carrier-grade NAT"
    LOOPBACK = "loopback"
    UNSPECIFIED = "unspecified"
    MULTICAST = "multicast"
    DOCUMENTATION = "documentation"
    BENCHMARKING = "benchmarking"
    RESERVED = "reserved"
    LINK_LOCAL = "link-local"
    METADATA = "cloud metadata"


NEVER: Final = frozenset({Kind.LINK_LOCAL, Kind.METADATA})
"""Closed whatever the installation allows: these addresses hand out the machine's own credentials."""

_RANGES: Final[tuple[tuple[Network, Kind], ...]] = tuple(
    (ip_network(text), kind)
    for kind, texts in (
        # The metadata services that do not live in 169.254.0.0/16: Azure's, Alibaba's, Oracle's, Amazon's, Google's.
        (
            Kind.METADATA,
            "168.63.129.16/32 100.100.100.200/32 192.0.0.192/32 fd00:ec2::/32 fd20:ce::254/128 fd00:42::42/128",
        ),
        (Kind.LINK_LOCAL, "169.254.0.0/16 fe80::/10"),
        (Kind.LOOPBACK, "127.0.0.0/8 ::1/128"),
        (Kind.UNSPECIFIED, "0.0.0.0/8 ::/128"),
        (Kind.PRIVATE, "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10 64:ff9b:1::/48"),
        (Kind.SHARED, "100.64.0.0/10"),
        (Kind.DOCUMENTATION, "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"),
        (Kind.BENCHMARKING, "198.18.0.0/15 2001:2::/48"),
        (Kind.MULTICAST, "224.0.0.0/4 ff00::/8"),
        (Kind.RESERVED, "192.0.0.0/24 192.88.99.0/24 240.0.0.0/4 2001::/23"),
        (Kind.PUBLIC, "0.0.0.0/0 2000::/3"),
        (Kind.RESERVED, "::/0"),
    )
    for text in texts.split()
)
"""The first range that holds an address names its kind."""

_MAPPED: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("::ffff:0:0:0/96"), IPv6Network("::/96"))
_NAT64: Final = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = IPv6Network("64:ff9b:1::/48")
_DENIED: Final = "denied"
_NEVER_ALLOWED: Final = "which is never allowed"
_PADDING: Final = 256
"""Below this an embedded address is a few bits of another form's padding, or one of ``::`` and ``::1``."""


@dataclass(frozen=True, slots=True, order=True)
class HostRule:
    """One host that the installation opens: its private or loopback addresses, and plain HTTP where so said."""

    host: str
    port: int | None = None
    """The one port, or every port."""
    plain_http: bool = True

    @classmethod
    def parse(cls, text: str, *, plain_http: bool = True) -> HostRule:
        """Read ``HOST[:PORT]``, an IPv6 address in brackets; raise `ValueError` with a sentence for people."""
        try:
            host, port = _split_host(text)
        except ValueError as exc:
            raise ValueError(f"{text!r} is not HOST[:PORT]: {exc}") from None
        return cls(host, port, plain_http)

    def covers(self, host: str, port: int) -> bool:
        """Say whether a host, as `check_url` writes it, and a port are meant."""
        return self.host == host and self.port in {None, port}

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be requested, in the one spelling that was checked."""

    url: str = field(repr=False)
    host: str
    """Lower case, without a trailing dot; an IPv6 address in brackets."""
    port: int

    @property
    def named(self) -> bool:
        """Tell whether the host is a name, which the DNS is asked for."""
        return _literal(self.host) is None


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What is open. Hashable, so that connections can be shared by those who may open the same."""

    allowed: tuple[HostRule, ...] = ()
    private: bool = False
    """Private and carrier-grade NAT addresses are open to every host, over TLS; loopback is not."""
    denied: tuple[Network, ...] = ()
    """Closed whatever is allowed."""
    advice: str = "--allow-host {host} would allow it"
    """How the reader opens a host; ``{host}`` becomes ``HOST:PORT``, ``{name}`` and ``{port}`` its parts."""
    http_advice: str = ""
    """How the reader permits plain HTTP; empty: by the same."""
    denial: str = _NEVER_ALLOWED
    """What is said of an address of ``denied``."""

    def check_url(self, url: str) -> Target:
        """Return where the URL leads, if it may be requested as far as one can tell without asking the DNS.

        Raises `NotSent` with `Reason.HOST_NOT_ALLOWED`, or with `Reason.INVALID_SPEC` where it is no usable URL.
        """
        target, scheme = _parse_url(url)
        rules = self._rules(target.host, target.port)
        if scheme == "http" and not any(rule.plain_http for rule in rules):
            how = _filled(self.http_advice or self.advice, target.host, target.port)
            raise _not_allowed(
                f"{target.host}:{target.port}: plain HTTP shows credentials to the network; use https ({how})"
            )
        address = _literal(target.host)
        if address is not None:
            self.check_addresses(target.host, target.port, [address])
        return target

    def check_addresses(self, host: str, port: int, addresses: list[Address]) -> list[Address]:
        """Return the addresses of a host that may be connected to, in their order.

        Raises `NotSent` with `Reason.HOST_NOT_ALLOWED` where none may.
        """
        host = host.lower().rstrip(".")
        ruled = bool(self._rules(host, port))
        kept = [address for address in addresses if self._objection(address, ruled=ruled) is None]
        if kept or not addresses:
            return kept
        first = addresses[0]
        kind, final = self._objection(first, ruled=ruled) or (Kind.RESERVED, True)
        where = "a closed address" if _literal(host) else f"it resolves to a closed address, {first}"
        ending = _NEVER_ALLOWED if final else _filled(self.advice, host, port)
        raise _not_allowed(f"{host}:{port}: {where} ({kind}); {self.denial if kind == _DENIED else ending}")

    def _rules(self, host: str, port: int) -> list[HostRule]:
        return [rule for rule in self.allowed if rule.covers(host, port)]

    def _objection(self, address: Address, *, ruled: bool) -> tuple[str, bool] | None:
        """Return what is wrong with an address, and whether that is final."""
        every = (address, *_embedded(address))
        kinds = [kind_of(one) for one in every]
        for one, kind in zip(every, kinds, strict=True):
            if kind in NEVER:
                return kind, True
            if any(one in network for network in self.denied if network.version == one.version):
                return _DENIED, True
        if ruled:
            return None
        opened = {Kind.PUBLIC} | ({Kind.PRIVATE, Kind.SHARED} if self.private else set())
        # The wrapping of an embedded address is judged by what it leads to.
        judged = kinds[1:] if len(kinds) > 1 and address not in _NAT64_LOCAL else kinds
        return next(((kind, False) for kind in judged if kind not in opened), None)


class GuardedResolver(AbstractResolver):
    """Asks another resolver and passes on only what the policy permits, so that what was checked is connected to."""

    def __init__(self, policy: AddressPolicy, inner: AbstractResolver, *, proxy: HostRule | None = None) -> None:
        self._policy = policy
        self._inner = inner
        self._proxy = proxy
        """The installation's own proxy, whose address nobody else chose."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the permitted addresses; raise `AddressNotAllowedError` where the name has none."""
        found = await self._inner.resolve(host, port, family)
        if self._proxy is not None and self._proxy.covers(host.lower().rstrip("."), port):
            return found
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        addresses = [ip_address(entry["host"]) for entry in found]
        try:
            kept = set(self._policy.check_addresses(host, port, addresses))
        except NotSent as refusal:
            raise AddressNotAllowedError(refusal) from None
        return [entry for entry, address in zip(found, addresses, strict=True) if address in kept]

    async def close(self) -> None:
        """Close the other resolver."""
        await self._inner.close()


class AddressNotAllowedError(OSError):
    """Carries the refusal through the HTTP library, which passes on only an `OSError` from its resolver."""

    def __init__(self, refusal: NotSent) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def kind_of(address: Address) -> Kind:
    """Return what an address is for, not looking at an IPv4 address that it may embed."""
    return next(kind for network, kind in _RANGES if address.version == network.version and address in network)


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that packets to an IPv6 address may end up at.

    IPv4-mapped, -translated and -compatible (RFC 4291 2.5.5, RFC 2765), 6to4 (RFC 3056), Teredo (RFC 4380: server
    and client), NAT64 (RFC 6052; RFC 8215 for the local prefix, whose length each network chooses).
    """
    if isinstance(address, IPv4Address):
        return
    value = int(address)
    low = value & 0xFFFF_FFFF
    if address in _NAT64 or (any(address in network for network in _MAPPED) and value >= _PADDING):
        yield IPv4Address(low)
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address.teredo is not None:
        yield from address.teredo
    elif address in _NAT64_LOCAL:
        # RFC 6052 2.2: bits 64 to 71 are left out, wherever the prefix ends.
        after_48 = (value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF
        after_56 = (value >> 64 & 0xFF) << 24 | value >> 32 & 0xFF_FFFF
        after_64 = value >> 24 & 0xFFFF_FFFF
        yield from (IPv4Address(part) for part in (low, after_48, after_56, after_64) if part >= _PADDING)


def _parse_url(url: str) -> tuple[Target, str]:
    """Take a URL apart with the parser that the HTTP library uses, and refuse what others may read differently."""
    if _UNSAFE.search(url):
        raise _unusable("it holds a space, a backslash or a control character")
    try:
        parsed = URL(url)
        scheme, port = parsed.scheme, parsed.port
        host, _ = _split_host(_bracketed(parsed.raw_host or ""))
    except ValueError as exc:
        raise _unusable(str(exc)) from None
    if scheme not in {"https", "http"} or not port:
        raise _unusable("it must begin with https:// and have a port from 1 to 65535")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise _unusable("it holds a user name or password; those belong in a Secret")
    return Target(str(parsed), host, port), scheme


def _split_host(text: str) -> tuple[str, int | None]:
    """Return a host in its one spelling and the port; the errors do not repeat the text."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^\[\]:]*)(?::(\d{1,5}))?", text)
    if match is None:
        raise ValueError("an IPv6 address belongs in brackets, and a port is a number")
    host, port = match[1], match[2]
    if port is not None and not 1 <= int(port) <= _MAX_PORT:
        raise ValueError("a port is a number from 1 to 65535")
    return _spelling(host), None if port is None else int(port)


def _spelling(host: str) -> str:
    if host.startswith("["):
        if "%" in host:
            raise ValueError("an address with a zone is link-local, which is never allowed")
        try:
            return f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ValueError("what is in the brackets is not an IPv6 address") from None
    if not host.isascii():
        # The HTTP library's own IDNA, so that both spell a name the same.
        host = URL.build(scheme="https", host=host).raw_host or ""
    dotted, host = host.lower(), host.lower().removesuffix(".")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return str(IPv4Address(dotted))
        except ValueError:
            raise ValueError("an IPv4 address is four decimal numbers with dots between") from None
    if _NAME.fullmatch(host) is None:
        raise ValueError("the host is not a DNS name or an address")
    return host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _filled(advice: str, host: str, port: int) -> str:
    for name, value in (("{host}", f"{host}:{port}"), ("{name}", host), ("{port}", str(port))):
        advice = advice.replace(name, value)
    return advice


def _unusable(why: str) -> NotSent:
    return NotSent(
        f"this is not a URL that can be requested: {why}",
        code="invalid_url",
        reason=Reason.INVALID_SPEC,
        retry=RetryClass.NEEDS_CONFIGURATION,
    )


def _not_allowed(message: str) -> NotSent:
    return NotSent(
        message, code="host_not_allowed", reason=Reason.HOST_NOT_ALLOWED, retry=RetryClass.NEEDS_CONFIGURATION
    )
