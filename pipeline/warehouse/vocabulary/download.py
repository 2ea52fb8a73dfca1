"""An Athena download as it lies in a folder: which files it has, for which tables, with which columns.

Nothing here knows a database; what becomes of the files is in `loading`, what is wrong inside of them in `cleaning`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.core.errors import UsageError, VocabularyError

__all__ = [
    "SITE_MAP",
    "SourceFile",
    "VocabularyDownload",
    "ignored_files",
    "read_download",
    "release_date",
]

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

#: A site's own map is not a part of an Athena download: it stays when the folder has none.
SITE_MAP = "source_to_concept_map"

#: What Athena writes apart, without names, until its own step (cpt.sh) has merged it into CONCEPT.csv.
_CPT4_FILE = "CONCEPT_CPT4.CSV"
_CPT4_NEEDS = frozenset(("concept_id", "vocabulary_id", "concept_code"))

#: Columns that only a download of changes has.
_DELTA_COLUMNS = frozenset(("row_change_type", "change_type", "row_delta", "attribute_modified"))

#: In VOCABULARY.csv, of the small vocabularies that every download holds (types, domains, visits …).
_MADE_BY_OHDSI = "omop generated"
_ALWAYS = frozenset(("None", "Vocabulary", "Domain", "Concept Class", "Relationship", "CDM", "Type Concept"))

_LABEL_DATE = re.compile(r"(\d{1,2})-([A-Z]{3})-(\d{2}|\d{4})$", re.IGNORECASE)
_FOLDER_ADVICE = "Give the folder into which the zip file from Athena was unpacked (with CONCEPT.csv in it)."


@dataclass(frozen=True)
class SourceFile:
    """One file. `header_bytes`: of the header line; `has_carriage_returns`: lines end in CR and LF."""

    table: str
    path: Path
    columns: tuple[str, ...]
    header_bytes: int
    has_carriage_returns: bool


@dataclass(frozen=True)
class VocabularyDownload:
    """The files that will be loaded, in the order in which they must be."""

    folder: Path
    files: tuple[SourceFile, ...]
    #: of tables that the database's version of the CDM does not have
    ignored: tuple[str, ...]
    #: CONCEPT_CPT4.csv where it can be read
    cpt4: SourceFile | None
    #: it is there, and lacks columns without which nothing maps
    has_unreadable_cpt4: bool
    #: Version of the vocabulary "None", such as "v5.0 27-FEB-25"; "" where there is none.
    label: str
    #: vocabulary_id → its version, of VOCABULARY.csv
    versions: dict[str, str]
    #: the vocabularies to load; None: all
    selected: frozenset[str] | None

    @property
    def total_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    @property
    def has_site_map(self) -> bool:
        return any(file.table == SITE_MAP for file in self.files)


def read_download(folder: Path, tables: Collection[str], *, only: Iterable[str] | None = None) -> VocabularyDownload:
    """The download in `folder`, as far as `tables` (those of the database) can hold it.

    `only`: vocabulary ids; those that OHDSI makes itself (types, domains, visits) come in any case. Raises VocabularyError
    for a folder that is not a whole download, UsageError for a vocabulary in `only` that the download does not have.
    """
    if not folder.is_dir():
        raise VocabularyError(f"{folder} is not a folder.", _FOLDER_ADVICE)
    present = {path.name.upper(): path for path in sorted(folder.iterdir())}
    _refuse_delta(folder, present)
    names = {table: f"{table.upper()}.CSV" for table in (*_REQUIRED_TABLES, *_OPTIONAL_TABLES)}
    missing = [names[table] for table in _REQUIRED_TABLES if names[table] not in present]
    if missing:
        raise VocabularyError(f"{folder} is not a vocabulary download: {', '.join(missing)} missing.", _FOLDER_ADVICE)
    found = {table: present[name] for table, name in names.items() if name in present}
    files = tuple(_source_file(table, path) for table, path in found.items() if table in tables)
    cpt4 = _cpt4(present.get(_CPT4_FILE))
    vocabularies = _vocabularies(next(file for file in files if file.table == "vocabulary"))
    return VocabularyDownload(
        folder,
        files,
        tuple(sorted(path.name for table, path in found.items() if table not in tables)),
        cpt4,
        _CPT4_FILE in present and cpt4 is None,
        vocabularies.get("None", {}).get("vocabulary_version", ""),
        {name: row.get("vocabulary_version", "") for name, row in vocabularies.items()},
        None if only is None else _selected(vocabularies, only),
    )


def release_date(label: str) -> date | None:
    """The day in a release's label ("v5.0 27-FEB-25"); None where it names none."""
    match = _LABEL_DATE.search(label.strip())
    if match is None:
        return None
    day, month, year = match.groups()
    try:
        return datetime.strptime(f"{day}-{month}-{year[-2:]}", "%d-%b-%y").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def ignored_files(folder: Path, version: CdmVersion) -> list[str]:
    """Names of the folder's files whose tables came with a later version of the CDM than this one."""
    tables = {f"{table.upper()}.CSV" for table in set(cdm.VOCABULARY_TABLES) - set(cdm.tables_of(version))}
    return sorted(path.name for path in folder.iterdir() if path.name.upper() in tables)


def _refuse_delta(folder: Path, present: dict[str, Path]) -> None:
    """Changes between two releases are not a vocabulary: loaded alone they would take all the rest away."""
    signs = [path.name for name, path in present.items() if "DELTA" in name]
    for table in _REQUIRED_TABLES:
        path = present.get(f"{table.upper()}.CSV")
        if path is not None and path.is_file() and _DELTA_COLUMNS & set(_columns(_header(path))):
            signs.append(path.name)
    if signs:
        raise VocabularyError(
            f"{folder} is a delta download ({', '.join(signs[:3])}): it holds only what changed since another release.",
            "In Athena choose the full download of the same vocabularies.",
        )


def _source_file(table: str, path: Path) -> SourceFile:
    """Read the header and check it against the table's columns."""
    header = _header(path)
    columns = _columns(header)
    known = [field.name for field in cdm.fields(table)]
    _refuse_other_format(path, header, set(columns) & set(known))
    missing = [name for name in known if name not in columns]
    unknown = [name for name in columns if name not in known]
    if missing or unknown or len(set(columns)) != len(columns):
        problems = [f"column {name} is missing" for name in missing]
        problems += [f"column {name[:40]!r} is unknown" for name in unknown]
        reason = "; ".join(problems) or "a column is there twice"
        raise VocabularyError(
            f"{path.name}:1: {reason}.", "Vocabulary files are tab-separated, with the CDM's column names."
        )
    return SourceFile(table, path, columns, len(header), header.endswith(b"\r\n"))


def _refuse_other_format(path: Path, header: bytes, known_columns: Collection[str]) -> None:
    """A file that is none, or that another program has written anew: each of its columns would be named otherwise."""
    if not header.strip():
        raise VocabularyError(f"{path.name} is empty.", "Unpack the zip file from Athena again.")
    what = "UTF-16" if b"\0" in header else ""
    if not what and not known_columns and any(mark in header for mark in (b",", b";")):
        what = "separated by commas or semicolons"
    if what:
        raise VocabularyError(
            f"{path.name} is {what}: it must be UTF-8, separated by tabs, as Athena writes it.",
            "Unpack the zip file from Athena again, and do not save its files with a spreadsheet program.",
        )


def _header(path: Path) -> bytes:
    try:
        with path.open("rb") as lines:
            return lines.readline()
    except OSError as error:
        raise VocabularyError(
            f"{path.name} cannot be read: {error.strerror}.", "Unpack the zip file from Athena again."
        ) from None


def _columns(header: bytes) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in header.decode("utf-8-sig", "replace").split("\t"))


def _vocabularies(file: SourceFile) -> dict[str, dict[str, str]]:
    """vocabulary_id → the line's other columns; the file has some hundred lines."""
    lines = file.path.read_bytes()[file.header_bytes :].decode("utf-8", "replace").split("\n")
    rows = [dict(zip(file.columns, line.rstrip("\r").split("\t"), strict=False)) for line in lines if line.strip()]
    return {row.get("vocabulary_id", ""): {name: text.strip() for name, text in row.items()} for row in rows}


def _cpt4(path: Path | None) -> SourceFile | None:
    """Its columns are those of CONCEPT.csv, in some years without the name; another file of that name is not read."""
    if path is None:
        return None
    header = _header(path)
    columns = _columns(header)
    known = {field.name for field in cdm.fields("concept")}
    if not set(columns) <= known or not {*_CPT4_NEEDS, "domain_id", "concept_class_id"} <= set(columns):
        return None
    return SourceFile("concept", path, columns, len(header), header.endswith(b"\r\n"))


def _selected(vocabularies: dict[str, dict[str, str]], only: Iterable[str]) -> frozenset[str]:
    by_folded = {name.casefold(): name for name in vocabularies}
    chosen = set()
    for name in (given.strip() for given in only):
        if not name:
            continue
        if name.casefold() not in by_folded:
            near = get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)
            nearest = f" The nearest: {', '.join(by_folded[item] for item in near)}." if near else ""
            raise UsageError(f"The download has no vocabulary {name}.", f"VOCABULARY.csv lists what it has.{nearest}")
        chosen.add(by_folded[name.casefold()])
    if not chosen:
        raise UsageError("--only names no vocabulary.", "Give ids such as SNOMED,LOINC,RxNorm, or leave --only out.")
    made = {
        name for name, row in vocabularies.items() if row.get("vocabulary_reference", "").casefold() == _MADE_BY_OHDSI
    }
    return frozenset(chosen | made | (_ALWAYS & set(vocabularies)))
