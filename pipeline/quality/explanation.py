"""How a row came about: the landed line, its codings, what each resolved to and why, which one counted, table and row.

Asked of the warehouse, of landing, and of the resolver that loads use, under the mappings and the vocabulary of today. Only codes
of the line are in it, and texts as far as the site's allow-list lets them be kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson
import polars as pl
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from omop_schema import cdm
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.core.errors import UsageError
from pipeline.core.settings import SiteSettings
from pipeline.landing.store import LandingStore
from pipeline.load.fingerprints import SiteRules
from pipeline.load.landed_lines import read_landed
from pipeline.publication.landed_line import LANDED_LINE, LandedLine
from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY, CodeSets
from pipeline.transform.concepts.resolver import UNIT, ConceptResolver
from pipeline.transform.mapping.mappings import ResourceMapping, ViewMapping
from pipeline.transform.plan import resolver_of
from pipeline.transform.routing import DOMAIN_TABLES

__all__ = ["Element", "Explanation", "Known", "explain", "find_resource", "find_row"]

_INDEX = re.compile(r"\[[0-9]+\]")
_OF_TYPE = re.compile(r"\.ofType\((\w+)\)")


@dataclass(frozen=True)
class Known:
    """A resource that is loaded, or was refused: its landed line and its state."""

    site: str
    resource_id: str
    line: LandedLine
    line_number: int
    outcome: str
    reason: str | None
    fingerprint: int


@dataclass(frozen=True)
class Concept:
    concept_id: int
    name: str
    vocabulary_id: str
    domain_id: str


@dataclass(frozen=True)
class CodingAnswer:
    """One coding of an element, asked by itself."""

    system: str | None
    code: str
    display: str | None
    #: vocabulary_id and spellings that are looked up
    tried: str
    #: local map, vocabulary, or nothing
    answered_by: str
    source_concept: Concept | None
    standard: tuple[Concept, ...]
    #: value concepts that go with them
    values: tuple[Concept, ...]
    counts: bool
    why: str


@dataclass(frozen=True)
class Element:
    """A CodeableConcept, a Coding or the unit of a Quantity."""

    #: FHIRPath from the resource
    path: str
    #: key of vocabulary_priority.yaml, by which its vocabularies are ordered; empty: it is of a value map, or has no order
    purpose: str
    codings: tuple[CodingAnswer, ...]
    #: where an event goes that has this code; None of other elements
    routing: str | None


@dataclass(frozen=True)
class Explanation:
    site: str
    resource: str
    landed: Mapping[str, Any]
    outcome: str
    reason: str | None
    vocabulary: str
    elements: tuple[Element, ...]
    #: CDM table, row_id, and the columns that hold something
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_KNOWN = (
    f"SELECT kind.site, state.resource_id, state.line, state.outcome, state.reason, state.fingerprint, {LANDED_LINE}"
    " FROM resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"
)


def find_row(connection: psycopg.Connection, table: str, row_id: int) -> list[Known]:
    """The resources of a row. `connection` has the etl schema on its search_path. Raises UsageError."""
    name = table.strip().lower()
    if name not in LINEAGE_TABLES:
        raise UsageError(
            f"{table} is no table whose rows come from resources.", f"Give one of {', '.join(LINEAGE_TABLES)}."
        )
    query = f"{_KNOWN} JOIN {lineage_table_name(name)} AS lineage USING (surrogate_id) WHERE lineage.row_id = %s"
    found = [_known(row) for row in connection.execute(query, (row_id,)).fetchall()]
    if not found:
        raise UsageError(f"{name} has no row {row_id} that a resource made.", "Give the row's primary key.")
    return sorted(found, key=lambda known: (known.site, known.line.resource_type, known.resource_id))


def find_resource(connection: psycopg.Connection, reference: str, site: str | None) -> list[Known]:
    """A resource by `Type/id`. Raises UsageError where no site has it, or where several do and none is named."""
    resource_type, _, resource_id = reference.partition("/")
    query = (
        f"{_KNOWN} WHERE kind.resource_type = %s AND state.resource_id = %s AND (%s::text IS NULL OR kind.site = %s)"
    )
    rows = connection.execute(query, (resource_type, resource_id, site, site)).fetchall()
    found = [_known(row) for row in rows]
    if not found:
        at = f" of site {site}" if site else ""
        raise UsageError(
            f"There is no such resource{at} in the warehouse.",
            "Give it as Type/id: Observation/abc, as the site has it.",
        )
    if len(found) > 1:
        raise UsageError(
            "Several sites have a resource of this id.",
            f"Give --site: {', '.join(sorted(item.site for item in found))}.",
        )
    return found


def _known(row: Sequence[Any]) -> Known:
    site, resource_id, number, outcome, reason, fingerprint, *line = row
    return Known(site, resource_id, LandedLine(*line), number, outcome, reason, fingerprint)


def explain(
    connection: psycopg.Connection,
    landing: LandingStore,
    site: SiteSettings,
    rules: SiteRules,
    known: Known,
    cdm_schema: str,
) -> Explanation:
    """The chain of one resource. `connection` has the etl schema on its search_path."""
    read = read_landed(landing, known.site, [known.line])
    found = read.found.get(known.line)
    notes = []
    content: Any = None
    if found is None:
        notes.append("The line is in no landed export any more: its codings cannot be shown.")
    else:
        try:
            content = orjson.loads(found.raw)
        except orjson.JSONDecodeError:
            notes.append("The line is no JSON.")
    resource_type = known.line.resource_type
    if rules.fingerprints.get(resource_type) != known.fingerprint:
        notes.append(
            "It was mapped under other settings or another vocabulary than those of today: `epic-omop remap` maps it again."
        )
    mapping = rules.mappings.resources.get(resource_type)
    elements: tuple[Element, ...] = ()
    if mapping is not None and isinstance(content, dict):
        elements = tuple(_Elements(rules, site, mapping).of(content))
        if known.outcome == "loaded" and not any(element.routing for element in elements):
            notes.append(
                "What its rows are is decided by no code of the line: by the mapping, or by a resource that it names."
            )
    elif mapping is None:
        reason = rules.mappings.unmapped_types.get(resource_type)
        notes.append(f"{resource_type} is not mapped{f': {reason}' if reason else ''}.")
    return Explanation(
        known.site,
        f"{resource_type}/{known.resource_id}",
        _landed(connection, known),
        known.outcome,
        known.reason,
        rules.index.release,
        elements,
        tuple(_rows(connection, cdm_schema, known)),
        tuple(notes),
    )


def _landed(connection: psycopg.Connection, known: Known) -> dict[str, Any]:
    line = known.line
    row = connection.execute(
        "SELECT file FROM export_file WHERE export_id = %s AND file_number = %s", (line.export_id, line.file_number)
    ).fetchone()
    return {
        "export_id": line.export_id,
        "file": row[0] if row else None,
        "line": known.line_number,
        "byte_offset": line.byte_offset,
        "byte_length": line.byte_length,
        "transaction_time": line.as_of.isoformat(),
    }


def _rows(connection: psycopg.Connection, cdm_schema: str, known: Known) -> Iterator[dict[str, Any]]:
    """Rows that the resource made; of their columns those that hold something."""
    for table in LINEAGE_TABLES:
        query = f"SELECT row_id FROM {lineage_table_name(table)} WHERE surrogate_id = %s ORDER BY 1"
        ids = [row_id for (row_id,) in connection.execute(query, (known.line.surrogate_id,)).fetchall()]
        if not ids:
            continue
        key = cdm.primary_key(table) or "person_id"
        statement = sql.SQL("SELECT * FROM {} WHERE {} = ANY(%s) ORDER BY {}").format(
            sql.Identifier(cdm_schema, table), sql.Identifier(key), sql.Identifier(key)
        )
        with connection.cursor(row_factory=dict_row) as cursor:
            for row in cursor.execute(statement, (ids,)).fetchall():
                filled = {name: value for name, value in row.items() if value is not None}
                yield {"table": table, "row_id": row[key], "columns": filled}


@dataclass(frozen=True)
class _Found:
    path: str
    value: dict[str, Any]
    is_quantity: bool


class _Elements:
    """Asks the resolver of a site about the coded elements of one line."""

    def __init__(self, rules: SiteRules, site: SiteSettings, mapping: ResourceMapping) -> None:
        self._rules = rules
        self._mapping = mapping
        self._shows_texts = mapping.resource in site.text_source_value_types
        self._canonical = rules.mappings.systems.canonical

    def of(self, content: dict[str, Any]) -> Iterator[Element]:
        for found in _coded(content, self._mapping.resource):
            purpose, is_event, home = self._asked_as(found)
            codings = self._codings(found)
            if not codings:
                continue
            answers = self._answers(found, codings, purpose)
            yield Element(found.path, purpose, answers, self._routing(answers, home) if is_event else None)

    def _asked_as(self, found: _Found) -> tuple[str, bool, str]:
        """The purpose, whether the code decides what an event is, and the table that it has without a concept."""
        if found.is_quantity:
            return UNIT, False, ""
        element = _INDEX.sub("", found.path).partition(".")[2]
        for view in self._mapping.views:
            if view.code and element in _code_elements(self._mapping, view):
                home = view.table or next((rule.table for rule in view.home_table), "")
                return view.priority or "", not view.concept_id, home
        return ("value" if element.rpartition(".")[2].startswith("value") else ""), False, ""

    def _codings(self, found: _Found) -> list[dict[str, Any]]:
        """What can be asked one by one: codings, else the text of the concept."""
        if found.is_quantity:
            return [found.value]
        codings = found.value.get("coding")
        named = (
            [one for one in codings if isinstance(one, dict) and one.get("code")] if isinstance(codings, list) else []
        )
        if named:
            return named
        return [found.value] if isinstance(found.value.get("text"), str) else []

    def _answers(self, found: _Found, codings: list[dict[str, Any]], purpose: str) -> tuple[CodingAnswer, ...]:
        sets = CodeSets(self._canonical)
        add = sets.add_quantity if found.is_quantity else sets.add_concept
        whole = add(found.value)
        single = [
            add(one) if found.is_quantity or "coding" in one or "code" not in one else sets.add_coding(one)
            for one in codings
        ]
        resolver = resolver_of(self._rules.mappings, sets, self._rules.index)
        resolved = resolver.resolve(purpose)
        without = resolver_of(self._rules.mappings, sets, self._rules.index.with_local(None, "")).resolve(purpose)
        winner = _of(resolved, whole)
        chosen = next((n for n, one in enumerate(single) if _is_chosen(winner, sets, one)), None)
        answers = []
        for number, (coding, of_set) in enumerate(zip(codings, single, strict=True)):
            own = _of(resolved, of_set)
            counts = number == chosen
            is_local = not _meaning(own).equals(_meaning(_of(without, of_set)))
            answers.append(self._answer(coding, own, resolver, (sets, of_set), counts=counts, is_local=is_local))
        return tuple(self._with_reasons(answers, purpose, chosen, codings))

    def _answer(
        self,
        coding: dict[str, Any],
        own: pl.DataFrame,
        resolver: ConceptResolver,
        asked: tuple[CodeSets, int | None],
        *,
        counts: bool,
        is_local: bool,
    ) -> CodingAnswer:
        sets, number = asked
        is_text = not coding.get("code")
        system, code = sets.first_coding(number) if number is not None else (None, None)
        tried = resolver.tried([(system, code)])[system, code] if code else f"{TEXT_VOCABULARY}"
        ids = [value for value in own["target_concept_id"].to_list() if value]
        values = [value for value in own["value_concept_id"].to_list() if value]
        source = own["source_concept_id"].to_list()[0] if own.height else 0
        named = self._concepts([*ids, *values, source])
        shown = coding.get("code") or coding.get("unit") or (coding.get("text") if self._shows_texts else "(a text)")
        why = "the vocabulary knows several codes that it may be" if own.height and own["is_ambiguous"].any() else ""
        answered = "local map" if is_local else "vocabulary" if source or ids else "nothing"
        if answered == "nothing" and code and (name := self._value_map(system, code)):
            answered = f"value map {name}"
        return CodingAnswer(
            system if not is_text else coding.get("system"),
            str(shown),
            coding.get("display") if not is_text else None,
            tried.partition(": ")[0] if ids else tried,
            answered,
            named.get(source),
            tuple(named[one] for one in dict.fromkeys(ids) if one in named),
            tuple(named[one] for one in dict.fromkeys(values) if one in named),
            counts,
            why,
        )

    def _with_reasons(
        self, answers: list[CodingAnswer], purpose: str, chosen: int | None, codings: list[dict[str, Any]]
    ) -> Iterator[CodingAnswer]:
        order = self._rules.mappings.vocabulary_priority.get(purpose, ())
        winner = answers[chosen] if chosen is not None else None
        for number, answer in enumerate(answers):
            if answer.why:
                yield answer
            elif answer.counts:
                yield replace(answer, why=_why_it_counts(answer, answers))
            elif winner is None or not answer.standard:
                yield replace(answer, why=_why_nothing(answer))
            else:
                selected = bool(codings[chosen or 0].get("userSelected")) and not codings[number].get("userSelected")
                yield replace(answer, why=self._why_not(answer, winner, order, selected=selected))

    def _why_not(self, answer: CodingAnswer, winner: CodingAnswer, order: Sequence[str], *, selected: bool) -> str:
        own, others = (self._rank(item, order) for item in (answer, winner))
        if own != others:
            return f"its vocabulary comes after that of {winner.code} ({', '.join(order)})"
        ids = pl.Series([item.concept_id for item in (*answer.standard, *winner.standard)], dtype=pl.Int64)
        descents = self._rules.index.descents(ids)
        above = {(one, two) for one, two in descents.iter_rows()}
        if any((one.concept_id, two.concept_id) in above for one in answer.standard for two in winner.standard):
            return f"its concept is broader than that of {winner.code}"
        return f"a user selected {winner.code}" if selected else f"it comes after {winner.code}, or is broader"

    def _rank(self, answer: CodingAnswer, order: Sequence[str]) -> int:
        vocabulary = answer.tried.partition(" ")[0]
        named = next((name for name in order if answer.tried.startswith(name)), vocabulary)
        return list(order).index(named) if named in order else len(order)

    def _value_map(self, system: str | None, code: str) -> str | None:
        """A value map that has the code: such codes are looked up there, not in the vocabulary."""
        maps = self._rules.mappings.value_maps.items()
        return next(
            (name for name, entries in maps if any((one.system, one.code) == (system, code) for one in entries)), None
        )

    def _concepts(self, ids: Sequence[int]) -> dict[int, Concept]:
        rows = self._rules.index.concepts([one for one in dict.fromkeys(ids) if one])
        return {
            row["concept_id"]: Concept(row["concept_id"], row["concept_name"], row["vocabulary_id"], row["domain_id"])
            for row in rows.to_dicts()
        }

    def _routing(self, answers: Sequence[CodingAnswer], home: str) -> str:
        concepts = [concept for answer in answers if answer.counts for concept in answer.standard]
        if not concepts:
            return f"without a concept it stays in its home table{f', {home}' if home else ''}"
        said = [
            f"domain {one.domain_id} of concept {one.concept_id}: {DOMAIN_TABLES.get(one.domain_id, home or 'observation')}"
            for one in concepts
        ]
        return "; ".join(dict.fromkeys(said))


def _why_it_counts(answer: CodingAnswer, answers: Sequence[CodingAnswer]) -> str:
    if not answer.standard:
        return _why_nothing(answer)
    if len(answers) == 1:
        return "it is the only one"
    others = [item for item in answers if item is not answer and item.standard]
    return "it is the best of those with a Standard concept" if others else "only it has a Standard concept"


def _why_nothing(answer: CodingAnswer) -> str:
    if answer.source_concept is not None:
        return "the vocabulary has the code, and no Standard concept for it"
    if answer.answered_by.startswith("value map"):
        return "the map decides"
    return "a local map says that it has none" if answer.answered_by == "local map" else "nothing knows it"


def _of(resolved: pl.DataFrame, number: int | None) -> pl.DataFrame:
    return resolved.filter(pl.col("code_set") == number) if number is not None else resolved.clear()


def _meaning(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("target_concept_id", "value_concept_id", "source_concept_id")


def _is_chosen(winner: pl.DataFrame, sets: CodeSets, number: int | None) -> bool:
    """Whether the set's answer is that of this coding."""
    if winner.is_empty() or number is None:
        return False
    content = sets.content(number)
    chosen = (winner["source_system"][0], winner["source_code"][0])
    return not content or chosen in [one[:2] for one in content]


#: Where resources that name a drug or device hold its code, if they hold it themselves.
_OF_WHOLE = {"medicationCodeableConcept", "deviceCodeableConcept", "device", "contained.code", "contained.type"}


def _code_elements(mapping: ResourceMapping, view: ViewMapping) -> set[str]:
    """Elements of the resource that may be a view's code: its own column, or one of the resource."""
    for owner in (view, *mapping.views):
        path = owner.column_paths.get(view.code or "")
        if path is not None and (owner is view or owner.kind == "resource"):
            each = next((part["forEach"] for part in owner.definition.get("select", ()) if "forEach" in part), "")
            names = {name.removeprefix("$this") for name in _named(path)} - {"{}"}
            if not each and "" in names:  # a converter reads the resource as a whole
                return _OF_WHOLE
            return {".".join(filter(None, (each, name))) for name in names}
    return set()


def _named(path: str) -> set[str]:
    """Elements that a column's path may begin at: `value.ofType(CodeableConcept)` is valueCodeableConcept."""
    plain = _OF_TYPE.sub(lambda match: match[1][0].upper() + match[1][1:], path)
    return {part.strip().removeprefix("$this.").rstrip("()") for part in re.split(r"[|,]", plain)}


def _coded(value: Any, path: str) -> Iterator[_Found]:
    """CodeableConcepts, Codings and Quantities below an element, with their paths."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _coded(item, f"{path}[{number}]")
        return
    if not isinstance(value, dict):
        return
    name = _INDEX.sub("", path).rpartition(".")[2]
    if "coding" in value or (set(value) <= {"text", "id", "extension"} and "text" in value and "." in path):
        yield _Found(path, value, is_quantity=False)
        return
    if "value" in value and ("unit" in value or "code" in value) and not isinstance(value["value"], (dict, list)):
        yield _Found(path, value, is_quantity=True)
        return
    if {"system", "code"} <= set(value) and name not in ("identifier", "telecom"):
        yield _Found(path, {"coding": [value]}, is_quantity=False)
        return
    for key, item in value.items():
        if key not in ("meta", "text") or path.count("."):
            yield from _coded(item, f"{path}.{key}")
