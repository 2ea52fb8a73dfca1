"""Which resource types are asked for: those that a site names, else all that its mappings map.

A site that names none is asked for nothing that its server does not have: a type that it does not know, or whose API is not
registered for the app, is left out with a warning, and the others are exported. What a site names is its own choice, and
goes to the server as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import Settings, SiteSettings
from pipeline.extract.http.transport import RemoteRequest
from pipeline.extract.smart.session import EpicSession
from pipeline.transform.mapping.mappings import load_mappings

__all__ = [
    "NOT_EXPORTED",
    "asked_types",
    "capability_request",
    "objects",
    "of_known_types",
    "resources_of_server",
    "with_asked_types",
]

_log = logging.getLogger(__name__)

#: Mapped, and never asked for by default: attachments are read by reference where notes are loaded, and a Bundle is a
#: wrapping, not a type of a patient's.
NOT_EXPORTED = frozenset({"Binary", "Bundle"})


def asked_types(settings: Settings, site: SiteSettings) -> tuple[str, ...]:
    """The site's `resource_types`; without them all mapped types, its own mappings included, Patient first.

    Raises MappingError.
    """
    if site.resource_types is not None:
        return site.resource_types
    mappings = load_mappings(settings.mappings, site.name, site.mapping, settings.site_mappings_folder)
    return tuple(sorted(mappings.resources.keys() - NOT_EXPORTED, key=lambda name: (name != "Patient", name)))


def with_asked_types(settings: Settings, site: SiteSettings) -> SiteSettings:
    """The site with its `resource_types` filled in."""
    if site.resource_types is not None:
        return site
    return site.model_copy(update={"resource_types": asked_types(settings, site)})


def of_known_types(session: EpicSession) -> tuple[EpicSession, list[str]]:
    """The same session, for the types that its server has and the app may read, and a note about those left out.

    For a site that names no types. Reads the CapabilityStatement, which needs no token, and then asks for one: a server may
    refuse a token for the sake of one scope that it does not know. Raises what asking for a token raises.
    """
    notes: list[str] = []
    session = _without(session, _unknown_to_server(session), "its CapabilityStatement does not name them", notes)
    session.transport.retrying(lambda: session.tokens.current(session.transport))
    return _without(session, session.tokens.missing_types(), "the app is not registered to read them", notes), notes


def _unknown_to_server(session: EpicSession) -> tuple[str, ...]:
    try:
        known = resources_of_server(session.transport.fetch(capability_request(session.site)).json())
    except EpicOmopError as error:
        _log.warning("Which types site %s has is not known: %s", session.site.name, error.message)
        return ()
    return tuple(name for name in session.site.asked_types if name not in known) if known else ()


def _without(session: EpicSession, types: tuple[str, ...], reason: str, notes: list[str]) -> EpicSession:
    """The session without these types; a note is added to `notes`."""
    left = tuple(name for name in session.site.asked_types if name not in types)
    if not types or not left:  # nothing at all: the server's refusal of the kick-off says more
        return session
    notes.append(f"The site is not asked for {', '.join(types)}: {reason}.")
    _log.warning(
        "Site %s: %s `epic-omop site check %s` shows what it has; resource_types in sites.yaml says what to ask for.",
        session.site.name,
        notes[-1],
        session.site.name,
    )
    site = session.site.model_copy(update={"resource_types": left})
    return replace(session, site=site, tokens=session.tokens.for_types(left))


def capability_request(site: SiteSettings) -> RemoteRequest:
    """For the CapabilityStatement of a site's server."""
    return RemoteRequest(
        "Reading the CapabilityStatement",
        f"{site.fhir_url}/metadata",
        headers={"Accept": "application/fhir+json"},
        max_bytes=32 << 20,
        event="capabilities",
    )


def resources_of_server(statement: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Type → what a CapabilityStatement says of it; what is not as FHIR has it is passed over."""
    return {
        str(resource.get("type")): resource
        for rest in objects(statement.get("rest"))
        for resource in objects(rest.get("resource"))
    }


def objects(value: object) -> list[dict[str, Any]]:
    """The objects of an array; none of another value."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
