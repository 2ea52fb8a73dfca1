"""Erasing persons: what would go, and doing it.

The order makes it safe to kill at any moment: first the tombstones, so that from then on no load brings anything back;
then the database in one transaction; then files. Erasing again finishes what was begun. While it works, no other run
of the sites concerned loads, downloads or crawls.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import psycopg
import xxhash

from omop_schema.exports import OPEN_STATES, ExportKind
from pipeline.core.errors import AccountingError, UsageError
from pipeline.core.files import landing_errors
from pipeline.erasure import rows as erase
from pipeline.erasure.landed import Folder, Search, erase_in, folders_of, search
from pipeline.erasure.later import note_digests
from pipeline.erasure.ownership import ErasedPersons, judged
from pipeline.erasure.persons import known_patients, same_people
from pipeline.erasure.rows import AffectedDeadLetter, OfPersons
from pipeline.fhir.identity import SurrogateKeys
from pipeline.publication.known_cache import known_folder
from pipeline.publication.members import forget_members
from pipeline.publication.sql import Database
from pipeline.staging.parts import clear_site
from pipeline.warehouse.connection import connect
from pipeline.warehouse.erased import finish_tombstones, log_erasure, put_tombstones, unfinished_patients
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors, server_failure

__all__ = ["EraseProgress", "Erasing", "erasing"]

#: (stage, bytes read, bytes in all)
EraseProgress = Callable[[str, int, int], None]

#: What a line in landing is counted as.
LINES, SHARED_LINES, PARTIAL_FILES = "landing: lines", "landing: lines of others", "landing: unfinished files"


@dataclass
class _Site:
    """What was found of one site."""

    name: str
    persons: ErasedPersons
    folders: list[Folder]
    found: Search
    dead_letters: list[AffectedDeadLetter] = field(default_factory=list)
    #: (export id, position) in the lists of crawls
    crawled: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def erasing(
    runtime: Runtime, site: str, patients: Sequence[str], progress: EraseProgress | None = None
) -> Iterator[Erasing]:
    """Find everything of these patients (FHIR ids) of a site, with the locks of all sites concerned.

    An erasure that was interrupted is part of it; without `patients` only that. Raises UsageError for patients of whom
    nothing is known (by their places in the list, from 1), SiteBusy while another run of a site works, LandingError.
    """
    keys = SurrogateKeys(runtime.settings.site_or_folder(site).name, runtime.settings.surrogate_salt)
    asked = [keys.of("Patient", patient) for patient in patients]
    with server_errors(), runtime.connect() as connection, ExitStack() as locks:
        sought = dict.fromkeys((*asked, *unfinished_patients(connection, site)), site)
        if not sought:
            raise UsageError(f"No erasure of site {site} was interrupted.", "Say whom to erase.")
        work = Erasing(runtime, connection, locks, progress or (lambda _stage, _done, _total: None))
        work.find(sought)
        known = work.seen | known_patients(connection, asked)
        unknown = [str(number) for number, patient in enumerate(asked, start=1) if patient not in known]
        if unknown:
            raise UsageError(
                f"Nothing is known of {len(unknown)} of {len(asked)} patients in site {site}"
                f" (in the order given: {', '.join(unknown[:20])}).",
                "Check the site and the FHIR ids; an MRN is none. Nothing was erased.",
            )
        connection.commit()
        yield work


class Erasing:
    """An erasure with its locks held: what was found, and the steps."""

    def __init__(
        self, runtime: Runtime, connection: psycopg.Connection, locks: ExitStack, progress: EraseProgress
    ) -> None:
        self._runtime = runtime
        self._connection = connection
        self._locks = locks
        self._progress = progress
        self._sites: dict[str, _Site] = {}
        self._erased: set[int] = set()
        self._touched: list[str] = []
        #: Patients that are one person or several: surrogate id → site
        self.patients: dict[int, str] = {}
        self.counts: Counter[str] = Counter()

    @property
    def seen(self) -> set[int]:
        """Patients whom a line, a dead letter or a crawl's list is about."""
        return {patient for site in self._sites.values() for patient in site.persons.seen}

    @property
    def _database(self) -> Database:
        settings = self._runtime.settings
        return Database(self._connection, settings.cdm_schema, settings.etl_schema, settings.vocab_schema)

    def find(self, patients: dict[int, str]) -> None:
        """Search landing and the warehouse, until no further Patient of the same person turns up; then count."""
        while True:
            self.patients = same_people(self._connection, self._runtime.settings, patients)
            sites = {name: self._searched(name) for name in sorted(set(self.patients.values()))}
            self._sites = sites
            new = {patient: name for name, site in sites.items() for patient in site.found.same_person}
            if new.keys() <= self.patients.keys():
                break
            patients = self.patients | new
        removed, _ = erase.remove(self._database, self._of_persons())
        self._connection.rollback()
        found = [line for site in self._sites.values() for line in site.found.found()]
        self.counts = removed + Counter(
            {
                LINES: sum(line.owned.verdict == "theirs" for line in found),
                SHARED_LINES: sum(line.owned.verdict == "shared" for line in found),
                PARTIAL_FILES: sum(len(self._unfinished_files(name)) for name in self._sites),
            }
        )

    def _searched(self, name: str) -> _Site:
        if name not in self._sites:
            self._lock(name)
        runtime = self._runtime
        keys = SurrogateKeys(name, runtime.settings.surrogate_salt)
        persons = ErasedPersons(keys, [patient for patient, site in self.patients.items() if site == name])
        folders = folders_of(runtime.landing, name)
        found = search(folders, persons, lambda done, total: self._progress(f"searching {name}", done, total))
        site = _Site(name, persons, folders, found)
        self._add_dead_letters(site)
        self._add_crawled(site)
        return site

    def _lock(self, name: str) -> None:
        """What else works on files of the site: a load, a download, a crawl, a hydration, the copy of a folder."""
        works: list[tuple[SiteWork, str | int]] = [
            (SiteWork.INGEST, ""),
            (SiteWork.HYDRATION, ""),
            (SiteWork.FOLDER, ""),
        ]
        rows = self._connection.execute(
            "SELECT kind, export_id, group_id FROM export_job WHERE site = %s AND state = ANY(%s) ORDER BY export_id",
            (name, list(OPEN_STATES)),
        ).fetchall()
        self._connection.commit()
        works += [(SiteWork.EXPORT, export_id) for kind, export_id, _ in rows if kind == ExportKind.BULK]
        works += [(SiteWork.CRAWL, label) for kind, _, label in rows if kind == ExportKind.CRAWL]
        for work, of in dict.fromkeys(works):
            self._locks.enter_context(site_lock(self._connection, name, work, of))

    def _add_dead_letters(self, site: _Site) -> None:
        """Dead letters whose line is theirs or names them, by their bytes, or by the landed line of a long one."""
        places = {
            (found.export_id, path.relative_to(folder.draft.folder).as_posix(), found.line)
            for folder in site.folders
            for path, lines in site.found.lines.items()
            if path.is_relative_to(folder.draft.folder)
            for found in lines.values()
            if found.owned.verdict == "theirs"
        }
        for number, export_id, file, line, raw, cause in erase.dead_letters_of(self._connection, site.name):
            owned = judged(bytes(raw), site.persons, site.found.owned)
            if (export_id, file, line) in places or (owned and owned.content is None):
                site.dead_letters.append(AffectedDeadLetter(number))
            elif owned and owned.content is not None:
                content = owned.content.ljust(len(raw))
                digest = xxhash.xxh3_128_digest(content)
                high, low = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
                site.dead_letters.append(AffectedDeadLetter(number, content, (high, low)))
            if cause in site.persons.patients:
                site.persons.seen.add(cause)

    def _add_crawled(self, site: _Site) -> None:
        rows = self._connection.execute(
            "SELECT export_id, position, patient_id FROM crawl_patient JOIN export_job USING (export_id) WHERE site = %s",
            (site.name,),
        ).fetchall()
        site.crawled = [(export_id, position) for export_id, position, given in rows if site.persons.is_patient(given)]

    def _of_persons(self) -> OfPersons:
        owned: list[int] = []
        lines: list[tuple[int, int, int]] = []
        shared: list[tuple[int, int, int, int, int]] = []
        for site in self._sites.values():
            owned += [site.persons.keys.of(*resource) for resource in site.found.owned.resources]
            owned += [site.persons.keys.of("Binary", binary) for binary in site.found.owned.binaries]
            for line in site.found.found():
                if line.file_number is None:
                    continue
                place = (line.export_id, line.file_number, line.line)
                if line.owned.content is None or line.is_deletion:
                    lines.append(place)
                else:
                    shared.append((*place, *line.hashes))
        place_schema = {"export_id": pl.Int64, "file_number": pl.Int64, "line": pl.Int64}
        hashes = {"raw_hash_high": pl.Int64, "raw_hash_low": pl.Int64}
        return OfPersons(
            sorted(self._sites),
            list(self.patients),
            pl.DataFrame({"surrogate_id": sorted(set(owned))}, schema={"surrogate_id": pl.Int64}),
            pl.DataFrame(lines, schema=place_schema, orient="row").unique(),
            [folder.draft.export_id for site in self._sites.values() for folder in site.folders if folder.export],
            pl.DataFrame(shared, schema={**place_schema, **hashes}, orient="row"),
            [dead_letter for site in self._sites.values() for dead_letter in site.dead_letters],
            [place for site in self._sites.values() for place in site.crawled],
        )

    # --- doing it -----------------------------------------------------------------------------------------------------

    def run(self, *, rewrite_tables: bool = False) -> list[str]:
        """Erase; returns warnings. `rewrite_tables`: write the tables anew, so that their files hold nothing either.

        Raises AccountingError when something of them is left at the end.
        """
        self._put_tombstones()
        self._clear_warehouse()
        for site in self._sites.values():
            self._clear_files(site)
        self._progress("database pages", 0, 0)
        warnings = self._vacuum(full=rewrite_tables)
        self._check()
        self._finish()
        return warnings

    def _put_tombstones(self) -> None:
        now = self._runtime.clock.now()
        for name in self._sites:
            mine = [patient for patient, site in self.patients.items() if site == name]
            put_tombstones(self._connection, name, mine, now, self.counts)
        self._connection.commit()

    def _clear_warehouse(self) -> None:
        self._progress("database", 0, 0)
        settings = self._runtime.settings
        removed, erased = erase.remove(self._database, self._of_persons())
        self._connection.commit()
        self._erased = set(erased)
        self._touched = erase.touched_tables(removed, settings.cdm_schema, settings.etl_schema)

    def _clear_files(self, site: _Site) -> None:
        self._progress(f"files of {site.name}", 0, 0)
        settings = self._runtime.settings
        clear_site(settings.staging, site.name)
        forget_members(self._connection, settings.home, site.name, self._erased)
        known = known_folder(settings.home, site.name)  # hashes of their lines
        with landing_errors(known):
            if known.exists():
                shutil.rmtree(known)
        for export_id, position in site.crawled:
            parts = self._runtime.landing.folder(site.name, export_id) / "patients" / f"{position:07d}"
            with landing_errors(parts):
                if parts.exists():
                    shutil.rmtree(parts)
        for path in self._unfinished_files(site.name):
            with landing_errors(path):
                path.unlink()
        now = self._runtime.clock.now()
        for folder in folders_of(self._runtime.landing, site.name):
            export = erase_in(folder, site.found, now)
            if export is not None and export.erased_at is not None:
                note_digests(self._connection, export)
        self._connection.commit()

    def _unfinished_files(self, name: str) -> list[Path]:
        """Halves of files: what is half there is fetched again."""
        root = self._runtime.landing.root / name
        with landing_errors(root):
            return sorted(path for pattern in ("*.part", "*.part.json", "*.tmp") for path in root.rglob(pattern))

    def _vacuum(self, *, full: bool) -> list[str]:
        """Deleted rows stay in the pages of a table until they are cleaned; the warnings of those that could not be."""
        warnings = []
        with connect(self._runtime.url) as connection:
            connection.autocommit = True
            for table in self._touched:
                try:
                    connection.execute(f"VACUUM {'FULL ' if full else ''}{table}")
                except psycopg.Error as error:
                    failure = server_failure(error)  # a full disk: VACUUM FULL needs as much as the table has
                    reason = failure.message if failure else f"{type(error).__name__}: run it as its owner"
                    warnings.append(f"VACUUM of {table} was refused ({reason}).")
        return warnings

    def _check(self) -> None:
        """Look again, everywhere."""
        left = erase.remains(self._connection, self._runtime.settings.cdm_schema, list(self.patients), self._erased)
        self._connection.commit()
        for site in self._sites.values():
            again = search(
                folders_of(self._runtime.landing, site.name),
                ErasedPersons(site.persons.keys, site.persons.patients),
                lambda done, total: self._progress("checking", done, total),
            )
            left[LINES] += sum(1 for _ in again.found())
        if +left:
            listed = ", ".join(f"{name} {count:,}" for name, count in sorted((+left).items()))
            raise AccountingError(
                f"Not everything was erased: {listed} left.",
                "Run the same command again; if that changes nothing, please report it with this line.",
            )

    def _finish(self) -> None:
        finish_tombstones(self._connection, self.patients, self._runtime.clock.now())
        rows = sum(count for name, count in self.counts.items() if not name.startswith(("etl.", "landing: ")))
        for name in self._sites:
            log_erasure(
                self._connection,
                self._runtime.settings.site_or_folder(name),
                self._runtime.clock,
                patients=sum(site == name for site in self.patients.values()),
                lines=self.counts[LINES],
                rows=rows,
            )
        self._connection.commit()
