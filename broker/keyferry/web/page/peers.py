"""Whose request it is, for the rates: what a proxy says of it is believed of the proxies that are named, and no others.

Each proxy on the way adds whom it got the request from at the right end of a header. Whatever else stands there, its
sender may have made up. So the header is read from the right, for as long as those who wrote it are trusted.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

X_FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED: Final = "Forwarded"
HEADERS: Final = (X_FORWARDED_FOR, FORWARDED)
IPV6_SHARE: Final = 64
"""Bits of an IPv6 address that one house has in common: the others it chooses itself (RFC 4291 2.5.4)."""

_PORT: Final = r"(?::[0-9]{1,5})?"
_FOUR: Final = re.compile(rf"([0-9.]{{7,15}}){_PORT}")
_SIX: Final = re.compile(rf"\[([0-9A-Fa-f:.]{{2,45}})\]{_PORT}")
_BARE_SIX: Final = re.compile(r"([0-9A-Fa-f:.]{2,45})")
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = rf'{_WORD}=(?:{_WORD}|"[^"\\]*")'
_ELEMENT: Final = re.compile(rf"[ \t]*({_PAIR}(?:[ \t]*;[ \t]*{_PAIR})*)[ \t]*(?:,|$)")
_FOR: Final = re.compile(rf'(?:^|;)[ \t]*for=(?:({_WORD})|"([^"\\]*)")', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Peers:
    """Tells who asks, by the connection and by the header that trusted proxies write."""

    proxies: tuple[Network, ...] = ()
    """Networks of the proxies that are trusted; empty: none is, and the connection alone counts."""
    header: str = X_FORWARDED_FOR
    """The header that they write. The other one they may pass on as it came, from anybody, so it is not looked at."""

    def of(self, remote: str, values: Sequence[str]) -> str:
        """Return what the rates of a request are counted under; ``values`` are those of the header, as they came.

        It is the address nearest to us that is no trusted proxy's. What is no address, or was hidden, ends the search
        at the proxy that wrote it. Of an IPv6 address, the network counts.
        """
        asking = _address(remote)
        if asking is None:
            return remote
        if values and self._trusts(asking):
            for hop in reversed(_hops(values, self.header)):
                if hop is None:
                    break
                asking = hop
                if not self._trusts(asking):
                    break
        if asking.version == 4:  # noqa: PLR2004 - of IP
            return str(asking)
        return str(ipaddress.IPv6Network((int(asking), IPV6_SHARE), strict=False))

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self.proxies)


DIRECT: Final = Peers()
"""No proxy is trusted."""


def parse_peers(proxies: str | None, header: str | None) -> Peers:
    """Read ``--trusted-proxies`` and ``--forwarded-header``. Raises ValueError with a sentence for people."""
    networks = tuple(_network(text.strip()) for text in proxies.split(",")) if proxies else ()
    if not header:
        return Peers(networks)
    known = {name.lower(): name for name in HEADERS}.get(header.lower())
    if known is None:
        raise ValueError(f"--forwarded-header: {header!r} is not known: write {' or '.join(HEADERS)}")
    return Peers(networks, known)


def _network(text: str) -> Network:
    """Read one of ``--trusted-proxies``. Raises ValueError."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(
                f"--trusted-proxies: {text!r} is no address or network: write it as 192.0.2.7, 192.0.2.0/24 or"
                " 2001:db8::/64, several with commas between"
            ) from None
        raise ValueError(
            f"--trusted-proxies: {text!r} has bits set beyond its prefix: write {meant} for the whole network"
        ) from None
    if network.prefixlen == 0:
        raise ValueError(
            f"--trusted-proxies: {text!r} is everybody, who could then say to be anybody: name the proxies alone"
        )
    return network


def _hops(values: Sequence[str], header: str) -> list[Address | None]:
    """Return the addresses in a header, the nearest last; None for what is none."""
    if header == X_FORWARDED_FOR:
        return [_address(text.strip()) for text in ",".join(values).split(",")]
    return [hop for value in values for hop in _forwarded(value)]


def _forwarded(value: str) -> list[Address | None]:
    """Return the addresses in a header of RFC 7239 4. Where one part is malformed, no part of it can be told apart."""
    found: list[Address | None] = []
    at = 0
    while at < len(value):
        element = _ELEMENT.match(value, at)
        if element is None:
            return [None]
        named = [token or quoted for token, quoted in _FOR.findall(element[1])]
        found.append(_address(named[0]) if len(named) == 1 else None)
        at = element.end()
    return found or [None]


def _address(text: str) -> Address | None:
    """Return the address in a header's node, whose port does not count; None for a name, or what is hidden."""
    match = _FOUR.fullmatch(text) or _SIX.fullmatch(text) or _BARE_SIX.fullmatch(text)
    if match is None:
        return None
    try:
        address = ipaddress.ip_address(match[1])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
