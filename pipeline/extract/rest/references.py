"""Which references of an export lead nowhere: found in landed files, compared with what is landed and known.

Set-based: a piece of a file gives a set of distinct references, these become surrogate ids by hashing, and whatever is
known is taken away at once. Only what is left keeps its text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from pipeline.core.settings import DEVICE_TYPE, DOCUMENT_TYPE, PERSONAL_TYPES, RESULT_TYPE, SiteSettings
from pipeline.extract.rest.client import is_readable_id
from pipeline.fhir.identity import SurrogateKeys, parse_reference
from pipeline.landing.references import (
    REPORT_TYPES,
    attachments,
    chunk_bytes,
    landed_ids,
    members_of,
    references_in,
    resources_of,
    result_references,
)
from pipeline.landing.store import LandedExport, LandedFile

__all__ = ["MISSING_SCHEMA", "MissingReferences"]

MISSING_SCHEMA = {"surrogate_id": pl.Int64, "reference": pl.String}


@dataclass
class MissingReferences:
    """Collects distinct references to the given types. `known` (column surrogate_id) is never missing."""

    site: SiteSettings
    keys: SurrogateKeys
    types: Collection[str]
    known: pl.DataFrame
    missing: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=MISSING_SCHEMA))
    #: Why → references that cannot be followed: to another server, or with an id that cannot stand in an address.
    unusable: dict[str, set[str]] = field(default_factory=dict)

    @property
    def shared(self) -> tuple[str, ...]:
        """The types that are collected wherever they are referred to."""
        return tuple(name for name in self.types if name not in PERSONAL_TYPES or name == DEVICE_TYPE)

    def add_landed(self, files: Iterable[LandedFile]) -> None:
        """What the export itself holds is known."""
        rows = [(self.keys.of(kind, given),) for kind, given in landed_ids(files) if kind in self.types]
        landed = pl.DataFrame(rows, schema={"surrogate_id": pl.Int64}, orient="row")
        self.known = pl.concat([self.known, landed]).unique()
        self.missing = self.missing.join(self.known, on="surrogate_id", how="anti")

    def scan(self, export: LandedExport, mapped: Collection[str]) -> None:
        """All references of an export's files. Files of types without a mapping load nothing and want nothing."""
        for file in export.files:
            if file.resource_type not in mapped and file.resource_type not in REPORT_TYPES:
                continue
            if self.shared and file.resource_type in mapped:
                for data in chunk_bytes(file):
                    self.add(references_in(data, self.shared))
            if file.resource_type == RESULT_TYPE and RESULT_TYPE in self.types:
                for references in members_of(file):
                    self.add(references)
            if file.resource_type in REPORT_TYPES:
                for references in self._of_reports(file):
                    self.add(references)

    def scan_lines(self, lines: Sequence[bytes]) -> None:
        """References to shared types in single lines."""
        if self.shared and lines:
            self.add(references_in(b"\n".join(lines), self.shared))

    def _of_reports(self, file: LandedFile) -> Iterator[set[str]]:
        results, documents = RESULT_TYPE in self.types, DOCUMENT_TYPE in self.types
        if not results and not documents:
            return
        for resources in resources_of(file):
            found: set[str] = set()
            for resource in resources:
                if results and resource.get("resourceType") == "DiagnosticReport":
                    found.update(result_references(resource))
                if documents:
                    found.update(attachments(resource))
            yield found

    def add(self, references: Collection[str]) -> None:
        rows = []
        for text in references:
            parsed = self._followed(text)
            if parsed is not None and parsed[0] in self.types:
                rows.append((self.keys.of(*parsed), "/".join(parsed)))
        found = pl.DataFrame(rows, schema=MISSING_SCHEMA, orient="row").unique("surrogate_id")
        found = found.join(self.known, on="surrogate_id", how="anti")
        if not found.is_empty():
            self.missing = pl.concat([self.missing, found]).unique("surrogate_id", maintain_order=True)

    def _followed(self, text: str) -> tuple[str, str] | None:
        """(type, id) of a reference to this site's server; others are counted."""
        base = f"{self.site.fhir_url or ''}/"
        if "://" in text and not text.startswith(base):
            self.unusable.setdefault("another server", set()).add(text)
            return None
        parsed = parse_reference(text)
        if parsed is None or not is_readable_id(parsed[1]):
            self.unusable.setdefault("no usable id", set()).add(text)
            return None
        return parsed
