"""`epic-omop vocabulary`: load a vocabulary, show what is loaded, look a code up, for people.

Only what a terminal needs is here; the work is done in `pipeline/warehouse/vocabulary/`. The commands that deal with
several releases are in `vocabulary_releases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    listing_as_json,
    print_csv,
    print_json,
    refuse_both,
)
from pipeline.commands.output import (
    show as show_listing,
)
from pipeline.commands.terminal import Terminal, echo
from pipeline.commands.vocabulary_releases import counts_of_vocabularies, load_download, register, release_as_json
from pipeline.commands.vocabulary_resolve import RESOLVE_EXAMPLES, resolve
from pipeline.core.errors import UsageError, VocabularyError

if TYPE_CHECKING:
    import polars as pl

    from pipeline.core.settings import Settings
    from pipeline.transform.mapping.mappings import Mappings
    from pipeline.warehouse.vocabulary import ConceptIndex

__all__ = ["app"]

_LOAD_EXAMPLES = (
    "Examples: epic-omop vocabulary load ~/athena · epic-omop vocabulary load ~/athena --only SNOMED,LOINC,RxNorm"
)

app = typer.Typer(
    no_args_is_help=True,
    help="The OMOP vocabulary: load a download, see what is loaded, look a code up.\n\n"
    "Get one from https://athena.ohdsi.org: choose at least SNOMED, ICD10CM, LOINC, RxNorm, NDC, CVX and UCUM, "
    "and unpack the zip file that you are sent.",
)


@app.command(epilog=_LOAD_EXAMPLES)
def load(
    folder: Annotated[Path, typer.Argument(help="The unpacked download: the folder with CONCEPT.csv in it.")],
    force: Annotated[bool, typer.Option("--force", help="Load it whatever speaks against it.")] = False,
    only: Annotated[
        str | None,
        typer.Option(help="Vocabularies to load, separated by commas; the rest of the download is left out."),
    ] = None,
    keep: Annotated[int, typer.Option(help="Releases that stay, the active one among them.")] = 2,
) -> None:
    """Load an Athena download beside the active release, check it, and make it the active one.

    Readers go on reading meanwhile. Refused, unless --force says otherwise: a download that lacks a vocabulary which is
    loaded, in which one has lost more than 5 % of its concepts or `Maps to`, whose files do not fit together, or that is
    older. The former release stays, and `vocabulary use` goes back to it.
    """
    settings, url = _warehouse()
    load_download((settings, url), folder, force=force, only=only, keep=keep)
    _check_fixed_concepts(settings, url)


@app.command()
def show(as_json: JsonOption = False, as_csv: CsvOption = False) -> None:
    """Show the release that is loaded, its concepts by vocabulary, and what the mappings miss in it.

    Example: epic-omop vocabulary show --csv
    """
    from pipeline.warehouse.vocabulary import concept_counts, current_release

    settings, url = _warehouse()
    release = current_release(url, etl_schema=settings.etl_schema)
    if release is None and not (as_json or as_csv):
        echo("No vocabulary is loaded. Next: `epic-omop vocabulary load FOLDER`.")
        return
    counts = counts_of_vocabularies(concept_counts(url, vocab_schema=settings.vocab_schema) if release else {})
    if as_json or as_csv:
        refuse_both(as_json=as_json, as_csv=as_csv)
        content = release_as_json(release) | {"counts": listing_as_json(counts)} if release else None
        print_json(content) if as_json else print_csv(counts)
        return
    assert release is not None
    show_listing(Terminal(highlight=False), counts)
    echo(
        f"Vocabulary {release.release} ({release.content_hash[:12]}): {release.concept_count:,} concepts, "
        f"loaded {release.loaded_at:%Y-%m-%d %H:%M} UTC from {release.folder_label}."
    )
    _check_fixed_concepts(settings, url)


@app.command()
def lookup(
    system: Annotated[
        str, typer.Argument(help="A FHIR system (http://loinc.org, urn:oid:…) or an OMOP vocabulary (LOINC).")
    ],
    code: Annotated[str, typer.Argument(help="The code, as it stands in the resource.")],
    site: Annotated[
        str | None, typer.Option("--site", help="By the site's mappings and its local map, as its next load does.")
    ] = None,
) -> None:
    """Show what a code maps to: the source concept, its standard concepts, and values that go with them.

    Without --site: by the vocabulary, and what local maps say for all sites.

    Example: epic-omop vocabulary lookup http://loinc.org 2160-0
    """
    settings, url = _warehouse()
    mappings = _mappings(settings, site)
    vocabulary = _vocabulary_of(system, mappings, is_of_site=site is not None)
    index = _with_local_map(settings, url, _index(settings, url), site, mappings)
    rows = _first_known(index, mappings.code_forms.attempts(vocabulary, code), vocabulary)
    if rows.is_empty():
        raise VocabularyError(
            f"{vocabulary} has no code {code} in vocabulary {index.release}.",
            "Codes are case-sensitive. A site's own codes are mapped by `epic-omop unmapped import`.",
        )
    _show_mapping(index, rows)


@app.command(epilog="Example: epic-omop vocabulary suggest 'nausea, unspecified' --domain Condition --json")
def suggest(
    text: Annotated[str, typer.Argument(help="A name, a display or any text.")],
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="Only concepts of this domain; repeat for several.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 10,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Find Standard concepts that a text may mean, with a score from 0 to 1, in the loaded vocabulary alone.

    The names of a release are prepared when somebody asks for the first time: minutes at full size.
    """
    from dataclasses import asdict

    from pipeline.commands.suggesting import open_suggestions
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    with open_suggestions(runtime) as suggestions:
        domains = suggestions.known_domains(domain or ())
        found = suggestions.of_text(text, domains, limit)
    if as_json:
        print_json([asdict(item) for item in found])
        return
    rows = [(round(item.score, 2), item.concept_id, item.name, item.domain_id) for item in found]
    if not rows and not as_csv:
        echo("No concept has a name like it.")
        return
    show_listing(Terminal(highlight=False), Listing("", _SUGGESTION, rows), as_csv=as_csv)


_SUGGESTION = (
    Column("score", "score", "number"),
    Column("concept_id", "concept", "number"),
    Column("name", "name"),
    Column("domain_id", "domain", "code"),
)


def _first_known(index: ConceptIndex, attempts: Sequence[tuple[str, ...]], vocabulary: str) -> pl.DataFrame:
    """The index rows of the first spelling that the vocabulary knows. Raises VocabularyError where it knows several."""
    import polars as pl

    for attempt in attempts:
        rows = index.lookup(pl.DataFrame({"vocabulary_id": [vocabulary] * len(attempt), "concept_code": list(attempt)}))
        codes = rows["concept_code"].unique(maintain_order=True).to_list()
        if len(codes) > 1:
            raise VocabularyError(
                f"The code may be {' or '.join(codes)}: vocabulary {index.release} has more than one of them.",
                "Loads give such a code the concept 0 and the issue code_ambiguous. Give one of these, or map the code locally.",
            )
        if codes:
            break
    return rows


def _mappings(settings: Settings, site: str | None) -> Mappings:
    from pipeline.commands.site_names import site_of_mappings
    from pipeline.transform.mapping.mappings import load_mappings

    if site is None:
        return load_mappings(settings.mappings)
    found = site_of_mappings(settings, site)
    return load_mappings(settings.mappings, found.name, found.mapping, settings.site_mappings_folder)


def _with_local_map(
    settings: Settings, url: str, index: ConceptIndex, site: str | None, mappings: Mappings
) -> ConceptIndex:
    from pipeline.warehouse.local_map.overlay import with_local_map

    return with_local_map(
        url, index, site, mappings, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema
    )


def _warehouse() -> tuple[Settings, str]:
    from pipeline.core.settings import load_settings
    from pipeline.warehouse.connection import database_url

    settings = load_settings()
    return settings, database_url(settings.database_url, settings.home)


def _index(settings: Settings, url: str) -> ConceptIndex:
    from pipeline.warehouse.vocabulary import ensure_index

    return ensure_index(url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home)


def _vocabulary_of(system: str, mappings: Mappings, *, is_of_site: bool) -> str:
    """What the codes of a system are looked up in; a site's own systems are known by local maps alone."""
    if "://" not in system and not system.startswith("urn:"):
        return system
    vocabulary = mappings.vocabulary_of(system)
    if vocabulary is None and is_of_site:
        return mappings.systems.canonical(system)
    if vocabulary is None:
        raise UsageError(
            f"No vocabulary is known for the system {system}.",
            "Give an OMOP vocabulary_id such as LOINC, --site where a site has mapped it locally, or add the system to"
            " concept_maps/code_systems.csv.",
        )
    return vocabulary


def _check_fixed_concepts(settings: Settings, url: str) -> None:
    """Say, once for each, which concepts that the mappings name are not as they should be."""
    from pipeline.transform.mapping.mappings import load_mappings
    from pipeline.transform.mapping.targets import missing_targets

    mappings, index = load_mappings(settings.mappings), _index(settings, url)
    count = len(mappings.fixed_concepts) + len(mappings.coded_concepts)
    checked = index.verify_fixed(mappings.fixed_concepts).values()
    warnings = [found.warning for found in checked if found.warning is not None]
    warnings += missing_targets(mappings.coded_concepts, index, mappings.code_forms)
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


register(app, _warehouse)
app.command(epilog=RESOLVE_EXAMPLES)(resolve)
