"""Events: coded rows of a view → concepts, 1→N, values, routing, and rows in the shape of their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import itemgetter, or_

import polars as pl

from pipeline.core.line_codes import IssueCode, RejectionCode
from pipeline.fhir.identity import content_key
from pipeline.staging.schemas import EVENT_LINK, ISSUE, REFERENCE, REFERENCE_VALUE, SCHEMAS, VALUE_CHECK
from pipeline.transform.column_names import (
    IMPLAUSIBLE,
    NOT_MADE,
    fact_of,
    is_issue,
    is_precision,
    issue_parts,
    lacks,
    of_precision,
    used_names,
    uses,
)
from pipeline.transform.contact import with_contact_date
from pipeline.transform.coverage import NO_RATE, event_coverage, other_coverage
from pipeline.transform.duplicates import CountedRows, without_duplicates
from pipeline.transform.mapping.duplicate_rules import COUNTED_ELSEWHERE
from pipeline.transform.mapping.mappings import ConceptRule, ResourceMapping, TableRule, ViewMapping
from pipeline.transform.plan import Worker
from pipeline.transform.references import PERSON_PROBLEM, ReferenceProblem
from pipeline.transform.results import ENTRY, NO_LINKS, VALUES, with_results
from pipeline.transform.routing import VALUE_DOMAINS, exact_numbers, route, to_table
from pipeline.transform.rules import RULES
from pipeline.transform.rules.notes import NOTE_TEXT_OFF
from pipeline.transform.rules.observations import NO_RESULT
from pipeline.transform.unmapped import NO_CODES, unmapped_elements, unmapped_event_codes
from pipeline.transform.value_checks import IMPLAUSIBLE_VALUE, NEGATIVE_VALUE, REPORTED

__all__ = [
    "LEFT_OUT_BY_RULE",
    "EventRows",
    "apply_rules",
    "event_links",
    "event_rows",
    "numbered_path",
    "refuse_incomplete",
]

#: Odd constants that spread keys over 64 bits; polars' own hash is not stable between versions.
_MIX = (-7046029254386353131, -4417276706812531889, 1609587929392839161)


@dataclass(frozen=True)
class EventRows:
    """What one view of one chunk came to. Frames are in the schemas of `pipeline.staging.schemas`."""

    tables: dict[str, pl.DataFrame]
    #: REFUSED_SCHEMA of lines whose own row cannot be made
    refused: pl.DataFrame
    #: REFUSED_SCHEMA, and surrogate_id, of further rows that cannot be made
    left_out: pl.DataFrame
    #: index, exclude_reason of lines that a value map excludes
    excluded: pl.DataFrame
    references: pl.DataFrame
    issues: pl.DataFrame
    unmapped: pl.DataFrame
    rate: pl.DataFrame = field(default_factory=lambda: NO_RATE)
    #: by table: texts of the numbers that a double cannot hold, as `pipeline.transform.routing.exact_numbers` gives them
    exact: dict[str, pl.DataFrame] = field(default_factory=dict)
    #: numbers that a rule about numbers found
    value_checks: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SCHEMAS[VALUE_CHECK]))
    #: facts that rows leave for those of other resources
    facts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SCHEMAS[REFERENCE_VALUE]))
    #: rows that belong to another row of this view: their results (`pipeline.transform.results`)
    links: pl.DataFrame = field(default_factory=lambda: NO_LINKS)

    @classmethod
    def of_left_out(cls, left_out: pl.DataFrame) -> EventRows:
        """No rows, only what was left out, and its issues."""
        return cls(
            tables={},
            refused=pl.DataFrame(schema=REFUSED_SCHEMA),
            left_out=left_out,
            excluded=pl.DataFrame(schema=EXCLUDED_SCHEMA),
            references=pl.DataFrame(schema=SCHEMAS[REFERENCE]),
            issues=_left_out_issues(left_out),
            unmapped=NO_CODES,
        )


def apply_rules(worker: Worker, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    for name in view.derive:
        rows = RULES[name].apply(rows, worker.derivation)
    return rows


def event_rows(worker: Worker, mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame) -> EventRows:
    """The rows of an event view (view and resource columns joined) as table rows."""
    rows = apply_rules(worker, view, rows).with_columns(
        _concept(worker, view.type_concept_id).alias("type_concept_id"), _home(view.home_table).alias("home_table")
    )
    rows = with_contact_date(rows, mapping.contact, worker.derivation)
    rate, unmapped = NO_RATE, NO_CODES
    found, counts = pl.DataFrame(), pl.DataFrame(schema=SCHEMAS[VALUE_CHECK])
    counted: CountedRows | None = None
    documents = pl.DataFrame(schema=LEFT_OUT_SCHEMA)
    exact: dict[str, pl.DataFrame] = {}
    links, ambiguous = NO_LINKS, pl.DataFrame(schema=SCHEMAS[ISSUE])

    def tables(kept: pl.DataFrame) -> dict[str, pl.DataFrame]:
        nonlocal rate, unmapped, found, counts, counted, documents, links, ambiguous
        kept = kept.with_row_index(ENTRY) if view.result_concept_id else kept
        coded = _with_concepts(worker, mapping, view, kept)
        ambiguous = _ambiguous_codes(mapping, view, coded)
        coded, documents = _without_documents(mapping, view, coded)
        checked = worker.value_checks.check(coded)
        found, counts = checked.found, checked.counts
        counted = without_duplicates(worker, mapping.resource, checked.rows)
        coded = counted.rows
        rate, unmapped = event_coverage(mapping, view, coded), unmapped_event_codes(worker, mapping, view, coded)
        coded = _with_row_key(coded, view)
        if view.result_concept_id:
            coded, links = with_results(coded, _concept(worker, view.result_concept_id))
        made: dict[str, pl.DataFrame] = {}
        for table in coded["table"].unique().sort():
            events = coded.filter(pl.col("table") == table)
            made[table] = to_table(events, table)
            texts = exact_numbers(events, table)
            if texts is not None:
                exact[table] = texts
        return made

    result = refuse_incomplete(worker, mapping, view, rows, tables)
    result = replace(
        result,
        rate=pl.concat([rate, result.rate]),
        unmapped=pl.concat([unmapped, result.unmapped]),
        issues=pl.concat([result.issues, ambiguous]),
        exact=exact,
        links=links,
        value_checks=counts,
    )
    if not documents.is_empty():
        left_out, issues = pl.concat([result.left_out, documents]), _left_out_issues(documents)
        result = replace(result, left_out=left_out, issues=pl.concat([result.issues, issues]))
    if counted is not None:
        result = _with_counted(mapping, view, result, counted)
    return result if found.is_empty() else _with_value_findings(mapping, view, result, found)


def _without_documents(
    mapping: ResourceMapping, view: ViewMapping, coded: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Without rows whose concept is one of documents (domain Note) and that have no value, and those (LEFT_OUT_SCHEMA): an
    observation of them would say nothing. What text they have is a note by a view of its own."""
    nothing = pl.DataFrame(schema=LEFT_OUT_SCHEMA)
    if view.concept_id or view.table:
        return coded, nothing
    values = [pl.col(name) for name in VALUES if name in coded.columns]
    is_document = (pl.col("target_domain_id") == _NOTE).fill_null(False)
    is_document &= pl.all_horizontal(pl.lit(True), *(value.is_null() for value in values))
    documents = coded.filter(is_document)
    if documents.is_empty():
        return coded, nothing
    path = numbered_path(mapping, view, _path_of(mapping, view, view.code or "")).alias("path")
    return coded.filter(~is_document), _left_out(documents, pl.lit(NOTE_TEXT_OFF), "documents are notes", path)


def _with_counted(mapping: ResourceMapping, view: ViewMapping, result: EventRows, counted: CountedRows) -> EventRows:
    """Adds what rows that another resource may have as well leave behind, and those that it has."""
    if counted.references.is_empty() and counted.facts.is_empty():
        return result
    reason = "another resource says the same"
    left_out = _left_out(counted.left_out, pl.lit(COUNTED_ELSEWHERE), reason, pl.lit(f"{mapping.resource}.{view.code}"))
    return replace(
        result,
        left_out=pl.concat([result.left_out, left_out]),
        issues=pl.concat([result.issues, left_out.select("surrogate_id", "code", "path")]),
        references=pl.concat([result.references, counted.references]).unique(maintain_order=True),
        facts=counted.facts,
    )


def _left_out(rows: pl.DataFrame, code: pl.Expr, reason: str, path: pl.Expr) -> pl.DataFrame:
    """LEFT_OUT_SCHEMA of rows that a rule leaves out."""
    return rows.select(
        "index",
        pl.lit(reason).alias("reason"),
        pl.lit("transform").alias("stage"),
        code.alias("code"),
        path.alias("path"),
        pl.lit(None, dtype=pl.Int64).alias("cause"),
        "surrogate_id",
    )


def _with_value_findings(
    mapping: ResourceMapping, view: ViewMapping, result: EventRows, found: pl.DataFrame
) -> EventRows:
    """Adds issues of numbers that a rule does not allow, and the rows that are left out because of theirs. What is
    outside its limits is only counted where the option says `report`.

    `found`: as `value_checks.CheckedRows` has it.
    """
    path = _value_path(mapping, view).alias("path")
    only_counted = (pl.col("finding") == IMPLAUSIBLE_VALUE) & (pl.col("action") == REPORTED)
    issues = found.filter(~only_counted).select("surrogate_id", pl.col("finding").alias("code"), path)
    excluded = found.filter(pl.col("action") == "exclude")
    left_out = _left_out(excluded, pl.col("finding"), "the number cannot be meant", path)
    return replace(result, issues=pl.concat([result.issues, issues]), left_out=pl.concat([result.left_out, left_out]))


def _value_path(mapping: ResourceMapping, view: ViewMapping) -> pl.Expr:
    """The element that has a row's number; NULL where the view takes it from several."""
    path = view.element_paths.get("value_quantity", "")
    element = path.removesuffix(_QUANTITY)
    if element == path:
        return pl.lit(None, dtype=pl.String)
    return numbered_path(mapping, view, f"{mapping.resource}.{element}")


def refuse_incomplete(
    worker: Worker,
    mapping: ResourceMapping,
    view: ViewMapping,
    rows: pl.DataFrame,
    tables: Callable[[pl.DataFrame], dict[str, pl.DataFrame]],
) -> EventRows:
    """Distinguish rows that cannot be made, rows that a value map excludes, and rows that `tables` turns into tables.

    If the resource's own row cannot be made, the whole resource is rejected; a further row is left out, with an issue.
    """
    rows, by_rule = _without_left_out(mapping, view, _implausible_excluded(worker, view, rows))
    lacking = {name: rows[name].is_null() for name in view.required if rows[name].null_count()}
    if view.is_further and IMPLAUSIBLE in rows.columns and worker.derivation.options.implausible_dates == "exclude":
        lacking[IMPLAUSIBLE] = rows[IMPLAUSIBLE]
    missing = [rows.filter(lacks).select(*_refusal(mapping, view, rows, name)) for name, lacks in lacking.items()]
    refused = pl.concat([*missing, by_rule])
    excluded = pl.DataFrame(schema=EXCLUDED_SCHEMA)
    if "exclude_reason" in rows.columns:
        excluded = rows.filter(pl.col("exclude_reason").is_not_null()).select(*EXCLUDED_SCHEMA)
    kept = rows
    if lacking:
        whole = ~reduce(or_, lacking.values())
        kept = rows.filter(whole)
        if not view.is_further:
            kept = kept.join(refused, on="index", how="anti", maintain_order="left")
    waits = kept  # also what is excluded until another resource comes: a note without its text
    if NOT_MADE in kept.columns:
        kept = kept.filter(~pl.col(NOT_MADE))
    if not excluded.is_empty():
        kept = kept.join(excluded, on="index", how="anti", maintain_order="left")
    made = {table: frame for table, frame in tables(kept).items() if not frame.is_empty()} if kept.height else {}
    unmapped = unmapped_elements(worker, mapping, kept)
    nothing = pl.DataFrame(schema=LEFT_OUT_SCHEMA)
    issues = _issues(mapping, view, rows if view.is_further else kept)
    if view.is_further and not refused.is_empty():
        issues = pl.concat([issues, _left_out_issues(refused)])
    return EventRows(
        made,
        nothing.select(*REFUSED_SCHEMA) if view.is_further else refused.select(*REFUSED_SCHEMA),
        refused if view.is_further else nothing,
        excluded,
        _references(rows if view.is_further else waits),
        issues,
        unmapped,
        other_coverage(worker, mapping, kept) if "home_table" in kept.columns else NO_RATE,
    )


def _without_left_out(
    mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of a further view the rows that no rule leaves out, and those that one does (LEFT_OUT_SCHEMA): the resource stays."""
    nothing = pl.DataFrame(schema=LEFT_OUT_SCHEMA)
    if not view.is_further or "exclude_reason" not in rows.columns:
        return rows, nothing
    is_left_out = pl.col("exclude_reason").is_in(LEFT_OUT_BY_RULE).fill_null(False)
    path = numbered_path(mapping, view, _path_of(mapping, view, view.code or "")).alias("path")
    left_out = _left_out(rows.filter(is_left_out), pl.col("exclude_reason"), "a rule leaves it out", path)
    return rows.filter(~is_left_out), pl.concat([nothing, left_out])


def _left_out_issues(left_out: pl.DataFrame) -> pl.DataFrame:
    """SCHEMAS[ISSUE]: a further row is not there, because of the element in `path`."""
    return left_out.select("surrogate_id", pl.lit(IssueCode.ROW_LEFT_OUT).alias("code"), "path")


def _implausible_excluded(worker: Worker, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """exclude_reason of rows whose own date is implausible, by option."""
    if view.is_further or IMPLAUSIBLE not in rows.columns or not view.required:
        return rows
    if worker.derivation.options.implausible_dates != "exclude":
        return rows
    reason = pl.when(IMPLAUSIBLE).then(pl.lit(DATE_IMPLAUSIBLE))
    own = [pl.col("exclude_reason")] if "exclude_reason" in rows.columns else []
    return rows.with_columns(pl.coalesce(*own, reason).alias("exclude_reason"))


#: `cause`: surrogate id of the resource that is missing, NULL where none is.
REFUSED_SCHEMA = {
    "index": pl.Int32,
    "reason": pl.String,
    "stage": pl.String,
    "code": pl.String,
    "path": pl.String,
    "cause": pl.Int64,
}
LEFT_OUT_SCHEMA = {**REFUSED_SCHEMA, "surrogate_id": pl.Int64}
#: Why a resource is excluded by the option implausible_dates.
DATE_IMPLAUSIBLE = "date_implausible"
#: Codes of rows that are left out because a rule says so: a resource of which no other row is left is excluded.
LEFT_OUT_BY_RULE = (
    DATE_IMPLAUSIBLE,
    NEGATIVE_VALUE,
    IMPLAUSIBLE_VALUE,
    COUNTED_ELSEWHERE,
    NOTE_TEXT_OFF,
    *NO_RESULT,
)
_NOTE = "Note"
#: After the element whose quantity is a row's number.
_QUANTITY = ".ofType(Quantity).value"
EXCLUDED_SCHEMA = {"index": pl.Int32, "exclude_reason": pl.String}

#: Derived required columns: the FHIR string that they come from, and what its absence is called.
_DATES = {
    "start_date": "start",
    "visit_start_date": "start",
    "payer_plan_period_start_date": "start",
    "visit_detail_start_date": "stay_start",
    "death_date": "deceased_datetime",
    "year_of_birth": "birth_date",
}

#: Why the reference to a person is not followed.
_PERSON_REASONS = {
    ReferenceProblem.reference_by_identifier.name: "the person is named by an identifier, which is never compared",
    ReferenceProblem.reference_contained.name: "the person is contained in the resource alone",
    ReferenceProblem.reference_unreadable.name: "the reference to the person cannot be read",
    ReferenceProblem.reference_type_unusable.name: "the reference is to a resource that is not a Patient",
}


#: What a rule made of another element, or of another resource, and where that is from the resource's point of view.
_DERIVED_PATHS = {
    "visit_start": "encounter.period.start",
    "onset_by_age": "onset.ofType(Age)",
    "abatement_by_age": "abatement.ofType(Age)",
    "manufacture_date": "device.manufactureDate",
}


def _path_of(mapping: ResourceMapping, view: ViewMapping, column: str) -> str:
    """The FHIRPath of a column, with the type of the resource before it."""
    paths = {**_DERIVED_PATHS, **mapping.resource_view.element_paths, **view.element_paths}
    return f"{mapping.resource}.{paths.get(column, column)}"


def numbered_path(mapping: ResourceMapping, view: ViewMapping, path: str) -> pl.Expr:
    """The path with the number of the item that the row is made of: two broken items of an array are two issues."""
    element = f"{mapping.resource}.{view.numbered_element}"
    if view.numbered_element is None or f"{path}.".removeprefix(f"{element}.") == f"{path}.":
        return pl.lit(path)
    number = pl.col("item_number").cast(pl.String)
    return pl.concat_str(pl.lit(f"{element}["), number, pl.lit(f"]{path.removeprefix(element)}"))


def _refusal(mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame, name: str) -> list[pl.Expr]:
    source = _DATES.get(name)
    cause = pl.lit(None, dtype=pl.Int64)
    path = numbered_path(mapping, view, _path_of(mapping, view, name))
    if name == IMPLAUSIBLE:
        code, reason = pl.lit(DATE_IMPLAUSIBLE), pl.lit("the date cannot be meant")
        path = _date_path(mapping, view, rows, next((_DATES[one] for one in view.required if one in _DATES), "start"))
    elif source is None:
        code, reason = pl.lit(RejectionCode.REQUIRED_MISSING), pl.lit(f"{name} cannot be found")
        if name == "person_id" and PERSON_PROBLEM in rows.columns:
            problem = pl.col(PERSON_PROBLEM)
            why = problem.replace_strict(_PERSON_REASONS, default=None, return_dtype=pl.String)
            code = pl.when(problem.is_not_null()).then(pl.lit(RejectionCode.PERSON_UNKNOWN)).otherwise(code)
            reason = pl.coalesce(why, reason)
    else:
        path = _date_path(mapping, view, rows, source)
        present = pl.col(source).is_not_null() if source in rows.columns else pl.lit(False)
        cause = pl.when(~present).then(_awaited(rows))
        code = pl.when(present).then(pl.lit(RejectionCode.DATE_INVALID)).otherwise(pl.lit(RejectionCode.DATE_MISSING))
        reason = (
            pl.when(present)
            .then(pl.lit("the text is not a valid FHIR date"))
            .otherwise(pl.lit(f"no date from which {name} could be taken"))
        )
    return [
        pl.col("index"),
        reason.alias("reason"),
        pl.lit("transform").alias("stage"),
        code.alias("code"),
        path.alias("path"),
        cause.alias("cause"),
        pl.col("surrogate_id"),
    ]


def _date_path(mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame, source: str) -> pl.Expr:
    """The element whose date is refused; where there is none, the first in which it is looked for."""
    known = {**mapping.resource_view.element_paths, **view.element_paths}
    first = f"{mapping.resource}.{known.get(source, _date_paths(mapping, view))}"
    if f"{source}_from" not in rows.columns:
        return pl.lit(first)
    paths = {column: _path_of(mapping, view, column) for column in rows[f"{source}_from"].drop_nulls().unique()}
    return pl.col(f"{source}_from").replace_strict(paths, default=first, return_dtype=pl.String)


def _awaited(rows: pl.DataFrame) -> pl.Expr:
    """The resource that would have given a date, had it come yet (`rules.base.used`)."""
    facts = used_names(rows.columns)
    return pl.coalesce(pl.lit(None, dtype=pl.Int64), *(pl.when(lacks(name)).then(pl.col(uses(name))) for name in facts))


def _date_paths(mapping: ResourceMapping, view: ViewMapping) -> str:
    """The first date-like element of the mapping: where a start is looked for first."""
    for owner in (mapping.resource_view, view):
        for name, kind in owner.column_types.items():
            if kind in {"dateTime", "date", "instant"}:
                return owner.element_paths[name]
    return "date"


def _concept(worker: Worker, rules: tuple[ConceptRule, ...]) -> pl.Expr:
    expression = pl.lit(0, dtype=pl.Int64)
    for rule in reversed(rules):
        value = pl.lit(_target(worker, rule), dtype=pl.Int64)
        expression = value if rule.when is None else pl.when(pl.col(rule.when)).then(value).otherwise(expression)
    return expression


def _target(worker: Worker, rule: ConceptRule) -> int:
    """The first of a rule's concepts that the vocabulary has, with a value column in its table where one is needed."""
    if not rule.has_value:
        return worker.target(rule.targets)
    found = (worker.target((target,)) for target in rule.targets)
    return next((concept for concept in found if worker.fixed_domains.get(concept) in VALUE_DOMAINS), 0)


def _home(rules: tuple[TableRule, ...]) -> pl.Expr:
    expression = pl.lit("observation")
    for rule in reversed(rules):
        value = pl.lit(rule.table)
        expression = value if rule.when is None else pl.when(pl.col(rule.when)).then(value).otherwise(expression)
    return expression


def _with_concepts(worker: Worker, mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """Adds concept_id, source_concept_id, source_value, table; one row for each standard concept (Themis)."""
    if view.concept_id:
        source = pl.col("source_concept_id") if "source_concept_id" in rows.columns else pl.lit(0, dtype=pl.Int64)
        concept = _concept(worker, view.concept_id)
        domain = concept.replace_strict(worker.fixed_domains, default=None, return_dtype=pl.String)
        return rows.with_columns(concept.alias("concept_id"), domain.alias("target_domain_id")).with_columns(
            source.alias("source_concept_id"),
            _table(view).alias("table"),
            pl.lit(0, dtype=pl.Int64).alias("code_set_key"),
            pl.lit(None, dtype=pl.String).alias("source_system"),
            pl.lit(None, dtype=pl.String).alias("source_code"),
        )
    assert view.code is not None, "an event view has a code or a fixed concept"
    resolved = worker.resolver.resolve(view.priority or "")
    rows = rows.join(resolved, left_on=view.code, right_on="code_set", how="left", maintain_order="left")
    keep_text = mapping.resource in worker.plan.site.text_source_value_types
    source_value = pl.coalesce("source_code", pl.when(pl.lit(keep_text)).then("text"))
    value = pl.col("value_concept_id_right") if "value_concept_id_right" in rows.columns else pl.col("value_concept_id")
    own_value = [pl.col("value_as_concept_id")] if "value_as_concept_id" in rows.columns else []
    if "unit_concept_id" in rows.columns and "value_as_number" in rows.columns:
        has_no_unit = pl.col("unit_source_value").is_null() & pl.col("value_as_number").is_not_null()
        unit = pl.coalesce("unit_concept_id", pl.when(has_no_unit).then("own_unit_concept_id"))
        rows = rows.with_columns(unit.alias("unit_concept_id"))
    return rows.with_columns(
        pl.col("target_concept_id").fill_null(0).alias("concept_id"),
        pl.col("source_concept_id").fill_null(0),
        source_value.alias("source_value"),
        pl.coalesce(value, *own_value).alias("value_as_concept_id"),
        pl.col("code_set_key").fill_null(0),
        _table(view).alias("table"),
    )


def _ambiguous_codes(mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """Issues of rows without a concept because the vocabulary has several codes that the source may mean."""
    if "is_ambiguous" not in rows.columns or view.code is None:
        return pl.DataFrame(schema=SCHEMAS[ISSUE])
    path = numbered_path(mapping, view, _path_of(mapping, view, view.code)).alias("path")
    return rows.filter("is_ambiguous").select("surrogate_id", pl.lit(IssueCode.CODE_AMBIGUOUS).alias("code"), path)


def _table(view: ViewMapping) -> pl.Expr:
    """By the domain of the concept (f2o-037), unless the view says that only one table can hold what it says."""
    return pl.lit(view.table) if view.table else route("target_domain_id", "home_table")


def _with_row_key(rows: pl.DataFrame, view: ViewMapping) -> pl.DataFrame:
    """Adds row_key: view, code, target concept, value concept and repeat, mixed into 64 bits; never the position."""
    value = pl.col("value_as_concept_id") if "value_as_concept_id" in rows.columns else pl.lit(0, dtype=pl.Int64)
    meaning = (
        (pl.col("code_set_key") ^ pl.lit(content_key(view.name), dtype=pl.Int64)) * _MIX[0]
        + pl.col("concept_id") * _MIX[1]
        + value.fill_null(0) * _MIX[2]
    )
    rows = rows.with_columns(meaning.alias("row_key"))
    if not rows["surrogate_id"].is_duplicated().any():
        return rows
    # Within the line: another line of the same resource in the chunk is another version of it.
    repeat = pl.int_range(pl.len(), dtype=pl.Int64).over("surrogate_id", "file_number", "line", "row_key")
    return rows.with_columns((pl.col("row_key") + repeat * _MIX[0]).alias("row_key"))


def _references(rows: pl.DataFrame) -> pl.DataFrame:
    """Dependence on what another resource says (`rules.base.used`): when that changes, these rows change too."""
    found = [
        rows.filter(pl.col(uses(name)).is_not_null()).select(
            pl.col("surrogate_id").alias("from_surrogate_id"),
            pl.lit(fact_of(name)).alias("role"),
            pl.col(uses(name)).alias("to_surrogate_id"),
            pl.when(lacks(name)).then(pl.lit("pending")).otherwise(pl.lit("resolved")).alias("state"),
        )
        for name in used_names(rows.columns)
    ]
    return pl.concat(found).unique(maintain_order=True) if found else pl.DataFrame(schema=SCHEMAS[REFERENCE])


def event_links(rows: EventRows, events: Iterable[EventRows]) -> pl.DataFrame:
    """Which rows of one view belong to which row of others, within a resource. Columns: SCHEMAS[EVENT_LINK].

    Where the events have several rows (1 → N), it is the first in the order of tables and rows. Results, which belong to a
    row of their own view, are neither.
    """
    own = [_own_rows(rows, table) for table in sorted(rows.tables)]
    others = [(table, _own_rows(event, table)) for event in events for table in event.tables]
    if not own or not others:
        return NO_LINKS
    ordered = pl.concat([frame for _, frame in sorted(others, key=itemgetter(0))])
    named = pl.col("cdm_table").alias("event_table"), pl.col("row_key").alias("event_row_key")
    first = ordered.select(*_LINE, *named).unique(_LINE, keep="first", maintain_order=True)
    return pl.concat(own).join(first, on=_LINE, how="inner", maintain_order="left").select(*SCHEMAS[EVENT_LINK])


_LINE = ["surrogate_id", "file_number", "line"]


def _own_rows(rows: EventRows, table: str) -> pl.DataFrame:
    """_LINE, cdm_table and row_key of the rows of a table that are no results."""
    found = rows.tables[table].select(*_LINE, pl.lit(table).alias("cdm_table"), "row_key")
    if rows.links.is_empty():
        return found
    return found.join(rows.links, on=found.columns, how="anti", maintain_order="left")


def _issues(mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """What was decided below the line, by its columns (`column_names.issue`), and dates that were
    imputed. Publication counts what is wrong with an element once a resource."""
    found = [pl.DataFrame(schema=SCHEMAS[ISSUE])]
    for name in rows.columns:
        path = pl.lit(None, dtype=pl.String)
        if is_issue(name):
            flagged = rows.filter(pl.col(name))
            code, column = issue_parts(name)
            if column:
                path = numbered_path(mapping, view, _path_of(mapping, view, column))
        elif is_precision(name):
            flagged = rows.filter(pl.col(name).is_between(1, 9))
            code, path = IssueCode.DATE_IMPUTED, pl.lit(of_precision(name))
        else:
            continue
        if not flagged.is_empty():
            found.append(flagged.select("surrogate_id", pl.lit(code).alias("code"), path.alias("path")))
    return pl.concat(found)
