"""An Athena download as it lies in a folder: which files it has, for which tables, with which columns.

Nothing here knows a database; what becomes of the files is in `loading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.core.errors import VocabularyError

__all__ = ["SourceFile", "ignored_files", "present_files", "source_file"]

_REQUIRED_TABLES = (
    "vocabulary",
    "domain",
    "concept_class",
    "relationship",
    "concept",
    "concept_relationship",
    "concept_ancestor",
)
_OPTIONAL_TABLES = tuple(table for table in cdm.VOCABULARY_TABLES if table not in _REQUIRED_TABLES)


@dataclass(frozen=True)
class SourceFile:
    table: str
    path: Path
    columns: tuple[str, ...]
    #: Bytes of the header line.
    header_bytes: int


def ignored_files(folder: Path, version: CdmVersion) -> list[str]:
    """Names of the folder's files whose tables came with a later version of the CDM than this one."""
    tables = {f"{table.upper()}.CSV" for table in set(cdm.VOCABULARY_TABLES) - set(cdm.tables_of(version))}
    return sorted(path.name for path in folder.iterdir() if path.name.upper() in tables)


def present_files(folder: Path) -> dict[str, Path]:
    """Table → its file, whatever the case of the name."""
    advice = "Give the folder into which the zip file from Athena was unpacked (with CONCEPT.csv in it)."
    if not folder.is_dir():
        raise VocabularyError(f"{folder} is not a folder.", advice)
    present = {path.name.upper(): path for path in folder.iterdir()}
    names = {table: f"{table.upper()}.CSV" for table in (*_REQUIRED_TABLES, *_OPTIONAL_TABLES)}
    missing = [names[table] for table in _REQUIRED_TABLES if names[table] not in present]
    if missing:
        raise VocabularyError(f"{folder} is not a vocabulary download: {', '.join(missing)} missing.", advice)
    return {table: present[name] for table, name in names.items() if name in present}


def source_file(table: str, path: Path) -> SourceFile:
    """Read the header and check it against the table's columns."""
    with path.open("rb") as lines:
        header = lines.readline()
    columns = tuple(name.strip().lower() for name in header.decode("utf-8-sig", "replace").split("\t"))
    known = [field.name for field in cdm.fields(table)]
    missing = [name for name in known if name not in columns]
    unknown = [name for name in columns if name not in known]
    if missing or unknown or len(set(columns)) != len(columns):
        problems = [f"column {name} is missing" for name in missing]
        problems += [f"column {name[:40]!r} is unknown" for name in unknown]
        reason = "; ".join(problems) or "a column is there twice"
        raise VocabularyError(
            f"{path.name}:1: {reason}.", "Vocabulary files are tab-separated, with the CDM's column names."
        )
    return SourceFile(table, path, columns, len(header))
