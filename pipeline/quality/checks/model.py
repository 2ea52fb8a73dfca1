"""A rule about the warehouse, and what asking it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from omop_schema.versions import CdmVersion

__all__ = ["ACCOUNTS", "Finding", "Rule", "Schemas", "Severity"]

#: `cdm_table` of rules that are about accounts of landed files, and not about rows.
ACCOUNTS = None


class Severity(StrEnum):
    """`error`: analysts must never see it, and a snapshot of the warehouse is not written. `warn`: a person should look."""

    ERROR = "error"
    WARN = "warn"


@dataclass(frozen=True)
class Rule:
    """One statement. `query` gives rows (site or NULL, problems), of those sites alone that have some; its names are without
    a schema but for `{cdm}` and `{vocab}`."""

    #: letters and underlines: a name of Dagster's, and `check_name` of etl.check_result
    name: str
    sentence: str
    query: str
    cdm_table: str | None = ACCOUNTS
    severity: Severity = Severity.ERROR
    #: what helps, where a user can
    advice: str = ""

    @property
    def title(self) -> str:
        return f"{self.cdm_table}: {self.sentence}" if self.cdm_table else self.sentence


@dataclass(frozen=True)
class Finding:
    """The answer of a rule. `by_site`: site → problems; the key None holds those of which no site is known."""

    rule: Rule
    by_site: Mapping[str | None, int]
    #: words about the problems: concept ids and counts, never a patient's data
    detail: str = ""
    #: the same, where each site has its own
    details: Mapping[str | None, str] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        return sum(self.by_site.values())


@dataclass(frozen=True)
class Schemas:
    """Where tables are, and which there are."""

    cdm: str
    vocab: str
    version: CdmVersion
