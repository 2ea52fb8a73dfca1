"""Names of sites as people type them: a name that nothing is known of is refused, with the name that is most like it."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from pipeline.core.errors import UsageError
from pipeline.core.settings_file import nearest

if TYPE_CHECKING:
    from pipeline.core.settings import Settings, SiteSettings
    from pipeline.warehouse.runtime import Runtime

__all__ = ["known_site", "known_sites", "loadable_site", "site_of_mappings"]


def known_site(runtime: Runtime, name: str) -> SiteSettings:
    """A site of sites.yaml, or one of which something was loaded. Raises UsageError for every other name."""
    known = known_sites(runtime)
    if name not in known:
        raise _unknown(name, known)
    return runtime.settings.site_or_folder(name)


def loadable_site(runtime: Runtime, name: str, *, is_new: bool) -> SiteSettings:
    """The same for a command that may begin a site: a new name that is nearly a known one needs `is_new`."""
    site = runtime.settings.site_or_folder(name)
    known = known_sites(runtime)
    like = next((other for other in sorted(known) if _looks_like(name, other)), None)
    if name not in known and like and not is_new:
        raise UsageError(
            f"Nothing is known of a site {name!r}. Did you mean {like!r}?",
            "Correct the name, or give --new-site if it is another one.",
        )
    return site


#: From this ratio on a name is taken for a typo of another: nroth of north (0.8), not south (0.6).
_LIKENESS = 0.75


def _looks_like(name: str, other: str) -> bool:
    """Names that differ in their digits alone, such as site1 and site2, are meant so."""
    if re.sub(r"[0-9]+", "", name) == re.sub(r"[0-9]+", "", other):
        return False
    return difflib.SequenceMatcher(None, name, other).ratio() >= _LIKENESS


def site_of_mappings(settings: Settings, name: str) -> SiteSettings:
    """A site of sites.yaml, or one with mappings of its own; asks no database. Raises UsageError."""
    folders = {file.name for file in settings.site_mappings_folder.glob("*/")}
    known = {*settings.sites, *folders}
    if name not in known:
        raise _unknown(name, known)
    return settings.site_or_folder(name)


def known_sites(runtime: Runtime) -> set[str]:
    """Names of the sites of sites.yaml, and of those of which something was loaded."""
    from pipeline.warehouse.export_jobs import sites_with_exports  # the help of a command needs no database

    with runtime.connect() as connection:
        return {*runtime.settings.sites, *sites_with_exports(connection)}


def _unknown(name: str, known: set[str]) -> UsageError:
    listed = ", ".join(sorted(known)) or "none yet"
    return UsageError(f"There is no site {name!r}.{nearest(name, known)}", f"Known sites: {listed}.")
