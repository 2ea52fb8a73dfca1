"""`epic-omop vocabulary`: load a vocabulary, show what is loaded, look a code up, for people.

Only what a terminal needs is here; the work is done in `pipeline/warehouse/vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.terminal import DownloadColumn, Table, TaskID, Terminal, echo, progress
from pipeline.commands.vocabulary_resolve import register
from pipeline.core.errors import UsageError, VocabularyError

if TYPE_CHECKING:
    import polars as pl

    from pipeline.core.settings import Settings
    from pipeline.warehouse.vocabulary import ConceptIndex, Progress

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="The OMOP vocabulary: load a download, see what is loaded, look a code up.\n\n"
    "Get one from https://athena.ohdsi.org: choose at least SNOMED, ICD10CM, LOINC, RxNorm, NDC, CVX and UCUM, "
    "and unpack the zip file that you are sent.",
)


@app.command()
def load(
    folder: Annotated[Path, typer.Argument(help="The unpacked download: the folder with CONCEPT.csv in it.")],
) -> None:
    """Replace the vocabulary by an Athena download, and compile the concept index from it.

    Nothing changes until everything has been read. What was already loaded from patients is mapped anew by the
    next run of each site.
    """
    from pipeline.warehouse.schema import install_schemas, schema_names
    from pipeline.warehouse.vocabulary import compile_index, concept_counts, ignored_files, load_vocabulary

    settings, url = _warehouse()
    vocab, etl = settings.vocab_schema, settings.etl_schema
    install_schemas(url, **schema_names(settings))
    with _progress_bar() as show:
        release = load_vocabulary(url, folder, vocab_schema=vocab, etl_schema=etl, progress=show)
    echo("Compiling the concept index …", err=True)
    compile_index(url, release, vocab_schema=vocab, home=settings.home)
    _recheck_local_map(settings, url)
    _show_counts(concept_counts(url, vocab_schema=vocab))
    if ignored := ignored_files(folder, settings.cdm_version):
        echo(f"Left out: {', '.join(ignored)}. Their tables are not of the OMOP CDM {settings.cdm_version}.")
    echo(f"Vocabulary {release.release}: {release.concept_count:,} concepts are loaded.")
    _check_fixed_concepts(settings)


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


@app.command()
def show() -> None:
    """Show the release that is loaded, its concepts by vocabulary, and what the mappings miss in it."""
    from pipeline.warehouse.vocabulary import concept_counts, current_release

    settings, url = _warehouse()
    release = current_release(url, etl_schema=settings.etl_schema)
    if release is None:
        echo("No vocabulary is loaded. Next: `epic-omop vocabulary load FOLDER`.")
        return
    _show_counts(concept_counts(url, vocab_schema=settings.vocab_schema))
    echo(
        f"Vocabulary {release.release}: {release.concept_count:,} concepts, "
        f"loaded {release.loaded_at:%Y-%m-%d %H:%M} UTC from {release.folder_label}."
    )
    _check_fixed_concepts(settings)


@app.command()
def lookup(
    system: Annotated[
        str, typer.Argument(help="A FHIR system (http://loinc.org, urn:oid:…) or an OMOP vocabulary (LOINC).")
    ],
    code: Annotated[str, typer.Argument(help="The code, as it stands in the resource.")],
) -> None:
    """Show what a code maps to: the source concept, its standard concepts, and values that go with them."""
    import polars as pl

    settings, _ = _warehouse()
    vocabulary = _vocabulary_of(system, settings)
    index = _index(settings)
    rows = index.lookup(pl.DataFrame({"vocabulary_id": [vocabulary], "concept_code": [code]}))
    if rows.is_empty():
        raise VocabularyError(
            f"{vocabulary} has no code {code} in vocabulary {index.release}.",
            "Codes are case-sensitive. A site's own codes are mapped by `epic-omop unmapped import`.",
        )
    _show_mapping(index, rows)


def _warehouse() -> tuple[Settings, str]:
    from pipeline.core.settings import load_settings
    from pipeline.warehouse.connection import database_url

    settings = load_settings()
    return settings, database_url(settings.database_url, settings.home)


def _index(settings: Settings) -> ConceptIndex:
    from pipeline.warehouse.connection import database_url
    from pipeline.warehouse.vocabulary import ensure_index

    return ensure_index(
        database_url(settings.database_url, settings.home),
        vocab_schema=settings.vocab_schema,
        etl_schema=settings.etl_schema,
        home=settings.home,
    )


def _vocabulary_of(system: str, settings: Settings) -> str:
    from pipeline.transform.mapping.mappings import load_mappings

    if "://" not in system and not system.startswith("urn:"):
        return system
    vocabulary = load_mappings(settings.mappings).vocabulary_of(system)
    if vocabulary is None:
        raise UsageError(
            f"No vocabulary is known for the system {system}.",
            "Give an OMOP vocabulary_id such as LOINC, or add the system to concept_maps/code_systems.csv.",
        )
    return vocabulary


@contextmanager
def _progress_bar() -> Iterator[Progress]:

    with progress(Terminal(stderr=True), DownloadColumn(), transient=False) as bar:
        tasks: dict[str, TaskID] = {}

        def update(file: str, done: int, size: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=size)
            bar.update(tasks[file], completed=done)

        yield update


def _show_counts(counts: dict[str, int]) -> None:

    table = Table("Vocabulary", box=None)
    table.add_column("Concepts", justify="right")
    for vocabulary, count in counts.items():
        table.add_row(vocabulary, f"{count:,}")
    Terminal().print(table)


def _check_fixed_concepts(settings: Settings) -> None:
    """Say, once for each, which concepts that the mappings name are not as they should be."""
    from pipeline.transform.mapping.mappings import load_mappings

    mappings, index = load_mappings(settings.mappings), _index(settings)
    codes: dict[tuple[str, str], str] = {}
    for name, where in mappings.coded_concepts.items():
        vocabulary, _, code = name.partition(":")
        codes[vocabulary, code] = where
    standard = index.standard_of_codes(codes)
    count = len(mappings.fixed_concepts) + len(codes)
    checked = index.verify_fixed(mappings.fixed_concepts).values()
    warnings = [found.warning for found in checked if found.warning is not None]
    warnings += [
        f"{name}: {vocabulary} {code} has no Standard concept in vocabulary {index.release}; 0 is used instead."
        for (vocabulary, code), name in codes.items()
        if (vocabulary, code) not in standard
    ]
    if not warnings:
        echo(f"All {count} concepts that the mappings name are Standard and valid in it.")
        return
    echo(f"Of {count} concepts that the mappings name, {len(warnings)} are missing or changed:")
    for warning in warnings:
        echo(f"  {warning}")


def _show_mapping(index: ConceptIndex, rows: pl.DataFrame) -> None:
    named = {
        row["concept_id"]: row
        for row in index.concepts(
            rows.select("source_concept_id", "target_concept_id", "value_concept_id")
            .unpivot()["value"]
            .drop_nulls()
            .unique()
            .to_list()
        ).to_dicts()
    }

    def described(concept_id: int | None) -> str:
        concept = named.get(concept_id)
        if concept is None:
            return "0 (No matching concept)" if not concept_id else str(concept_id)
        text = f"{concept_id} {concept['concept_name']} [{concept['vocabulary_id']}, {concept['domain_id']}"
        return text + (", invalid]" if concept["invalid_reason"] else "]")

    echo(f"source    {described(rows['source_concept_id'][0])}")
    for row in rows.to_dicts():
        echo(f"standard  {described(row['target_concept_id'])}")
        if row["value_concept_id"] is not None:
            echo(f"  value   {described(row['value_concept_id'])}")


register(app)
