"""One service: its connection, its key, and what every answer of a service is checked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import orjson

from pipeline.core.clock import Clock
from pipeline.core.errors import ConfigurationError, ProtocolError
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.core.settings import SiteSettings
from pipeline.extract.http.transport import RemoteRequest, Response, Transport
from pipeline.extract.smart.keys import read_key_file
from pipeline.warehouse.resolver_cache import AskedCode, ResolverAnswer

__all__ = [
    "Replies",
    "Service",
    "ServiceConnection",
    "StandardConcepts",
    "check_release",
    "open_connection",
    "release_name",
]

_MAX_BYTES = 4 << 20
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,99}")

#: Of these concept ids those that the active release holds as valid Standard concepts.
StandardConcepts = Callable[[Iterable[int]], set[int]]


@dataclass(frozen=True)
class Replies:
    """Answers, fewer than there were codes where the service could not say; and the release that it named ("": none)."""

    answers: tuple[ResolverAnswer, ...]
    release: str


class Service(Protocol):
    """What the resolvers have in common."""

    #: Codes of one call of `ask`.
    batch: int

    def ask(self, codes: Sequence[AskedCode]) -> Replies:
        """Raises RemoteUnavailable where a later try may succeed, and other EpicOmopErrors where it cannot."""
        ...


@dataclass(frozen=True)
class ServiceConnection:
    """Sends JSON to one service."""

    settings: ResolverSettings
    transport: Transport
    secret: str | None

    @property
    def name(self) -> str:
        return f"{self.settings.kind} at {httpx.URL(self.settings.base_url).host}"

    def post(self, path: str, document: Mapping[str, Any], **headers: str) -> Response:
        """One attempt, within the time that a request may take; the answer whatever its status."""
        own = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        if self.secret:
            own["Authorization"] = f"Bearer {self.secret}"
        request = RemoteRequest(
            action=f"The resolver {self.name}",
            url=f"{self.settings.base_url}/{path}",
            method="POST",
            headers=own,
            content=orjson.dumps(document),
            read_seconds=self.settings.timeout_seconds,
            max_bytes=_MAX_BYTES,
            advice=_ADVICE,
            event="terminology",
        )
        return self.transport.within(self.settings.timeout_seconds).send(request)

    def unreadable(self, what: str) -> ProtocolError:
        """The answer has another form than the service's documentation says."""
        return ProtocolError(
            f"The resolver {self.name}: {what}.", "Its answers are left aside; check its url and kind."
        )


_ADVICE = {
    400: "The service calls the request itself wrong: check its url, kind and fhir_version in sites.yaml.",
    401: "Check api_key_env or api_key_file of the resolver in sites.yaml.",
    403: "Check the resolver's key, and what it is allowed to ask.",
    404: "Check the resolver's url in sites.yaml.",
}


def release_name(connection: ServiceConnection, named: Any) -> str:
    """The vocabulary release that an answer names; empty where it names none, or something that is no name: it is kept,
    and shown."""
    if not isinstance(named, str) or not _RELEASE.fullmatch(named):
        return ""
    return "" if connection.secret and connection.secret in named else named


def check_release(connection: ServiceConnection, named: str, *, must_be_named: bool) -> None:
    """Raises ProtocolError where the service answered from another vocabulary release than the one that is set."""
    pinned = connection.settings.release
    if pinned is None or named == pinned or (not named and not must_be_named):
        return
    said = f"release {named[:40]!r}" if named else "no release"
    raise ProtocolError(
        f"The resolver {connection.name} names {said} in its answer, and {pinned} is set.",
        "Its answers are left aside. Set `release` to one that it serves, or take it out.",
    )


@contextmanager
def open_connection(site: SiteSettings, settings: ResolverSettings, clock: Clock) -> Iterator[ServiceConnection]:
    """A connection with the limits of the site (`private_networks`, `ca_file`, `test_mode`) to this service alone.

    Raises ConfigurationError where the key cannot be read.
    """
    try:
        url = httpx.URL(settings.base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            "The url of a resolver is none that can be asked.", "Mend it in sites.yaml."
        ) from error
    own = SiteSettings(
        name=site.name,
        allowed_origins=(f"{url.scheme}://{url.netloc.decode('ascii')}",),
        private_networks=site.private_networks,
        ca_file=site.ca_file,
        test_mode=site.test_mode,
    )
    with Transport(own, clock) as transport:
        yield ServiceConnection(settings, transport, _secret(settings))


def _secret(settings: ResolverSettings) -> str | None:
    if settings.api_key_file:
        value, where = read_key_file(settings.api_key_file).decode("ascii", "replace"), f"file {settings.api_key_file}"
    elif settings.api_key_env:
        value = os.environ.get(settings.api_key_env, "")
        where = f"environment variable {settings.api_key_env}"
    else:
        return None
    value = value.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigurationError(
            f"The {where} that should hold the key of a resolver is empty, or holds no key.", "Set it, or name another."
        )
    return value
