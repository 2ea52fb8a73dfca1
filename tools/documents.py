"""The pages of docs/ that are made from mappings and modules: `python -m tools.documents` (`make documents`).

- docs/dead-letters.md: how dead letters are worked off, and an entry for each code.
- docs/mapping-options.md: the named settings of the mapping.
- docs/mapping/: a page for each resource, element by element, with examples.
- docs/mapping-tables.md: filters, excluded types, value maps, code systems, constants, as they are.
- docs/modules.md: what each folder and module holds.
- docs/retention.md: what is kept for how long, and why.
- docs/writing-a-mapping.md: every key, column type and rule.
- docs/manifest.json: `epic-omop manifest` of the shared mappings, without the version.

A test holds them against what they are made from, so that they cannot grow old.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import orjson

from pipeline.core.mapping_options import MappingOptions, resources_of
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.quality.fixed_maps import FIXED_MAPS_RELEASE, origin_of
from pipeline.quality.manifest import manifest
from pipeline.transform.mapping.mappings import Mappings, ResourceMapping, load_mappings, read_mappings
from tools.dead_letters_page import dead_letters_page
from tools.mapping_pages import mapping_pages
from tools.module_page import module_page
from tools.retention_page import retention_page
from tools.writing_page import writing_page

__all__ = ["documents"]

_MADE = "Made by `make documents`; do not edit."


def documents() -> dict[str, str]:
    """File name in docs/ → its content."""
    mappings = load_mappings(MAPPINGS_FOLDER)
    return {
        "dead-letters.md": dead_letters_page(),
        "mapping-options.md": _joined(_options()),
        "mapping-tables.md": _joined(_tables(mappings)),
        "modules.md": module_page(),
        "retention.md": retention_page(),
        "writing-a-mapping.md": writing_page(),
        **mapping_pages(mappings),
        "manifest.json": orjson.dumps(_manifest(mappings), option=orjson.OPT_INDENT_2).decode() + "\n",
    }


def _manifest(mappings: Mappings) -> dict[str, object]:
    """Without the software's version, which changes with every commit."""
    found = manifest(mappings)
    return {**found, "software": {"name": found["software"]["name"]}}


def _joined(lines: Iterator[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _options() -> Iterator[str]:
    yield from ["# Options of the mapping", "", _MADE, ""]
    yield "Where sources contradict each other, or a site may want what the guide says, the mapping has a named setting."
    yield "They are set for each site under `mapping:` in sites.yaml, and change only the rows of the resources named here:"
    yield "the next run maps those again. `epic-omop mappings show RESOURCE --site SITE` shows what comes of them."
    yield from ["", "```yaml", "sites:", "  north:", "    mapping:"]
    name, field = next(iter(MappingOptions.model_fields.items()))
    yield from [f"      {name}: {field.default}", "```", ""]
    yield from [_row("option", "values, the default first", "resources", "what it does"), _row(*["---"] * 4)]
    for name, field in MappingOptions.model_fields.items():
        others = [str(value) for value in get_args(field.annotation) if value != field.default]
        values = ", ".join(f"`{value}`" for value in [str(field.default), *others])
        yield _row(f"`{name}`", values, ", ".join(resources_of(field)), field.description or "")


def _tables(mappings: Mappings) -> Iterator[str]:
    resources = read_mappings(MAPPINGS_FOLDER).resources
    yield from [
        "# Filters and fixed maps",
        "",
        _MADE,
        "How they are used is described in [mapping.md](mapping.md).",
        "",
    ]
    yield from [
        "## Filters",
        "",
        "Which resources make rows; the others are counted by these reasons in `etl.exclusion`.",
        "",
    ]
    yield from [_row("resource", "kept", "excluded, with the reason", "by option"), _row(*["---"] * 4)]
    for name in sorted(resources):
        yield _row(name, *_filters(resources[name]))
    yield from _modifiers()
    yield from ["", "## Types that are never mapped", "", _row("resource", "reason"), _row("---", "---")]
    yield from (_row(name, reason) for name, reason in sorted(mappings.unmapped_types.items()))
    yield from [
        "",
        "## Value maps",
        "",
        "`mappings/concept_maps/values/*.csv`; a site's own entries come before them. They name concepts as of the release",
        f"of {FIXED_MAPS_RELEASE}, and each is looked up in the release that is loaded.",
        "",
    ]
    yield from [_row("map", "system", "entries", "written from"), _row(*["---"] * 4)]
    for name, entries in sorted(mappings.value_maps.items()):
        for system, count in sorted(Counter(entry.system for entry in entries).items()):
            yield _row(name, system, count, origin_of(name))
    yield from ["", "## Code systems", "", _row("system", "vocabulary", "else", "for"), _row(*["---"] * 4)]
    for system, vocabulary in sorted(mappings.code_systems.items()):
        other = mappings.fall_backs.get(system)
        purposes = ", ".join(sorted(other.purposes)) or "all" if other else ""
        yield _row(system, vocabulary, other.vocabulary_id if other else "", purposes)
    yield from ["", "## Other names of code systems", "", _row("alias", "system"), _row("---", "---")]
    yield from (_row(alias, system) for alias, system in sorted(mappings.systems.given.items()))
    yield from ["", "## Forms of codes", "", _row("vocabulary", "code as it comes", "looked up as"), _row(*["---"] * 3)]
    for vocabulary, forms in mappings.code_forms.of_vocabulary.items():
        for code, attempts in forms.cases.items():
            named = [" or ".join(one) if isinstance(one, list) else one for one in attempts]
            yield _row(vocabulary, f"`{code}`", ", ".join(f"`{one}`" for one in (code, *named)))
    yield from ["", "## Choice among codings", "", _row("element", "vocabularies in order"), _row("---", "---")]
    yield from (_row(name, ", ".join(order)) for name, order in mappings.vocabulary_priority.items())
    yield from _rules_about_rows(mappings)


def _rules_about_rows(mappings: Mappings) -> Iterator[str]:
    yield from [
        "",
        "## Numbers",
        "",
        "`mappings/plausibility/*.csv`: what a number may be, and what becomes of another one.",
    ]
    yield from ["", _row("of", "unit", "low", "high", "negative", "another one"), _row(*["---"] * 6)]
    for limit in mappings.limits:
        allowed = {True: "allowed", False: "not allowed", None: ""}[limit.negative_allowed]
        of = limit.concept or f"domain {limit.domain}"
        ends = ["" if end is None else f"{end:g}" for end in (limit.low, limit.high)]
        yield _row(
            of, limit.unit or "any", *ends, allowed, "" if limit.negative_allowed and not any(ends) else limit.action
        )
    yield from ["", "## Standard units", "", "`mappings/units/*.csv`: number × factor + offset."]
    yield from ["", _row("of", "from", "to", "factor", "offset"), _row(*["---"] * 5)]
    for one in mappings.conversions:
        yield _row(
            one.concept, one.source, one.target, f"{one.factor:.10g}", f"{one.offset:.10g}" if one.offset else ""
        )
    yield from [
        "",
        "## Facts that come twice",
        "",
        "`mappings/duplicates/*.csv`: rows of two resources that are equal in these",
    ]
    yield from ["columns, and, where types are named, have two of them.", ""]
    yield from [_row("rule", "table", "equal", "types"), _row(*["---"] * 4)]
    for rule in mappings.duplicates:
        yield _row(rule.name, rule.table, ", ".join(rule.same), ", ".join(map(str, rule.types)))


def _modifiers() -> Iterator[str]:
    yield from ["", "## Modifier elements", ""]
    yield "What R4 calls a modifier, in the types that are mapped and in data types (f2o-063): what each value does, why, and"
    yield "the golden case that shows it. `kept`: the rows are as without it; `issue:` is recorded in `etl.row_issue`."
    yield from ["", _row("element", "value", "does", "why", "shown by"), _row(*["---"] * 5)]
    with (MAPPINGS_FOLDER / "modifier_elements.csv").open(encoding="utf-8", newline="") as stream:
        yield from (_row(*line.values()) for line in csv.DictReader(stream))


def _filters(mapping: ResourceMapping) -> tuple[str, str, str]:
    status = mapping.status
    kept = f"{status.column}: {', '.join(status.keep)}" if status else "all"
    if status and status.missing != "reject":
        kept += f"; missing: {status.missing}"
    excluded = [f"{value}: {reason}" for value, reason in (status.exclude if status else {}).items()]
    plain = [rule for rule in mapping.exclude if not rule.option]
    excluded += [f"where {rule.when}: {rule.reason}" for rule in plain]
    options = []
    for variant in status.variants if status else ():
        changes = [f"keeps {value}" for value in variant.keep]
        changes += [f"excludes {value}: {reason}" for value, reason in variant.exclude.items()]
        options.append(f"{_named(variant.option)} {', '.join(changes)}")
    options += [
        f"{_named(rule.option)} excludes where {rule.when}: {rule.reason}" for rule in mapping.exclude if rule.option
    ]
    return kept, "; ".join(excluded) or "none", "; ".join(options)


def _named(option: object) -> str:
    assert isinstance(option, dict)
    return " and ".join(
        f"`{name}: {value if isinstance(value, str) else ' or '.join(value)}`" for name, value in option.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(prog="python -m tools.documents", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder to write to (docs)")
    folder = parser.parse_args(arguments).out
    pages = documents()
    for file in (folder / "mapping").glob("*.md"):
        if f"mapping/{file.name}" not in pages:
            file.unlink()
    (folder / "mapping").mkdir(exist_ok=True)
    for name, content in pages.items():
        (folder / name).write_text(content, encoding="utf-8")
        sys.stdout.write(f"{folder / name} is written.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
