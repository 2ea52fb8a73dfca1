"""What a deep verification is asked for, and what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DeepProgress", "DeepReport", "DeepRequest", "Difference", "Kind"]

#: (stage, done, total); a total of 0: how much there is to do is not known.
DeepProgress = Callable[[str, int, int], None]

#: `missing`: a fresh load makes the row; `extra`: it does not; `differs`: it makes it with another value or link.
Kind = Literal["missing", "extra", "differs"]


@dataclass(frozen=True)
class DeepRequest:
    """Which persons are loaded afresh."""

    #: How many; None: everybody, and everything that belongs to nobody.
    persons: int | None = 50
    #: Only persons of this site are chosen; None: of all sites.
    site: str | None = None
    #: Another seed chooses other persons, and puts the files in another order.
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """What rows of one table and resource type have in common that they should not."""

    kind: Kind
    table: str
    #: Of derived rows that of the person: Patient. `unknown`: the rows have no source.
    resource_type: str
    #: Of `differs`; a value may be patient data, so that only its column is named.
    column: str | None
    count: int
    #: Ids of the first such rows in the CDM table; of missing rows none.
    row_ids: tuple[int, ...] = ()
    #: Of missing rows: `etl.resource_state.surrogate_id` of the first resources whose rows are missing.
    resources: tuple[int, ...] = ()

    def summary(self) -> str:
        """One sentence without a value."""
        rows = f"{self.count:,} row{'s' if self.count != 1 else ''} of {self.table} from {self.resource_type}"
        if self.kind == "missing":
            return f"{rows} missing (etl.resource_state.surrogate_id {_listed(self.resources, self.count)})"
        if self.kind == "extra":
            return f"{rows} that a fresh load does not make (id {_listed(self.row_ids, self.count)})"
        return f"{rows}: {self.column} differs (id {_listed(self.row_ids, self.count)})"


@dataclass
class DeepReport:
    """What was compared, what was left out and why, and the differences."""

    persons: int = 0
    resources: int = 0
    #: table → rows as they are
    rows: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    #: Why resources are not compared, nor the persons whose they are → resources: `old settings`, `not in landing`.
    left_out: Counter[str] = field(default_factory=Counter)
    persons_left_out: int = 0
    #: Lines that have no state because they were rejected: nothing to compare.
    open_dead_letters: int = 0
    #: Lines without rows that were looked through for those of the persons, and whether that is all there are.
    rowless: int = 0
    all_rowless: bool = True
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.differences


def _listed(numbers: tuple[int, ...], count: int) -> str:
    return ", ".join(map(str, numbers)) + (", …" if count > len(numbers) else "")
