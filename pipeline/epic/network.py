"""Where connections may go: a host's addresses are looked up once, checked, and the checked address is connected to.

An allow-listed name says nothing about the address behind it: whoever answers for the name could point it at a
server of our own network, and answer the next question differently. Loopback, link-local and other special
addresses are refused, private ones unless the site names their network. Through a proxy of the environment it is the
proxy that looks names up, so only addresses written as such are checked.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
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


#: IPv6 forms that stand for an IPv4 address in their last four bytes: IPv4-mapped and -compatible (RFC 4291), IPv4-translated
#: (RFC 2765), and what a NAT64 gateway is asked for (RFC 6052).
_LAST_FOUR = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
#: RFC 8215: prefixes of a NAT64 gateway of one's own, which may be of several lengths.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_SPECIAL = (ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1"))


@dataclass(frozen=True)
class AddressRule:
    """Which addresses may be connected to: public ones and those of `networks`, or any at all."""

    networks: tuple[_Network, ...] = ()
    any_address: bool = False

    def allows(self, address: str) -> bool:
        """Whether a connection may be made to an address (not a name)."""
        if self.any_address:
            return True
        meant = _meant(ipaddress.ip_address(address.partition("%")[0]))
        return all(self._allows(one) for one in meant)

    def _allows(self, address: _Address) -> bool:
        if any(address.version == network.version and address in network for network in self.networks):
            return True
        # Site-local addresses (fec0::/10, RFC 3879) are of old networks of one's own.
        is_site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
        return address.is_global and not address.is_multicast and not is_site_local


def address_rule(site: SiteSettings) -> AddressRule:
    """A site's rule; in test mode the server is on this machine or in a container beside it."""
    networks = tuple(ipaddress.ip_network(text) for text in site.private_networks)
    return AddressRule(networks, any_address=site.test_mode)


def _meant(address: _Address) -> tuple[_Address, ...]:
    """Where a connection ends: the IPv4 addresses inside one of IPv6 that stands for them, else the address itself.

    Several where the form leaves open which it is: each must be allowed.
    """
    if isinstance(address, ipaddress.IPv4Address) or address in _SPECIAL:
        return (address,)
    packed = address.packed
    if any(address in network for network in _LAST_FOUR):
        return (ipaddress.IPv4Address(packed[12:]),)
    if address in _LOCAL_NAT64:
        return _of_local_gateway(packed)
    # Of Teredo the server that relays, and whom it relays to.
    if inner := address.teredo or (address.sixtofour and (address.sixtofour,)):
        return inner
    if packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"):  # ISATAP, RFC 5214
        return (address, ipaddress.IPv4Address(packed[12:]))
    return (address,)


def _of_local_gateway(packed: bytes) -> tuple[_Address, ...]:
    """RFC 6052, 2.2: with a prefix of 96 bits the last four bytes; with a shorter one bytes around the ninth, which is 0."""
    if not any(packed[6:12]):
        return (ipaddress.IPv4Address(packed[12:]),)
    forms = (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13], packed[12:])
    return tuple(ipaddress.IPv4Address(form) for form in forms if any(form))


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
    """Whether a host is written as this machine, or as an address that is not public; `0x7f.1` is an address, too."""
    name = host.strip("[]").rstrip(".").lower()
    if re.fullmatch(r"[0-9a-fx.]+", name):
        with suppress(OSError):
            name = socket.inet_ntoa(socket.inet_aton(name))
    return name == "localhost" or name.endswith(".localhost") or is_refused_address(AddressRule(), name)
