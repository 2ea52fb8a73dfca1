"""What a person asks for in an export of their own: which groups, which types, everything or what changed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.core.errors import ConfigurationError, UsageError
from pipeline.core.resource_types import TYPE_NAME
from pipeline.core.settings import Settings, SiteSettings
from pipeline.core.settings_file import nearest
from pipeline.extract.asked_types import asked_types

__all__ = ["ExportRequest", "check_since", "checked_groups", "checked_request"]


@dataclass(frozen=True)
class ExportRequest:
    """`site`: with the types that are asked for as its own. `since` None: everything."""

    site: SiteSettings
    groups: tuple[str, ...]
    since: datetime | None


def checked_request(
    settings: Settings,
    site: SiteSettings,
    *,
    groups: Sequence[str] = (),
    resource_types: Sequence[str] = (),
    since: datetime | None = None,
) -> ExportRequest:
    """Empty `groups` and `resource_types` mean all of the site's.

    An export of some types says nothing about the others: these neither change nor vanish by it. Raises UsageError that
    names what is wrong and what there is; MappingError.
    """
    chosen = checked_groups(site, groups)
    check_since(site, since)
    if resource_types:
        known = asked_types(settings, site)
        for name in resource_types:
            if name not in known:
                shown = name if TYPE_NAME.fullmatch(name) else ascii(name)[:80]
                raise UsageError(
                    f"{shown} is not among the types that site {site.name} is asked for.{nearest(name, known)}",
                    f"Types: {', '.join(known)}.",
                )
        site = site.model_copy(update={"resource_types": tuple(dict.fromkeys(resource_types))})
    return ExportRequest(site, chosen, since.astimezone(UTC) if since else None)


def check_since(site: SiteSettings, since: datetime | None) -> None:
    """Raises ConfigurationError where a site that does not know `_since` is to be asked with it."""
    if since is not None and not site.supports_since:
        raise ConfigurationError(
            f"Site {site.name} is not configured to know `_since`, so it may send everything, or refuse.",
            "Ask the site, then set supports_since: true in sites.yaml; or ask for a full export.",
        )


def checked_groups(site: SiteSettings, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen groups, each once; all of the site's where none is chosen. Raises UsageError."""
    if not site.groups:
        raise UsageError(f"Site {site.name} has no groups to export.", f"Its patients: epic-omop crawl {site.name}.")
    unknown = [name for name in chosen or () if name not in site.groups]
    if unknown:
        known = ", ".join(site.groups) or "none"
        raise UsageError(f"Site {site.name} has no group {unknown[0]!r}.", f"Groups in sites.yaml: {known}.")
    return tuple(dict.fromkeys(chosen)) if chosen else site.groups
