"""Which domains of concepts an element takes: the targets of a local map, and suggestions, are compared with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.transform.mapping.mappings import Mappings
from pipeline.transform.routing import DOMAIN_TABLES

__all__ = ["ElementDomains"]

#: Elements that fill a column of one domain, whatever the resource.
_OF_COLUMN = {
    "unit": frozenset(("Unit",)),
    "dose_unit": frozenset(("Unit",)),
    "route": frozenset(("Route",)),
    "specialty": frozenset(("Provider",)),
    "place_of_service": frozenset(("Visit",)),
    "class": frozenset(("Visit",)),
    "country": frozenset(("Geography",)),
    "gender": frozenset(("Gender",)),
    "race": frozenset(("Race",)),
    "ethnicity": frozenset(("Ethnicity",)),
}
#: Tables that hold any concept of theirs, whatever its domain.
_ANY = frozenset(("note",))


@dataclass(frozen=True)
class ElementDomains:
    """By the mappings of a site."""

    mappings: Mappings

    def of_places(self, places: Iterable[str]) -> frozenset[str] | None:
        """The domains that some of these elements take (`ResourceType.element`); None: any domain."""
        found: set[str] = set()
        for place in places:
            resource_type, _, element = place.partition(".")
            domains = self._of(resource_type, element)
            if domains is None:
                return None
            found |= domains
        return frozenset(found) or None

    def _of(self, resource_type: str, element: str) -> frozenset[str] | None:
        """An event's code is routed by its concept's domain: it takes those that have a table."""
        if element in _OF_COLUMN:
            return _OF_COLUMN[element]
        mapping = self.mappings.resources.get(resource_type)
        views = [view for view in mapping.views if view.code == element] if mapping else []
        is_event = any(not view.concept_id for view in views)
        takes_any = any(view.concept_id or {rule.table for rule in view.home_table} & _ANY for view in views)
        return frozenset(DOMAIN_TABLES) if is_event and not takes_any else None
