"""Finding a person's lines in landing: finished exports, unfinished ones, and the parts of crawls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import xxhash

from pipeline.core.errors import LandingError
from pipeline.core.files import landing_errors
from pipeline.erasure.ownership import ABOUT_TYPES, ErasedPersons, Owned, OwnedLine, judged, judged_deletions
from pipeline.fhir.lines import is_erased
from pipeline.fhir.ndjson import Line, lines_of
from pipeline.landing.chunks import chunk_contents, plan_chunks, read_lines
from pipeline.landing.deletions import read_deletions
from pipeline.landing.erased import LineEdit, rewrite_draft, rewrite_export, rewrite_files
from pipeline.landing.reading import is_landed, landed_bytes, stored_file
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft, LandingStore

__all__ = ["Folder", "FoundLine", "Search", "erase_in", "folders_of", "search"]

#: (bytes read, bytes in all)
ReadProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _File:
    path: Path
    resource_type: str
    #: None: the part of a crawl
    number: int | None = None
    is_deletions: bool = False


@dataclass(frozen=True)
class Folder:
    """One folder of landing. `export` is None while it is unfinished; `files` are then those that are complete."""

    draft: LandingDraft
    export: LandedExport | None
    files: tuple[LandedFile, ...] = ()
    deleted: tuple[LandedFile, ...] = ()
    parts: tuple[Path, ...] = ()

    def to_search(self) -> Iterator[_File]:
        for file in self.files:
            yield _File(file.path, file.resource_type, file.number)
        for file in self.deleted:
            yield _File(file.path, file.resource_type, file.number, is_deletions=True)
        for path in self.parts:
            yield _File(path, path.name.removesuffix(".ndjson").rstrip(".0123456789").rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class FoundLine:
    """A line that is theirs or names them. `line` is its number, of deletions that of the entry."""

    export_id: int
    file_number: int | None
    line: int
    edit: LineEdit
    owned: OwnedLine
    is_deletion: bool = False

    @property
    def hashes(self) -> tuple[int, int]:
        """xxh3-128 of the line as it stays, as `etl.resource_state` holds it."""
        digest = xxhash.xxh3_128_digest(self.edit.bytes)
        high, low = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
        return high, low


@dataclass
class Search:
    """What was found: lines by file, and what they say of other resources."""

    lines: dict[Path, dict[tuple[int, int], FoundLine]] = field(default_factory=dict)
    owned: Owned = field(default_factory=Owned)
    #: Patients who are the same person, and were not known to be
    same_person: set[int] = field(default_factory=set)

    def add(self, path: Path, found: FoundLine) -> None:
        self.lines.setdefault(path, {}).setdefault((found.edit.offset, found.line), found)
        self.same_person |= found.owned.same_person
        if found.owned.verdict == "theirs" and found.owned.resource_type and found.owned.resource_id:
            self.owned.resources.add((found.owned.resource_type, found.owned.resource_id))
            self.owned.binaries |= found.owned.binaries

    def found(self) -> Iterator[FoundLine]:
        for lines in self.lines.values():
            yield from lines.values()

    def edits(self, paths: Iterable[Path]) -> dict[Path, list[LineEdit]]:
        return {
            path: [*{found.edit.offset: found.edit for found in self.lines[path].values()}.values()]
            for path in paths
            if path in self.lines
        }


def folders_of(store: LandingStore, site: str) -> list[Folder]:
    """All folders of a site, also those whose manifest is damaged. Raises LandingError."""
    return [_folder(store, site, number) for number in store.numbers(site)]


def _folder(store: LandingStore, site: str, number: int) -> Folder:
    draft = store.draft_of(site, number)
    parts = sorted((draft.folder / "patients").glob("*/*.ndjson"))
    with suppress(LandingError):  # of a damaged manifest: the files are searched as those of an unfinished export
        if store.is_finished(site, number):
            export = store.read_manifest(site, number)
            files = [file for file in (*export.files, *export.outcomes) if is_landed(file.path)]
            deleted = [file for file in export.deleted if is_landed(file.path)]
            return Folder(draft, export, tuple(files), tuple(deleted), tuple(parts))
    noted_files, noted_deleted = (*draft.noted("files"), *draft.noted("outcomes")), draft.noted("deleted")
    noted = {file.path for file in (*noted_files, *noted_deleted)}
    # Without a sidecar a file is fetched again, but it lies there.
    names = [path.with_name(path.name.removesuffix(".zst")) for path in sorted(draft.folder.glob("*/*.ndjson*"))]
    parts += [path for path in dict.fromkeys(names) if path.name.endswith(".ndjson") and path not in noted]
    return Folder(draft, None, noted_files, noted_deleted, tuple(parts))


def search(folders: Iterable[Folder], persons: ErasedPersons, progress: ReadProgress | None = None) -> Search:
    """Their lines in all the folders: those that name them, then those that follow what they are about."""
    groups = _stored_once(folders)
    result = Search()
    _search_names(result, [group[0] for group in groups], persons, progress)
    _search_followers(result, [group[0] for group in groups], persons)
    for (_, first), *others in groups:
        for folder, file in others:
            _add_again(result, result.lines.get(first.path, {}).values(), folder, file)
    return result


def _search_names(
    result: Search, places: Iterable[tuple[Folder, _File]], persons: ErasedPersons, progress: ReadProgress | None
) -> None:
    """Lines that name one of them, in all files but those of deletions."""
    places = list(places)
    total, done = sum(landed_bytes(file.path) for _, file in places), 0
    for folder, file in places:
        if file.is_deletions:
            continue
        for size, lines in _lines_of(file.path, persons):
            for line in lines:
                _judge(result, folder, file, line, persons, None)
            done += size
            if progress:
                progress(done, total)


def _search_followers(result: Search, places: Iterable[tuple[Folder, _File]], persons: ErasedPersons) -> None:
    """Lines that follow what they are about, and deletions; of what `_search_names` found."""
    for folder, file in places:
        if file.is_deletions:
            _search_deletions(result, folder, file, persons)
        elif result.owned and file.resource_type in ABOUT_TYPES:
            for chunk in plan_chunks(file.path):
                for line in read_lines(file.path, chunk):
                    _judge(result, folder, file, line, persons, result.owned)


def _add_again(result: Search, lines: Iterable[FoundLine], folder: Folder, file: _File) -> None:
    """What was found in a file, for another name of it."""
    for found in list(lines):
        result.add(file.path, replace(found, export_id=folder.draft.export_id, file_number=file.number))


def _stored_once(folders: Iterable[Folder]) -> list[list[tuple[Folder, _File]]]:
    """All files; those that are one on disk together, of which one is searched."""
    groups: dict[tuple[int, int, str, bool], list[tuple[Folder, _File]]] = {}
    for folder in folders:
        for file in folder.to_search():
            with landing_errors(file.path):
                stat = stored_file(file.path).stat()
            key = stat.st_dev, stat.st_ino, file.resource_type, file.is_deletions
            groups.setdefault(key, []).append((folder, file))
    return list(groups.values())


def _lines_of(path: Path, persons: ErasedPersons) -> Iterator[tuple[int, Iterable[Line]]]:
    """(bytes, lines) of each chunk; no lines where it names nobody of them."""
    for chunk, content in chunk_contents(path):
        yield chunk.length, lines_of(content, chunk) if persons.named_in(content) else ()


def _judge(
    result: Search, folder: Folder, file: _File, line: Line, persons: ErasedPersons, owned: Owned | None
) -> None:
    if is_erased(line.raw):
        return
    verdict = judged(line.raw, persons, owned)
    if verdict is not None:
        edit = LineEdit(line.offset, len(line.raw), verdict.content)
        result.add(file.path, FoundLine(folder.draft.export_id, file.number, line.number, edit, verdict))


def _search_deletions(result: Search, folder: Folder, file: _File, persons: ErasedPersons) -> None:
    first_of_line: dict[int, int] = {}
    for deletion in read_deletions(file.path):
        first_of_line.setdefault(deletion.byte_offset, deletion.number)
    for chunk in plan_chunks(file.path):
        for line in read_lines(file.path, chunk):
            verdict = judged_deletions(line.raw, persons, result.owned)
            if verdict is None:
                continue
            owned, entries = verdict
            edit = LineEdit(line.offset, len(line.raw), owned.content)
            first = first_of_line.get(line.offset) or next(iter(first_of_line.values()), 1)
            for entry in entries or [0]:
                number = first + entry
                result.add(
                    file.path, FoundLine(folder.draft.export_id, file.number, number, edit, owned, is_deletion=True)
                )


def erase_in(folder: Folder, found: Search, at: datetime) -> LandedExport | None:
    """Take what was found out of a folder's files; the export as it is then. Raises LandingError."""
    rewrite_files(found.edits(folder.parts))
    whole = (*folder.files, *folder.deleted)
    edits = found.edits(file.path for file in whole)
    if folder.export is not None:
        return rewrite_export(folder.export, edits, at)
    rewrite_draft(folder.draft, whole, edits)
    return None
