"""Where connections may go: a host's addresses are looked up once, checked, and the checked address is connected to.

An allow-listed name says nothing about the address behind it: whoever answers for the name could point it at a
server of our own network, and answer the next question differently. Loopback, link-local and other special
addresses are refused, private ones unless the site names their network. Through a proxy of the environment it is the
proxy that looks names up, so only addresses written as such are checked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from pipeline.errors import UnsafeRemote
from pipeline.settings import SiteSettings

__all__ = [
    "AddressRule",
    "CheckedNetwork",
    "Resolve",
    "address_rule",
    "check_network",
    "is_internal_host",
    "is_refused_address",
    "resolved",
]

#: (host, port) → addresses as text, in the order in which they are to be tried. Raises OSError.
Resolve = Callable[[str, int], list[str]]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


#: RFC 6052: IPv4 addresses as a NAT64 gateway is asked for them.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class AddressRule:
    """Which addresses may be connected to: public ones and those of `networks`, or any at all."""

    networks: tuple[_Network, ...] = ()
    any_address: bool = False

    def allows(self, address: str) -> bool:
        """Whether a connection may be made to an address (not a name)."""
        if self.any_address:
            return True
        parsed = _plain(ipaddress.ip_address(address.partition("%")[0]))
        if any(parsed.version == network.version and parsed in network for network in self.networks):
            return True
        return parsed.is_global and not parsed.is_multicast


def address_rule(site: SiteSettings) -> AddressRule:
    """A site's rule; in test mode the server is on this machine or in a container beside it."""
    networks = tuple(ipaddress.ip_network(text) for text in site.private_networks)
    return AddressRule(networks, any_address=site.test_mode)


def _plain(address: _Address) -> _Address:
    """The IPv4 address inside one of IPv6 that stands for it: it decides where the connection ends."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(address.packed[-4:])
        return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
    return address


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver. Raises OSError."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class CheckedNetwork(httpcore.NetworkBackend):
    """Makes the connections of a client. TLS still verifies the name, not the address."""

    def __init__(self, rule: AddressRule, resolve: Resolve = resolved) -> None:
        self._rule = rule
        self._resolve = resolve
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Raises UnsafeRemote when none of the host's addresses is allowed, httpcore's errors otherwise."""
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        allowed = [address for address in addresses if self._rule.allows(address)]
        if not allowed:
            raise UnsafeRemote(
                f"The host {host} has an address inside a network that is not open to it.",
                "If the site's server stands in your own network, name it as private_networks in sites.yaml.",
            )
        for address in allowed[:-1]:
            try:
                return self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._network.connect_tcp(allowed[-1], port, timeout, local_address, socket_options)

    def sleep(self, seconds: float) -> None:
        self._network.sleep(seconds)


def check_network(client: httpx.Client, network: CheckedNetwork) -> None:
    """Let a client make its direct connections through `network`.

    httpx has no setting for this, and a transport of our own would switch off the proxies of the environment. The
    tests that connect to this machine from outside of test mode fail if the attribute is renamed one day.
    """
    pool = client._transport._pool  # type: ignore[attr-defined]  # noqa: SLF001 - see above
    if not isinstance(pool, httpcore.ConnectionPool) or not hasattr(pool, "_network_backend"):
        raise UnsafeRemote("This version of httpx cannot be kept from private addresses.", "Install constraints.txt.")
    pool._network_backend = network  # noqa: SLF001 - see above


def is_refused_address(rule: AddressRule, host: str) -> bool:
    """Whether a host is written as an address that the rule refuses; a name is judged when it is connected to."""
    try:
        return not rule.allows(host.strip("[]"))
    except ValueError:
        return False


def is_internal_host(host: str) -> bool:
    """Whether a host is written as this machine, or as an address that is not public."""
    name = host.strip("[]").rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost") or is_refused_address(AddressRule(), name)
