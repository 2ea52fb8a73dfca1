"""docs/mapping/: a page for each resource, for readers who know FHIR and medicine and not this program.

What becomes of which element, by which rule, with examples of the golden cases: FHIR in, rows out. The lines are those of
`column_lines`; here is how they look, and which examples stand beside them.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.mapping.mappings import Mappings, ResourceMapping, ValueMapEntry, ViewMapping, read_mappings
from pipeline.transform.rules import RULES
from tools.column_lines import ColumnLine, ViewElements, column_lines, location_lines, tables_of
from tools.concept_names import named
from tools.elements import elements_of, leaves_at
from tools.golden_cases import GoldenCase, golden_cases, shortened
from tools.view_examples import ViewExample, examples_of, has_settings, is_of_an_edge

__all__ = ["mapping_pages"]

_WIDTH = 120
#: Examples with all of a case, in a page; entries of a value map that a page shows.
_EXAMPLES, _ENTRIES = 5, 60
#: Characters of an example within a table.
_SHOWN = 90
_MADE = "Made by `make documents` from the mapping, its rules and the golden cases; do not edit."
_CASES = "../../tests/golden"
#: What means something in YAML's flow.
_NEEDS_QUOTES = re.compile(r"[\[\]{},#\"'&*!|>%@`\\\n]|: |:$|^[-?:] |^\s|\s$")


def mapping_pages(mappings: Mappings) -> dict[str, str]:
    """File name in docs/ → its content: a page for each resource, and the index."""
    every = read_mappings(MAPPINGS_FOLDER).resources
    parts = [(mapping, every[name]) for name, mapping in sorted(mappings.resources.items())]
    pages = {f"mapping/{mapping.resource}.md": _page(mapping, each, mappings) for mapping, each in parts}
    return {"mapping/README.md": _text(_index(parts)), **pages}


def _text(lines: Iterable[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# --- the index -----------------------------------------------------------------------------------------------------


def _index(parts: Iterable[tuple[ResourceMapping, ResourceMapping]]) -> Iterator[str]:
    yield from ["# From FHIR to OMOP, element by element", "", _MADE, ""]
    yield from wrap(
        "A page for each resource: which of them make rows, which element becomes which column and by which rule, with"
        " an example, and some whole examples. How decisions are made that hold for all is described in"
        " [mapping.md](../mapping.md); settings of a site are in [mapping-options.md](../mapping-options.md).",
        _WIDTH,
    )
    yield ""
    yield from wrap(
        "Concepts are those of the golden cases' own small vocabulary: the ids are OHDSI's, but for those from"
        " 2,000,000,000 on, which are made up where OHDSI's is not at hand, and what says so itself.",
        _WIDTH,
    )
    yield from ["", "## By resource", "", *_head("resource", "fills", "golden cases")]
    counts = Counter(case.resource for case in golden_cases().values())
    filled: dict[str, list[str]] = {}
    for mapping, every in parts:
        name = mapping.resource
        tables = list(dict.fromkeys(table for view in _all_views(mapping, every) for table in tables_of(view)))
        tables += ["location"] if location_lines(mapping) else []
        for table in tables:
            filled.setdefault(table, []).append(name)
        yield _row(f"[{name}]({name}.md)", _codes(tables) or "nothing itself: others use it", counts[name])
    yield from ["", *wrap("Rows of events go to the table of their concept's domain, whatever their home is.", _WIDTH)]
    yield from ["", "## By table", "", *_head("table", "resources")]
    for table, names in sorted(filled.items()):
        yield _row(f"`{table}`", ", ".join(f"[{name}]({name}.md)" for name in names))
    yield from ["", "Types that are never mapped are in [mapping-tables.md](../mapping-tables.md)."]


def _all_views(mapping: ResourceMapping, every: ResourceMapping) -> list[ViewMapping]:
    """Views with rows: those of the default settings, and after them those that only an option brings."""
    found = [view for view in mapping.views if view.kind in ("event", "entity")]
    names = {view.name for view in found}
    for view in every.views:
        if view.kind in ("event", "entity") and view.name not in names:
            names.add(view.name)
            found.append(view)
    return found


# --- a resource ----------------------------------------------------------------------------------------------------


def _page(mapping: ResourceMapping, every: ResourceMapping, mappings: Mappings) -> str:
    """`every`: the mapping with what holds only under options."""
    name = mapping.resource
    lines = [f"# {name}", "", f"{_MADE} [All resources](README.md)", "", *_introduction(name)]
    lines += ["", *_which_count(mapping, every), "", *_modifiers(mapping)]
    default = {view.name for view in mapping.views}
    for view in _all_views(mapping, every):
        lines += ["", *_view(mapping, view, mappings, by_option=view.name not in default)]
    lines += ["", *_location(mapping), "", *_facts(mapping), "", *_value_maps(mapping, mappings), "", *_examples(name)]
    return _text(lines)


def _introduction(name: str) -> list[str]:
    """The comment at the head of the mapping, without the references to the specification."""
    comment = []
    for line in (MAPPINGS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentences = re.split(r"(?<=[.:]) +(?=[A-Z])", " ".join(comment))
    kept, in_reference = [], False
    for sentence in sentences:
        in_reference = sentence.startswith("Specification:") or (in_reference and sentence.startswith('"'))
        if not in_reference:
            kept.append(sentence)
    return wrap(" ".join(kept), _WIDTH, break_on_hyphens=False)


def _which_count(mapping: ResourceMapping, every: ResourceMapping) -> Iterator[str]:
    """Which resources make rows, by the code of their status and by conditions."""
    first = ViewElements(mapping, mapping.resource_view)
    lines = []
    if mapping.status:
        element = ", ".join(first.of([mapping.status.column]))
        by_reason: dict[str, list[str]] = {}
        for value, reason in mapping.status.exclude.items():
            by_reason.setdefault(reason, []).append(value)
        lines.append(_row(f"`{element}`", _codes(mapping.status.keep), "rows"))
        lines += [_row(f"`{element}`", _codes(values), f"excluded: `{why}`") for why, values in by_reason.items()]
        missing = {"keep": "rows", "reject": "rejected", "exclude": "excluded: `status_missing`"}
        lines.append(_row(f"`{element}`", "missing", missing[mapping.status.missing]))
        for variant in every.status.variants if every.status else ():
            where = f"with {_option(variant.option)}"
            lines += [_row(f"`{element}`", _codes(variant.keep), f"rows {where}")] if variant.keep else []
            lines += [
                _row(f"`{element}`", f"`{v}`", f"excluded: `{why}` {where}") for v, why in variant.exclude.items()
            ]
    for rule in every.exclude:
        where = f" with {_option(rule.option)}" if rule.option else ""
        elements = ViewElements(every, every.resource_view)
        words = elements.condition(rule.when)
        lines.append(_row(_codes(elements.of([rule.when])), words, f"excluded: `{rule.reason}`{where}"))
    if lines:
        yield from ["## Which make rows", "", *_head("element", "value", "what happens"), *lines]


def _option(option: Mapping[str, Any]) -> str:
    return " and ".join(
        f"`{name}: {value if isinstance(value, str) else ' or '.join(value)}`" for name, value in option.items()
    )


def _modifiers(mapping: ResourceMapping) -> Iterator[str]:
    """Without the status, of which `_which_count` says all."""
    name, status = mapping.resource, mapping.status
    known = ViewElements(mapping, mapping.resource_view).of([status.column]) if status else ()
    with (MAPPINGS_FOLDER / "modifier_elements.csv").open(encoding="utf-8", newline="") as stream:
        lines = [
            line
            for line in csv.DictReader(stream)
            if line["element"].startswith(f"{name}.") and line["element"].removeprefix(f"{name}.") not in known
        ]
    if lines:
        yield from [
            "## Modifier elements",
            "",
            "What each value of an element does that R4 calls a modifier; `kept`: the rows are as without it.",
            "",
        ]
        yield from _head("element", "value", "does", "why")
        for line in lines:
            value = "any other" if line["value"] == "*" else f"`{line['value']}`"
            yield _row(f"`{line['element'].removeprefix(f'{name}.')}`", value, line["does"], line["why"])


def _view(mapping: ResourceMapping, view: ViewMapping, mappings: Mappings, *, by_option: bool) -> Iterator[str]:
    tables = tables_of(view)
    title = view.name.replace("_", " ")
    yield from [f"## {title} → {' or '.join(tables)}", ""]
    words = _about(mapping, view, by_option=by_option)
    if words:
        yield from [*wrap(words, _WIDTH, break_on_hyphens=False), ""]
    yield from _head("element", "column", "rule", "example")
    examples = list(examples_of(mapping, view))
    for line in column_lines(mapping, view, mappings):
        yield _row(_codes(line.elements), _codes(line.columns), line.rule, _example(line, examples))
    needed = ViewElements(mapping, view).of([name for name in view.required if not name.endswith("date")])
    dates = ["a usable date"] if any(name.endswith("date") for name in view.required) else []
    if view.row == "own" and (needed or dates):
        lacks = " or ".join([*(f"`{name}`" for name in needed), *dates])
        yield from ["", *wrap(f"Without {lacks} the resource is rejected.", _WIDTH)]
    elif view.is_further:
        yield from ["", *wrap("Where such a row cannot be made it is left out, and the others stay.", _WIDTH)]


def _about(mapping: ResourceMapping, view: ViewMapping, *, by_option: bool) -> str:
    words, elements = [], ViewElements(mapping, view)
    if by_option:
        words.append(f"Only with {_option(view.option)}.")
    repeated = next((value for key, value in _selects(view.definition) if key in ("forEach", "repeat")), None)
    if repeated:
        names = [repeated] if isinstance(repeated, str) else list(repeated)
        names = [element for name in names for element in elements_of(name)] or names
        words.append(f"One row for each {_codes(names)}.")
    rules = [RULES[name].summary for name in view.derive if not RULES[name].writes]
    if view.kind == "event" and not view.table:
        homes = "; ".join(
            f"`{rule.table}`" + (f" where {elements.condition(rule.when)}" if rule.when else "")
            for rule in view.home_table
        )
        words.append(f"The domain of the concept decides the table; without a concept the row is in {homes}.")
    return " ".join([*words, *rules])


def _selects(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for select in node.get("select", ()):
        yield from ((key, select[key]) for key in ("forEach", "forEachOrNull", "repeat") if key in select)
        yield from _selects(select)


def _location(mapping: ResourceMapping) -> Iterator[str]:
    lines = location_lines(mapping)
    if not lines:
        return
    yield from ["## address → location", "", "Equal addresses are one row.", ""]
    yield from _head("element", "column", "rule", "example")
    examples = [
        ViewExample(case, case.resources()[0], row)
        for case in golden_cases().values()
        if case.resource == mapping.resource and len(case.resources()) == 1 and not has_settings(case)
        for row in case.rows().get("location", ())
    ]
    for line in lines:
        shown = _example(line, examples)
        if shown:
            yield _row(_codes(line.elements), _codes(line.columns), line.rule, shown)


def _facts(mapping: ResourceMapping) -> Iterator[str]:
    views = [view for view in mapping.views if view.kind == "fact" and not view.name.startswith("identifier")]
    if not views:
        return
    yield from ["## For rows of other resources", "", "What is kept of it for others, and makes no row here.", ""]
    yield from _head("element", "kept as", "rule")
    for view in views:
        elements = ViewElements(mapping, view)
        columns = [name for name in (*view.column_types, *_read(view)) if name in elements and name != "item_number"]
        names = [name for name in elements.of(columns) if name != "id"]
        rules = " ".join(RULES[name].summary.removeprefix("Fact: ") for name in view.derive)
        yield _row(_codes(names), view.fact.replace("_", " ") if view.fact else "", rules or "As it came.")


def _read(view: ViewMapping) -> list[str]:
    return [column for name in view.derive for column in RULES[name].columns]


# --- value maps ----------------------------------------------------------------------------------------------------


def _value_maps(mapping: ResourceMapping, mappings: Mappings) -> Iterator[str]:
    names = dict.fromkeys(name for view in mapping.views for rule in view.derive for name in RULES[rule].value_maps)
    shown = [name for name in names if mappings.value_maps.get(name)]
    if not shown:
        return
    yield from ["## Value maps", ""]
    yield from wrap(
        "Codes that mean the same whatever the vocabulary says of them. A site's own entries come before these.", _WIDTH
    )
    for name in shown:
        entries = mappings.value_maps[name]
        file = f"../../mappings/concept_maps/values/{name}.csv"
        yield from ["", f"### {name.replace('_', ' ')}", "", *_head("code", "system", "becomes")]
        yield from (_row(*_entry(entry)) for entry in entries[:_ENTRIES])
        yield from ["", f"[{name}.csv]({file})" + (f": {len(entries)} entries." if len(entries) > _ENTRIES else "")]


def _entry(entry: ValueMapEntry) -> tuple[str, str, str]:
    code = f"`{entry.code}`" + (f" within `{entry.within}`" if entry.within else "")
    if entry.exclude_reason:
        becomes = f"excluded: `{entry.exclude_reason}`"
    elif entry.meaning:
        becomes = f"*{entry.meaning.replace('_', ' ')}*"
    else:
        becomes = ", else ".join(named(target) for target in entry.targets)
    return code, entry.system.rsplit("/", 1)[-1] or entry.system, becomes


# --- examples ------------------------------------------------------------------------------------------------------


def _example(line: ColumnLine, examples: Sequence[ViewExample]) -> str:
    """`element value` → `column value` of the first case that has both, with its name; a known concept before 0."""
    if not line.elements or line.columns == ("person_id",):
        return ""
    found = [shown for example in examples for shown in [_shown_in(example, line)] if shown]
    return next((text for text, is_known in found if is_known), found[0][0] if found else "")


def _shown_in(example: ViewExample, line: ColumnLine) -> tuple[str, bool] | None:
    """The text, and whether no concept in it is 0; None where the case does not have the line."""
    case = example.case
    filled = [(name, example.row[name]) for name in line.columns if example.row.get(name) not in (None, "", "null")]
    leaves = [
        f"{element}{'.' + path if path else ''} {value}"
        for element in line.elements
        for path, value in leaves_at(example.given, element)[:2]
        if not any(other != element and other.startswith(f"{element}.") for other in line.elements)
    ]
    if not filled or not leaves:
        return None
    before = _code(shortened("; ".join(leaves), _SHOWN))
    after = ", ".join(f"`{name}` {_value(name, value)}" for name, value in filled)
    remark = ", under settings of its own" if has_settings(case) else ""
    text = f"{before} → {after} ([{case.document['case']}]({_CASES}/{case.resource}/{case.topic}.yaml){remark})"
    return text, ("0" not in [value for name, value in filled if name.endswith("concept_id")])


def _value(column: str, value: Any) -> str:
    return named(value) if column.endswith("concept_id") else shortened(str(value), _SHOWN)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def _examples(name: str) -> Iterator[str]:
    cases = _chosen(name)
    every = [case for case in golden_cases().values() if case.resource == name]
    if not cases:
        return
    yield from ["## Examples", ""]
    for case in cases:
        yield from _whole(case)
    topics = Counter(case.topic for case in every)
    links = ", ".join(f"[{topic}]({_CASES}/{name}/{topic}.yaml) ({count})" for topic, count in topics.items())
    yield from ["", *wrap(f"All {len(every)} cases: {links}.", _WIDTH, break_long_words=False, break_on_hyphens=False)]


def _chosen(name: str) -> list[GoldenCase]:
    """The first case of each topic that makes a row, up to a few: without settings, or where there is none, with."""
    found: dict[str, GoldenCase] = {}
    with_settings: dict[str, GoldenCase] = {}
    for case in golden_cases().values():
        if case.resource == name and case.rows() and not is_of_an_edge(case) and len(case.resources()) == 1:
            (with_settings if has_settings(case) else found).setdefault(case.topic, case)
    return list((found or with_settings).values())[:_EXAMPLES]


def _whole(case: GoldenCase) -> Iterator[str]:
    title = case.title[:1].upper() + case.title[1:]
    yield from ["", f"### {case.topic.replace('_', ' ')}: {case.document['case'].replace('-', ' ')}", ""]
    yield from [*wrap(title + ("" if title.endswith((".", "?")) else "."), _WIDTH, break_on_hyphens=False), ""]
    yield "```yaml"
    for resource in [*(case.document.get("given") or ()), *case.resources()]:
        yield from _outline(resource)
    yield from ["```", "", *_head("table", "column", "value")]
    for table, rows in case.rows().items():
        for row in rows:
            first = f"`{table}`"
            for column, value in row.items():
                yield _row(first, f"`{column}`", _value(column, value))
                first = ""
    for text in (*_settings(case), *_accounts(case)):
        yield from ["", *wrap(text, _WIDTH, break_on_hyphens=False)]


def _settings(case: GoldenCase) -> Iterator[str]:
    for name in ("site", "instance", "values"):
        if name in case.document:
            yield f"With settings of the {'site' if name == 'values' else name}: `{_flow(case.document[name])}`."


def _accounts(case: GoldenCase) -> Iterator[str]:
    for resource, outcome in (case.document.get("outcomes") or {}).items():
        yield f"Outcome of `{resource}`: `{outcome}`."
    for resource, codes in (case.document.get("issues") or {}).items():
        yield f"Issues of `{resource}`: {_codes(codes)}."


def _outline(resource: Mapping[str, Any]) -> Iterator[str]:
    """A resource as YAML: an element a line, what is in it beside it where that fits, else below."""
    yield f"{resource.get('resourceType')}:"
    for name, value in resource.items():
        if name != "resourceType":
            yield from _element(f"  {name}:", value)


def _element(start: str, value: Any) -> Iterator[str]:
    line = f"{start} {_flow(value)}"
    if len(line) <= _WIDTH - 10 or not isinstance(value, Mapping | list):
        yield line
        return
    yield start
    indent = " " * (len(start) - len(start.lstrip(" -")) + 2)
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _element(f"{indent}{name}:", each)
    else:
        for each in value:
            yield from _item(f"{indent}-", each)


def _item(start: str, value: Any) -> Iterator[str]:
    line = f"{start} {_flow(value)}"
    if len(line) <= _WIDTH - 10 or not isinstance(value, Mapping):
        yield line
        return
    for name, each in value.items():
        yield from _element(f"{start} {name}:", each)
        start = " " * len(start)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if _NEEDS_QUOTES.search(text) or not text else text
