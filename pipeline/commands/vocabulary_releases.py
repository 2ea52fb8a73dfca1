"""`epic-omop vocabulary load`, `list`, `use`, `diff` and `prune`: what a terminal shows of releases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    print_csv,
    print_json,
    print_listing,
    refuse_both,
    show,
)
from pipeline.commands.terminal import (
    DownloadColumn,
    TaskID,
    Terminal,
    TimeRemainingColumn,
    TransferSpeedColumn,
    echo,
    progress,
)
from pipeline.core.errors import UsageError, VocabularyError

if TYPE_CHECKING:
    from pipeline.core.settings import Settings
    from pipeline.warehouse.vocabulary import ConceptIndex, Progress, VocabularyRelease
    from pipeline.warehouse.vocabulary.diff import CodeChange, CodesInUse

__all__ = ["counts_of_vocabularies", "load_download", "register", "release_as_json"]

#: Changes that are shown without being asked for more.
_SHOWN = 20
_Warehouse = Callable[[], "tuple[Settings, str]"]


def load_download(warehouse: tuple[Settings, str], folder: Path, *, force: bool, only: str | None, keep: int) -> None:
    """Load a download, and report the result."""
    from pipeline.warehouse.schema import install_schemas, schema_names
    from pipeline.warehouse.vocabulary import (
        LoadOptions,
        concept_counts,
        ensure_index,
        list_releases,
        load_vocabulary,
        prune_indices,
    )

    if keep < 1:
        raise UsageError("The active release is always kept.", "Give --keep 1 or more.")
    settings, url = warehouse
    install_schemas(url, **schema_names(settings))
    comparison = None
    try:
        with _progress_bar(folder) as show:
            comparison = _Comparison(settings, url, show, only is not None)
            options = LoadOptions(
                force=force,
                only=None if only is None else only.split(","),
                keep=keep,
                compare=comparison,
                waiting=_say_waiting(),
            )
            release = load_vocabulary(
                url,
                folder,
                vocab_schema=settings.vocab_schema,
                etl_schema=settings.etl_schema,
                progress=show,
                options=options,
            )
            ensure_index(url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home)
    finally:
        if comparison is not None:
            _show_changes(comparison.changes, "would become" if comparison.is_refused else "became")
        prune_indices(settings.home, list_releases(url, etl_schema=settings.etl_schema))
    _recheck_local_map(settings, url)
    print_listing(
        Terminal(highlight=False), counts_of_vocabularies(concept_counts(url, vocab_schema=settings.vocab_schema))
    )
    _show_notes(release, settings)
    echo(f"Vocabulary {release.release} ({release.content_hash[:12]}): {release.concept_count:,} concepts are loaded.")


def register(app: typer.Typer, warehouse: _Warehouse) -> None:
    """Add the commands that deal with releases; `warehouse` gives settings and the database's URL."""

    @app.command("list", epilog="Example: epic-omop vocabulary list")
    def list_(
        as_json: JsonOption = False,
        as_csv: CsvOption = False,
    ) -> None:
        """Show the releases that are there, and those that were."""
        _list(*warehouse(), as_json=as_json, as_csv=as_csv)

    @app.command(epilog="Example: epic-omop vocabulary use 3fa9c1d2 --force")
    def use(
        release: Annotated[str, typer.Argument(help="Label, or how the hash begins (`vocabulary list`).")],
        force: Annotated[bool, typer.Option("--force", help="Also when it is older than the active one.")] = False,
    ) -> None:
        """Make another release that is still there the active one: within a second, without a load."""
        _use(*warehouse(), release, force=force)

    @app.command(epilog="Examples: epic-omop vocabulary diff · epic-omop vocabulary diff 3fa9c1d2 77b0e4aa --all")
    def diff(
        before: Annotated[str | None, typer.Argument(help="A release; the active one if none is given.")] = None,
        after: Annotated[str | None, typer.Argument(help="Another one; the latest other if none is given.")] = None,
        every: Annotated[bool, typer.Option("--all", help=f"More than the {_SHOWN} codes with the most rows.")] = False,
        as_json: JsonOption = False,
        as_csv: CsvOption = False,
    ) -> None:
        """Show the codes in use whose concepts differ between two releases, with the rows that hold them.

        As JSON or CSV: all codes.
        """
        refuse_both(as_json=as_json, as_csv=as_csv)
        _diff(*warehouse(), before, after, _Shape(every, as_json, as_csv))

    @app.command(epilog="Example: epic-omop vocabulary prune --keep 1")
    def prune(
        keep: Annotated[int, typer.Option(help="Releases that stay, the active one among them.")] = 2,
    ) -> None:
        """Drop the tables and indices of releases that nobody needs any more."""
        _prune(*warehouse(), keep=keep)


def _recheck_local_map(settings: Settings, url: str) -> None:
    """Say what the release makes of the targets of local maps."""
    from pipeline.warehouse.connection import connect
    from pipeline.warehouse.local_map.overlay import align_local_map

    with connect(url) as connection:
        report = align_local_map(connection, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema)
    if report.notes:
        echo("Local maps:")
    for note in report.notes:
        echo(f"  {note}")


def counts_of_vocabularies(counts: Mapping[str, int]) -> Listing:
    columns = (Column("vocabulary_id", "vocabulary", "code"), Column("concepts", "concepts", "count"))
    return Listing("", columns, [*counts.items()])


@dataclass
class _Comparison:
    """Compares a loaded release with the active one before it takes its place, and remembers what it found."""

    settings: Settings
    url: str
    show: Progress
    has_selection: bool
    changes: list[CodeChange] = field(default_factory=list)
    is_refused: bool = True

    def __call__(self, release: VocabularyRelease, active: VocabularyRelease | None) -> Sequence[str]:
        from pipeline.warehouse.vocabulary.diff import changed_codes, reasons_of_selection

        settings = self.settings
        self.show("concept index", 0, 0)
        after = _index_of(settings, self.url, release)
        reasons: list[str] = []
        if active is not None:
            self.show("codes in use", 0, 0)
            used = _codes_in_use(settings, self.url)
            self.changes = changed_codes(used, _index_of(settings, self.url, active), after)
            selected = release.notes.get("selected")
            reasons = reasons_of_selection(self.changes, frozenset(selected) if selected is not None else None)
        self.is_refused = False
        return reasons


def _index_of(settings: Settings, url: str, release: VocabularyRelease) -> ConceptIndex:
    from pipeline.warehouse.vocabulary import index_of

    return index_of(
        url, release, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home
    )


def _codes_in_use(settings: Settings, url: str) -> CodesInUse:
    from pipeline.transform.mapping.mappings import load_mappings
    from pipeline.warehouse.connection import connect
    from pipeline.warehouse.vocabulary.diff import codes_in_use

    with connect(url) as connection:
        return codes_in_use(
            connection,
            cdm_schema=settings.cdm_schema,
            vocab_schema=settings.vocab_schema,
            etl_schema=settings.etl_schema,
            vocabulary_of=load_mappings(settings.mappings).vocabulary_of,
        )


def _list(settings: Settings, url: str, *, as_json: bool, as_csv: bool) -> None:
    from pipeline.warehouse.schema import ensure_schemas, schema_names
    from pipeline.warehouse.vocabulary import list_releases

    ensure_schemas(url, **schema_names(settings))
    refuse_both(as_json=as_json, as_csv=as_csv)
    releases = list_releases(url, etl_schema=settings.etl_schema)
    if as_json:
        print_json([release_as_json(release) for release in releases])
        return
    if not releases and not as_csv:
        echo("No vocabulary is loaded. Next: `epic-omop vocabulary load FOLDER`.")
        return
    listing = Listing("", _RELEASE)
    for release in releases:
        state = "active" if release.is_current else release.state
        hashed = release.content_hash if as_csv else release.content_hash[:12]
        listing.add(release.release, hashed, state, release.loaded_at, release.concept_count)
    show(Terminal(highlight=False), listing, as_csv=as_csv)


_RELEASE = (
    Column("release", "release", "code"),
    Column("content_hash", "hash", "code"),
    Column("state", "state", "code"),
    Column("loaded_at", "loaded", "time"),
    Column("concepts", "concepts", "count"),
)


def release_as_json(release: VocabularyRelease) -> dict[str, Any]:
    return {
        "release": release.release,
        "content_hash": release.content_hash,
        "active": release.is_current,
        "state": release.state,
        "loaded_at": release.loaded_at,
        "active_since": release.active_since,
        "folder": release.folder_label,
        "concepts": release.concept_count,
        "vocabularies": release.vocabularies,
        "notes": release.notes,
    }


def _use(settings: Settings, url: str, name: str, *, force: bool) -> None:
    from pipeline.warehouse.schema import ensure_schemas, schema_names
    from pipeline.warehouse.vocabulary import ensure_index, use_release

    ensure_schemas(url, **schema_names(settings))
    switched = use_release(
        url,
        name,
        vocab_schema=settings.vocab_schema,
        etl_schema=settings.etl_schema,
        force=force,
        waiting=_say_waiting(),
    )
    release = switched.release
    ensure_index(url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home)
    _recheck_local_map(settings, url)
    for warning in switched.warnings:
        echo(f"Note: {warning}")
    echo(f"Vocabulary {release.release} ({release.content_hash[:12]}) is the active one.")


@dataclass(frozen=True)
class _Shape:
    """How changes are shown; `every`: all of them."""

    every: bool
    as_json: bool
    as_csv: bool


def _diff(settings: Settings, url: str, before: str | None, after: str | None, shape: _Shape) -> None:
    from pipeline.warehouse.schema import ensure_schemas, schema_names
    from pipeline.warehouse.vocabulary import find_release, list_releases
    from pipeline.warehouse.vocabulary.diff import changed_codes

    ensure_schemas(url, **schema_names(settings))
    releases = list_releases(url, etl_schema=settings.etl_schema)
    there = [release for release in releases if release.state == "ready"]
    active = next((release for release in there if release.is_current), None)
    if active is None:
        raise VocabularyError("No vocabulary is loaded.", "Load one with `epic-omop vocabulary load FOLDER`.")
    first = find_release(there, before) if before else active
    others = [release for release in there if release.content_hash != first.content_hash]
    if after is None and not others:
        raise VocabularyError("There is only one release.", "`epic-omop vocabulary list` shows those that were.")
    second = find_release(there, after) if after else others[0]
    changes = changed_codes(
        _codes_in_use(settings, url), _index_of(settings, url, first), _index_of(settings, url, second)
    )
    if shape.as_json:
        print_json([_change_as_json(change) for change in changes])
        return
    if shape.as_csv:
        print_csv(_changes_listing(changes))
        return
    echo(f"From {first.release} ({first.content_hash[:12]}) to {second.release} ({second.content_hash[:12]}):")
    _show_changes(changes, "would become", most=None if shape.every else _SHOWN)
    if not changes:
        echo("No code in use has another result.")


def _change_as_json(change: CodeChange) -> dict[str, Any]:
    return {
        "vocabulary_id": change.vocabulary_id,
        "concept_code": change.concept_code,
        "rows": dict(change.rows),
        "before": {str(concept): name for concept, name in change.before.items()},
        "after": {str(concept): name for concept, name in change.after.items()},
    }


def _prune(settings: Settings, url: str, *, keep: int) -> None:
    from pipeline.warehouse.schema import ensure_schemas, schema_names
    from pipeline.warehouse.vocabulary import list_releases, prune_indices, prune_vocabulary

    ensure_schemas(url, **schema_names(settings))
    gone, problems = prune_vocabulary(
        url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, keep=keep
    )
    folders = prune_indices(settings.home, list_releases(url, etl_schema=settings.etl_schema))
    for problem in problems:
        echo(f"Note: {problem}")
    for release in gone:
        echo(f"Vocabulary {release.release} ({release.content_hash[:12]}) is gone.")
    echo(f"{len(gone)} releases and {folders} concept indices were removed.")


def _show_changes(changes: Sequence[CodeChange], verb: str, *, most: int | None = _SHOWN) -> None:
    """The codes in use whose result differs; nothing where there is none."""
    if not changes:
        return
    rows = sum(change.row_count for change in changes)
    echo(f"{len(changes):,} codes in use, of {rows:,} rows, {verb} something else:")
    columns = (Column("code", "code", "code"), *_CHANGE)
    shown = [(f"{change.vocabulary_id} {change.concept_code}", *_change(change)) for change in changes[:most]]
    print_listing(Terminal(highlight=False), Listing("", columns, shown))
    if most is not None and len(changes) > most:
        echo(f"… and {len(changes) - most:,} more: `epic-omop vocabulary diff --all` shows them.")


def _changes_listing(changes: Sequence[CodeChange]) -> Listing:
    """For a spreadsheet: vocabulary and code are two columns."""
    keys = (Column("vocabulary_id", "vocabulary", "code"), Column("concept_code", "code", "code"))
    rows = [(change.vocabulary_id, change.concept_code, *_change(change)) for change in changes]
    return Listing("", (*keys, *_CHANGE), rows)


_CHANGE = (Column("rows", "rows", "count"), Column("before", "before"), Column("after", "after"))


def _change(change: CodeChange) -> tuple[int, list[str], list[str]]:
    return change.row_count, _concepts(change.before), _concepts(change.after)


def _concepts(concepts: Mapping[int, str]) -> list[str]:
    return [f"{concept} {name}" if concept else "0 no concept" for concept, name in concepts.items()]


def _show_notes(release: VocabularyRelease, settings: Settings) -> None:
    notes = release.notes
    for repair in notes.get("repairs", ()):
        echo(f"{repair['file']}: {repair['count']:,} × {repair['what']}, first in line {repair['first_line']:,}.")
    if ignored := notes.get("ignored"):
        echo(f"Left out: {', '.join(ignored)}. Their tables are not of the OMOP CDM {settings.cdm_version}.")
    if cpt4 := notes.get("cpt4"):
        echo(
            f"Note: CPT-4 is not merged: {cpt4:,} of its concepts are loaded without names, so that their codes map."
            " For the names run Athena's cpt.sh in the folder and load it again."
        )
    if notes.get("cpt4_unreadable"):
        echo(
            "Note: CONCEPT_CPT4.csv lacks columns of CONCEPT.csv and was left out: CPT-4 codes do not map."
            " Unpack it from the zip file again."
        )
    if left_out := notes.get("left_out"):
        echo(f"Left out by --only: {left_out:,} lines.")
    if carried := notes.get("carried"):
        echo(f"Taken over from the former release: {carried:,} rows of custom concepts and local maps.")
    for reason in notes.get("overruled", ()):
        echo(f"Note: loaded although {reason}.")
    for warning in notes.get("warnings", ()):
        echo(f"Note: {warning}")


def _say_waiting() -> Callable[[str], None]:
    said: set[str] = set()

    def say(who: str) -> None:
        if who not in said:
            said.add(who)
            echo(f"Waiting: {who} …", err=True)

    return say


@contextmanager
def _progress_bar(folder: Path) -> Iterator[Progress]:
    """One bar for all files, with its rate and the time that is left, and a line for each step without bytes."""
    from omop_schema import cdm

    # What is no folder is refused by the load.
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    total = sum(path.stat().st_size for path in files if path.stem.lower() in cdm.VOCABULARY_TABLES)
    with progress(
        Terminal(stderr=True), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), transient=False
    ) as bar:
        task: TaskID | None = None
        steps: dict[str, TaskID] = {}
        read: dict[str, int] = {}

        def update(file: str, done: int, size: int) -> None:
            nonlocal task
            for step in steps.values():
                bar.update(step, total=1, completed=1)
            if not size:
                steps[file] = bar.add_task(file, total=None)
                return
            read[file] = done
            if task is None:
                task = bar.add_task(file, total=total)
            bar.update(task, completed=sum(read.values()), description=file)

        yield update
        for step in steps.values():
            bar.update(step, total=1, completed=1)
