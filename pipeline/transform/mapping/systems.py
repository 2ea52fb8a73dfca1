"""Names of code systems: the many spellings of one system → the one that the maps use.

One table (`concept_maps/code_systems.csv`) for every map: value maps, vocabularies, crosswalks, and a site's own. What
differs in scheme, `www.`, case, an end (`/`, `#`), a version (`|2.73`) or `urn:oid:`, `oid:` alone needs no entry. Not
here: which vocabulary a system is (`code_tables`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.fhir.system_name import plain_name

__all__ = ["SystemNames"]

#: Stands for the rest of a name in an alias, and for the same rest in the name that it stands for.
_REST = "*"
_MOST_STEPS = 4


@dataclass(frozen=True)
class SystemNames:
    """`given`: alias → name as the table has them, both may end in `*`; `aliases`: the same by what spellings have in
    common, and so `known`: the names that maps use. A name that is neither stays."""

    given: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    _found: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, aliases: Mapping[str, str], systems: Iterable[str]) -> SystemNames:
        """`systems`: all that maps name, in whatever spelling; an alias is no name of its own."""
        plain = {plain_name(alias): name for alias, name in aliases.items()}
        named = [*(name for name in aliases.values() if not name.endswith(_REST)), *systems]
        names = cls(dict(aliases), plain)
        own = [name for name in named if names._following(plain_name(name)) is None]
        known = {plain_name(name): name for name in reversed(own)}
        names = cls(dict(aliases), plain, known)
        others = [name for name in named if plain_name(names._looked_up(name)) not in known]
        return cls(
            dict(aliases), plain, known | {plain_name(name): name for name in others if plain_name(name) not in plain}
        )

    def canonical(self, system: str) -> str:
        """The name by which maps know the system; of one that none knows, as it is."""
        found = self._found.get(system)
        if found is None:
            found = self._found[system] = self._looked_up(system)
        return found

    def _looked_up(self, system: str) -> str:
        name = plain_name(system)
        for _ in range(_MOST_STEPS):
            if name in self.known:
                return self.known[name]
            following = self._following(name)
            if following is None:
                return system
            name = plain_name(following)
        return system

    def _following(self, name: str) -> str | None:
        """What the name stands for, by its own alias, else by the one with `*` that says most of it."""
        if name in self.aliases:
            return self.aliases[name]
        prefixes = [alias for alias in self.aliases if alias.endswith(_REST) and name.startswith(alias[:-1])]
        if not prefixes:
            return None
        longest = max(prefixes, key=len)
        return self.aliases[longest].replace(_REST, name[len(longest) - 1 :])
