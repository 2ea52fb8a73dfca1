"""Allergies and intolerances: when, and whether a code names the allergy or only its substance."""

from __future__ import annotations

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import issue
from pipeline.transform.rules.base import AS_VALUE, Derivation, as_value, source_of_value
from pipeline.transform.rules.conditions import NOT_ACTIVE, at_age
from pipeline.transform.rules.dates import first_usable, starting, used_visit_start, with_visit_period
from pipeline.transform.rules.declaration import dated, looked_up, rule, used_fact

_SUBSTANCE_DOMAINS = ("Drug", "Device")
#: Concept classes of SNOMED's things, as opposed to its findings and situations.
_SUBSTANCE_CLASSES = ("Substance", "Organism", "Physical Object", "Pharma/Biol Product")


_ALLERGY_DATE_READS = (
    "onset_age", "onset_datetime", "onset_period_start", "recorded_date", "last_occurrence", "person_id", "visit_occurrence_id",
)  # fmt: skip
_ALLERGY_DATES = (
    "onset_datetime",
    "onset_period_start",
    "onset_by_age",
    "recorded_date",
    "visit_start",
    "last_occurrence",
)
_ALLERGY_DATE_WRITES = (
    *dated("start"),
    *used_fact("encounter_period"),
    *used_fact("birth_date__onset"),
    *("birth_date", "onset_by_age", "visit_start", "visit_end"),
    issue(IssueCode.DATE_INVALID, "onset_age"),
    issue(IssueCode.QUANTITY_INEXACT, "onset_age"),
)
_REACTION_WRITES = (
    *dated("reaction_onset", keeps_text=True),
    *looked_up("value", "manifestation", by_vocabulary=True),
    *("value_as_concept_id", "value_source_value", "value_as_source_concept_id", "source_concept_id", "source_value"),
    *looked_up("qualifier", "reaction_severity", by_map=True),
    "qualifier_source_value",
)


@rule(
    reads=_ALLERGY_DATE_READS,
    writes=_ALLERGY_DATE_WRITES,
    dates=_ALLERGY_DATES,
    facts=("birth_date", "encounter_period"),
)
def allergy_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Onset > recorded > encounter > last occurrence."""
    frame = with_visit_period(at_age(frame, derivation, "onset"), derivation)
    own = ("onset_datetime", "onset_period_start", "onset_by_age", "recorded_date")
    return used_visit_start(starting(frame, derivation, *own, "visit_start", "last_occurrence"), own)


@rule(
    reads=("code",),
    priorities=("value",),
)
def named_allergy(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Rows whose code does not name a substance alone: pre-coordinated allergies, "no known allergy", unmapped ones."""
    return frame.filter(~_is_substance(frame, derivation))


@rule(
    reads=("code", "category"),
    writes=(AS_VALUE, looked_up("category", "category", by_map=True)),
    value_maps=("allergy_category",),
    priorities=("value",),
)
def allergy_to_substance(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Rows whose code names a substance alone: it becomes the value. The concept is that of the category, by the mapping."""
    frame = _with_category(frame.filter(_is_substance(frame, derivation)), derivation)
    return as_value(frame, derivation, "value")


@rule(
    reads=("clinical_status",),
    writes=(
        looked_up("qualifier", "clinical_status", by_map=True),
        "qualifier_source_value",
        issue(NOT_ACTIVE, "clinical_status"),
    ),
    value_maps=("allergy_status",),
)
def allergy_status(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """An allergy that is inactive or resolved: the qualifier says so where the row is an observation, an issue everywhere."""
    frame = derivation.look_ups.of_codes(
        frame, "clinical_status", "qualifier", value_map="allergy_status", system="clinical"
    )
    is_over = pl.col("clinical_status").is_in(("inactive", "resolved")).fill_null(False)
    return frame.with_columns(
        is_over.alias(issue(NOT_ACTIVE, "clinical_status")),
        pl.when(is_over).then("clinical_status").alias("qualifier_source_value"),
    )


_CATEGORIES = "http://hl7.org/fhir/allergy-intolerance-category"


def _with_category(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Marks the categories of rows of which none is known, and those without one: their concept is 0."""
    together = frame.select(pl.col("category").list.join("|").alias("category_set"))["category_set"]
    sets, numbers = derivation.sets, {}
    for text in together.unique(maintain_order=True):
        codings = [{"system": _CATEGORIES, "code": code} for code in text.split("|") if code]
        numbers[text] = sets.add_concept({"coding": codings}) if codings else sets.nothing()
    code_sets = together.replace_strict(numbers, default=None, return_dtype=pl.Int32)
    frame = derivation.look_ups.of(
        frame.with_columns(code_sets), "category_set", "category", value_map="allergy_category", element="category"
    )
    return frame.drop("category_set")


@rule(
    reads=(*_ALLERGY_DATE_READS, "code", "manifestation", "reaction_onset", "reaction_severity"),
    writes=(*_ALLERGY_DATE_WRITES, *_REACTION_WRITES),
    dates=(*_ALLERGY_DATES, "reaction_onset"),
    facts=("birth_date", "encounter_period"),
    value_maps=("reaction_severity",),
    priorities=("value",),
)
def reaction_of_named_allergy(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Manifestations of what `named_allergy` has a row of."""
    return _reaction(named_allergy(allergy_date(frame, derivation), derivation), derivation)


@rule(
    reads=(*_ALLERGY_DATE_READS, "code", "manifestation", "reaction_onset", "reaction_severity"),
    writes=(*_ALLERGY_DATE_WRITES, *_REACTION_WRITES),
    dates=(*_ALLERGY_DATES, "reaction_onset"),
    facts=("birth_date", "encounter_period"),
    value_maps=("reaction_severity",),
    priorities=("value",),
)
def reaction_to_substance(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Manifestations of what `allergy_to_substance` has a row of."""
    frame = allergy_date(frame, derivation)
    return _reaction(frame.filter(_is_substance(frame, derivation)), derivation)


def _reaction(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The manifestation is the value, the severity its qualifier. A reaction without a day of its own has the allergy's."""
    frame = derivation.look_ups.of_codes(
        frame, "reaction_severity", "qualifier", value_map="reaction_severity", system="severity"
    )
    frame = derivation.look_ups.of(frame, "manifestation", "value", purpose="value")
    frame = first_usable(frame, derivation, "reaction_onset", "reaction_onset", kind="further")
    own = pl.col("reaction_onset_date").is_not_null()
    return frame.with_columns(
        pl.when(own).then("reaction_onset_date").otherwise("start_date").alias("start_date"),
        pl.when(own).then("reaction_onset_datetime").otherwise("start_datetime").alias("start_datetime"),
        pl.col("value_concept_id").alias("value_as_concept_id"),
        pl.col("value_source_concept_id").fill_null(0).alias("source_concept_id"),
        source_of_value().alias("value_as_source_concept_id"),
        pl.col("value_source_code").alias("value_source_value"),
        pl.col("value_source_code").alias("source_value"),
        pl.col("reaction_severity").alias("qualifier_source_value"),
    )


def _is_substance(frame: pl.DataFrame, derivation: Derivation) -> pl.Series:
    """True where the code's standard concept is a thing: a code with `Maps to value` says itself what it is about."""
    resolved = derivation.resolver.resolve_single("value").select("code_set", "target_concept_id", "value_concept_id")
    used = resolved.filter(pl.col("code_set").is_in(frame["code"].drop_nulls().unique().implode()))
    concepts = derivation.concepts(used["target_concept_id"].unique().to_list())
    thing = pl.col("domain_id").is_in(_SUBSTANCE_DOMAINS) | pl.col("concept_class_id").is_in(_SUBSTANCE_CLASSES)
    things = concepts.filter(thing)["concept_id"]
    substances = used.filter(
        pl.col("value_concept_id").is_null() & pl.col("target_concept_id").is_in(things.implode())
    )["code_set"]
    return frame["code"].is_in(substances.implode()).fill_null(False)
