"""The landing store: exports as they came, immutable, `landing/<site>/<export_id>/`.

    manifest.json                       written last: an export with it is finished and never changes, but for
                                        lines of persons who are erased (landing/erased.py)
    files/Observation.00002.ndjson.zst  names from our own counter and the checked type, never from a URL; compressed
                                        (landing/frames.py), and without `.zst` everywhere but on disk
    files/Observation.00002.ndjson.json what was seen while the file streamed by; its presence means: complete
    outcomes/OperationOutcome.00007.ndjson   error and outcome files of a bulk export
    deleted/Bundle.00008.ndjson         bundles of deleted resources

Who fills the store (a download, a folder) is no matter here; folders are read in `landing/folder.py`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from omop_schema.exports import ExportKind
from pipeline.core.errors import LandingError
from pipeline.core.files import landing_errors, make_folder, write_whole
from pipeline.core.resource_types import TYPE_NAME
from pipeline.landing.files import FileDigest
from pipeline.landing.partial import PartialFile
from pipeline.landing.reading import compressed_name, is_landed, landed_bytes, landed_digest, stored_file
from pipeline.landing.storing import StoredWriter

__all__ = ["Category", "LandedExport", "LandedFile", "LandingDraft", "LandingProgress", "LandingStore"]

#: Which folder of an export a file belongs to; only `files` holds resources to load.
Category = Literal["files", "outcomes", "deleted"]

_CATEGORIES: tuple[Category, ...] = ("files", "outcomes", "deleted")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class LandedFile:
    """One complete file. `lines` counts those that are not blank; `sha256` is hexadecimal.

    `path` is its name in the export, below which it is found by `pipeline.landing.reading`; `bytes` and `sha256` are
    those of the bytes as they were exported.
    """

    number: int
    resource_type: str
    path: Path
    bytes: int
    lines: int
    sha256: str
    #: `count` of the server's manifest, where it gave one.
    expected_count: int | None = None
    #: Which remote file it is, as a hash of its address; None for files of a folder.
    source: str | None = None
    #: Lines of erased persons, of which nothing is left (`landing/erased.py`); `sha256` is that of the rest.
    erased_lines: int = 0


@dataclass(frozen=True)
class LandedExport:
    """One finished export; `files` in the order of their numbers."""

    site: str
    export_id: int
    kind: str
    transaction_time: datetime
    folder: Path
    files: tuple[LandedFile, ...]
    outcomes: tuple[LandedFile, ...] = ()
    deleted: tuple[LandedFile, ...] = ()
    #: When lines of persons were last erased from it.
    erased_at: datetime | None = None
    #: When files and lines that nothing needs were last removed (`landing/pruned.py`): it cannot be loaded again.
    pruned_at: datetime | None = None

    @property
    def lines(self) -> int:
        return sum(file.lines for file in self.files)

    def relative_name(self, file: LandedFile) -> str:
        """The file's path below the export's folder, as `etl.export_file.file` holds it."""
        return file.path.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class LandingProgress:
    """How far a download or a copy is: reported after every piece of about 1 MiB and after every file."""

    file: str
    files_done: int
    files_total: int
    #: Bytes since the last report.
    bytes_added: int


ProgressCallback = Callable[[LandingProgress], None]


class LandingDraft:
    """An export that is being filled. Files that are complete stay complete when the process dies."""

    def __init__(self, folder: Path, site: str, export_id: int) -> None:
        self.folder = folder
        self.site = site
        self.export_id = export_id
        self._twins = _Twins(folder)

    def writer(self, number: int, resource_type: str, category: Category = "files") -> StoredWriter:
        """A writer for one file; `keep` makes it part of the export. Raises LandingError for an impossible type."""
        return StoredWriter(self._path(number, resource_type, category), self._twins.find)

    def partial(self, number: int, resource_type: str, category: Category, source: str) -> PartialFile:
        """One remote file on its way, beginning with what an earlier run has of it. Raises LandingError."""
        return PartialFile(self._path(number, resource_type, category), source, self._twins.find)

    def keep(
        self,
        writer: StoredWriter | PartialFile,
        number: int,
        resource_type: str,
        *,
        expected_count: int | None = None,
        source: str | None = None,
    ) -> LandedFile:
        """Commit what the writer wrote, with its sidecar: from here on `landed` finds it."""
        digest = writer.commit()
        landed = LandedFile(
            number,
            resource_type,
            writer.path,
            digest.bytes,
            digest.lines,
            digest.sha256,
            expected_count,
            source,
        )
        self.write_sidecar(landed)
        return landed

    def find_twin(self, digest: FileDigest) -> Path | None:
        """A compressed file of the newest other export of the site that has the same bytes, as it is on disk."""
        return self._twins.find(digest)

    def write_sidecar(self, file: LandedFile) -> None:
        """Note what a complete file is."""
        write_whole(_sidecar(file.path), orjson.dumps(_to_json(file, self.folder)))

    def write_manifest(self, export: LandedExport) -> None:
        """Write the manifest; written again only where lines of a person were erased."""
        write_whole(self.folder / _MANIFEST, orjson.dumps(_export_to_json(export), option=orjson.OPT_INDENT_2))

    def landed(
        self, number: int, resource_type: str, category: Category = "files", *, source: str | None = None
    ) -> LandedFile | None:
        """The file of that number if an earlier run completed it from that source; None: it must be fetched."""
        path = self._path(number, resource_type, category)
        sidecar = _sidecar(path)
        with landing_errors(sidecar):
            if not sidecar.exists() or not is_landed(path):
                return None
            landed = _from_json(_read_json(sidecar), self.folder)
            with suppress(LandingError):  # damaged: it is fetched again
                return landed if landed.source == source and landed_bytes(path) == landed.bytes else None
            return None

    def complete(self, category: Category = "files") -> tuple[LandedFile, ...]:
        """The files that an earlier run completed, whatever their numbers."""
        landed = self.noted(category)
        return _by_number(tuple(file for file in landed if self.landed(file.number, file.resource_type, category)))

    def noted(self, category: Category) -> tuple[LandedFile, ...]:
        """The files that have a sidecar, wherever they came from."""
        sidecars = sorted((self.folder / category).glob("*.ndjson.json"))
        found = [_from_json(_read_json(path), self.folder) for path in sidecars]
        return tuple(file for file in found if is_landed(file.path))

    def finish(
        self,
        kind: str,
        transaction_time: datetime,
        files: tuple[LandedFile, ...],
        *,
        outcomes: tuple[LandedFile, ...] = (),
        deleted: tuple[LandedFile, ...] = (),
    ) -> LandedExport:
        """Write our manifest; the export is immutable from here on. What belongs to no file of it is removed first:
        parts that nobody continued, and files that a manifest read again no longer lists."""
        export = LandedExport(
            self.site, self.export_id, kind, transaction_time, self.folder, _by_number(files), outcomes, deleted
        )
        self.sweep({file.path for file in (*files, *outcomes, *deleted)})
        self.write_manifest(export)
        return export

    def sweep(self, kept: set[Path]) -> None:
        """Remove every file but these and their sidecars. Raises LandingError."""
        listed = {stored_file(path) for path in kept} | {_sidecar(path) for path in kept}
        with landing_errors(self.folder):
            for category in _CATEGORIES:
                for path in sorted((self.folder / category).glob("*")):
                    if path not in listed:
                        path.unlink()

    def _path(self, number: int, resource_type: str, category: Category) -> Path:
        if not TYPE_NAME.fullmatch(resource_type):
            raise LandingError("A resource type that is not a valid FHIR name cannot become part of a file name.")
        return self.folder / category / f"{resource_type}.{number:05d}.ndjson"


class LandingStore:
    """All landed exports below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, site: str, export_id: int) -> Path:
        return self.root / site / str(export_id)

    def exists(self, site: str, export_id: int) -> bool:
        """Whether the store holds anything, finished or not, under this id."""
        return self.folder(site, export_id).exists()

    def sites(self) -> list[str]:
        """Names of the sites that have a folder."""
        with landing_errors(self.root):
            return sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.root.exists() else []

    def numbers(self, site: str) -> list[int]:
        """Ids of a site's exports, finished or not, the oldest first."""
        folder = self.root / site
        with landing_errors(folder):
            return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def is_finished(self, site: str, export_id: int) -> bool:
        return (self.folder(site, export_id) / _MANIFEST).exists()

    def begin(self, site: str, export_id: int) -> LandingDraft:
        """A draft to fill: a new one, or the one that an interrupted run left.

        Raises LandingError when that export is finished: take the next id.
        """
        folder = self.folder(site, export_id)
        if self.is_finished(site, export_id):
            raise LandingError(f"{folder} holds a finished export and is never written again.")
        for category in _CATEGORIES:
            make_folder(folder / category)
        return LandingDraft(folder, site, export_id)

    def draft_of(self, site: str, export_id: int) -> LandingDraft:
        """The folder of an export, finished or not, as a draft: for what lies in it beside the export's files."""
        return LandingDraft(self.folder(site, export_id), site, export_id)

    def discard(self, site: str, export_id: int) -> None:
        """Remove an unfinished draft; a finished export stays. Raises LandingError."""
        if self.is_finished(site, export_id):
            return
        folder = self.folder(site, export_id)
        with landing_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)

    def remove(self, site: str, export_id: int) -> None:
        """Remove an export that nothing was loaded from, finished or not. Raises LandingError."""
        folder = self.folder(site, export_id)
        with landing_errors(folder):
            (folder / _MANIFEST).unlink(missing_ok=True)  # first: what is left of a killed removal is a draft
            self.discard(site, export_id)

    def open(self, site: str, export_id: int, *, verify: bool = False) -> LandedExport:
        """A finished export. `verify` reads every file again and compares its SHA-256.

        Raises LandingError when it is not there, not finished, or damaged.
        """
        export = self.read_manifest(site, export_id)
        for file in (*export.files, *export.outcomes, *export.deleted):
            _check(file, verify=verify)
        return export

    def read_manifest(self, site: str, export_id: int) -> LandedExport:
        """A finished export by its manifest alone. Raises LandingError when it is not there, or damaged."""
        folder = self.folder(site, export_id)
        if not self.is_finished(site, export_id):
            advice = "Run the export or the ingest again."
            raise LandingError(f"There is no finished export {export_id} of site {site} in {self.root}.", advice)
        return _export_from_json(_read_json(folder / _MANIFEST), folder)

    def unfinished(self, site: str, export_id: int) -> LandedExport:
        """The folder of an export that has no manifest any more, as one without files."""
        return LandedExport(
            site, export_id, ExportKind.FOLDER, datetime.max.replace(tzinfo=UTC), self.folder(site, export_id), ()
        )

    def finished(self, site: str) -> Iterator[LandedExport]:
        """The finished exports of a site, the newest first; those whose manifest is damaged are left out."""
        for number in reversed(self.numbers(site)):
            if self.is_finished(site, number):
                with suppress(LandingError):
                    yield self.read_manifest(site, number)


class _Twins:
    """Stored files of a site's finished exports by what they hold; read when the first file is looked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[tuple[str, int], Path] | None = None

    def find(self, digest: FileDigest) -> Path | None:
        """A compressed file of the newest other export that has the same bytes."""
        with self._lock:
            if self._files is None:
                self._files = dict(self._stored())
        return self._files.get((digest.sha256, digest.bytes))

    def _stored(self) -> Iterator[tuple[tuple[str, int], Path]]:
        store, site = LandingStore(self._folder.parent.parent), self._folder.parent.name
        for export in reversed(list(store.finished(site))):
            if export.folder != self._folder:
                for file in (*export.files, *export.outcomes, *export.deleted):
                    yield (file.sha256, file.bytes), compressed_name(file.path)


def _by_number(files: tuple[LandedFile, ...]) -> tuple[LandedFile, ...]:
    return tuple(sorted(files, key=lambda file: file.number))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _check(file: LandedFile, *, verify: bool) -> None:
    advice = "The landing store was changed from outside: restore that file, or export again."
    size = landed_bytes(file.path)
    if size != file.bytes:
        raise LandingError(f"{file.path} has {size} bytes instead of {file.bytes}.", advice)
    if verify and landed_digest(file.path).sha256 != file.sha256:
        raise LandingError(f"{file.path} does not have the SHA-256 that it was landed with.", advice)


def _to_json(file: LandedFile, folder: Path) -> dict[str, Any]:
    return {
        "number": file.number,
        "resource_type": file.resource_type,
        "file": file.path.relative_to(folder).as_posix(),
        "bytes": file.bytes,
        "lines": file.lines,
        "sha256": file.sha256,
        "expected_count": file.expected_count,
        **({"source": file.source} if file.source else {}),
        **({"erased_lines": file.erased_lines} if file.erased_lines else {}),
    }


def _from_json(entry: dict[str, Any], folder: Path) -> LandedFile:
    values = dict(entry)
    return LandedFile(path=folder / values.pop("file"), **values)


def _export_to_json(export: LandedExport) -> dict[str, Any]:
    return {
        "export_id": export.export_id,
        "site": export.site,
        "kind": export.kind,
        "transaction_time": export.transaction_time.isoformat(),
        **({"erased_at": export.erased_at.isoformat()} if export.erased_at else {}),
        **({"pruned_at": export.pruned_at.isoformat()} if export.pruned_at else {}),
        **{category: [_to_json(file, export.folder) for file in getattr(export, category)] for category in _CATEGORIES},
    }


def _export_from_json(manifest: dict[str, Any], folder: Path) -> LandedExport:
    def files(category: Category) -> tuple[LandedFile, ...]:
        return tuple(_from_json(entry, folder) for entry in manifest[category])

    try:
        return LandedExport(
            manifest["site"],
            manifest["export_id"],
            manifest["kind"],
            datetime.fromisoformat(manifest["transaction_time"]),
            folder,
            files=files("files"),
            outcomes=files("outcomes"),
            deleted=files("deleted"),
            erased_at=datetime.fromisoformat(manifest["erased_at"]) if "erased_at" in manifest else None,
            pruned_at=datetime.fromisoformat(manifest["pruned_at"]) if "pruned_at" in manifest else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LandingError(f"{folder / _MANIFEST} is damaged.", "Restore it, or export again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    with landing_errors(path):
        content = path.read_bytes()
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise LandingError(f"{path} is damaged: it is not JSON.", "Restore it, or export again.") from error
    if not isinstance(document, dict):
        raise LandingError(f"{path} is damaged: it is not a JSON object.", "Restore it, or export again.")
    return document
