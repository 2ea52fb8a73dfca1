"""Named functions for what a view cannot say: each is set-based, frame in, frame out, and one rule of the specification.

A function is called with the rows of one view (resource columns joined) and a `Derivation`, which gives it concepts,
value maps, dates and the facts that other resources left. Column types: see the mapping that names the function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

import orjson
import polars as pl

from pipeline.fhir.datetimes import parsed
from pipeline.omop.code_sets import CodeSets
from pipeline.omop.concepts import ConceptResolver

__all__ = ["DERIVATIONS", "Derivation"]

#: Vocabulary concepts of visits in which a patient stays: their missing end is the export's as-of date.
INPATIENT_VISITS = (9201, 262, 42898160, 8717)


@dataclass(frozen=True)
class Derivation:
    """What derive functions may ask for. `fixed` maps a concept id of the mappings to the loaded vocabulary's."""

    site_zone: str
    instance_zone: str
    as_of: date
    fixed: Callable[[tuple[int, ...]], int]
    constants: Mapping[str, tuple[int, ...]]
    value_maps: Mapping[str, pl.DataFrame]
    sets: CodeSets
    resolver: ConceptResolver
    #: facts(name, surrogate ids) → columns surrogate_id, value
    facts: Callable[[str, pl.Series], pl.DataFrame]

    def constant(self, name: str) -> int:
        return self.fixed(self.constants[name])

    def dated(self, frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
        """Adds `<column>_date`, `_datetime` and `_precision` for FHIR date strings."""
        return frame.with_columns(
            expression for name in columns for expression in parsed(name, self.site_zone, self.instance_zone)
        )

    def mapped(self, frame: pl.DataFrame, column: str, value_map: str, system: str, target: str) -> pl.DataFrame:
        """Adds `target`: the concept of a code column by a value map; NULL where the map has no entry."""
        entries = self.value_maps[value_map].filter(pl.col("system") == system).select("code", "concept_id")
        return frame.join(
            entries.rename({"code": column, "concept_id": target}), on=column, how="left", maintain_order="left"
        )

    def mapped_set(self, frame: pl.DataFrame, column: str, value_map: str, target: str) -> pl.DataFrame:
        """Adds `target` and `<target>_code`: the concept of a code set by its first coding that the map knows.

        Present but not in the map: 0 and the first code, if any; absent: NULL.
        """
        used = frame.select(column).drop_nulls().unique()
        codings = self.sets.codings(0).join(used, left_on="code_set", right_on=column, how="semi")
        known = codings.join(self.value_maps[value_map], on=["system", "code"], how="left", maintain_order="left")
        best = (
            known.sort("code_set", pl.col("concept_id").is_null(), "position", maintain_order=True)
            .group_by("code_set", maintain_order=True)
            .first()
            .select(
                pl.col("code_set").alias(column),
                pl.col("concept_id").fill_null(0).alias(target),
                pl.col("code").alias(f"{target}_code"),
            )
        )
        present = pl.when(pl.col(column).is_not_null()).then(pl.col(target).fill_null(0))  # a text without codings
        return frame.join(best, on=column, how="left", maintain_order="left").with_columns(present.alias(target))

    def resolved(self, frame: pl.DataFrame, column: str, purpose: str, prefix: str) -> pl.DataFrame:
        """Adds `<prefix>_concept_id`, `_source_concept_id`, `_source_code`: a code set resolved to one concept.

        Present but unmapped → 0, absent → NULL.
        """
        single = self.resolver.resolve_single(purpose).select(
            pl.col("code_set").alias(column),
            pl.col("target_concept_id").alias(f"{prefix}_concept_id"),
            pl.col("source_concept_id").alias(f"{prefix}_source_concept_id"),
            pl.col("source_code").alias(f"{prefix}_source_code"),
        )
        return frame.join(single, on=column, how="left", maintain_order="left")

    def with_fact(self, frame: pl.DataFrame, key: str, name: str, target: str) -> pl.DataFrame:
        """Adds `target`: the value of fact `name` of the resource that column `key` refers to."""
        keys = frame[key].drop_nulls().unique()
        if keys.is_empty():
            return frame.with_columns(pl.lit(None, dtype=pl.String).alias(target))
        values = self.facts(name, keys).rename({"surrogate_id": key, "value": target})
        return frame.join(values, on=key, how="left", maintain_order="left")


def _starting(frame: pl.DataFrame, derivation: Derivation, *columns: str) -> pl.DataFrame:
    """Adds start, start_date and start_datetime: the first of the columns that is present."""
    return derivation.dated(frame.with_columns(pl.coalesce(*columns).alias("start")), "start")


def _ending(frame: pl.DataFrame, derivation: Derivation, *columns: str) -> pl.DataFrame:
    """Adds end_date and end_datetime; an end before the start is dropped (and counted as an issue)."""
    frame = derivation.dated(frame.with_columns(pl.coalesce(*columns).alias("end")), "end")
    sensible = pl.col("end_date") >= pl.col("start_date")
    return frame.with_columns(
        (~sensible).fill_null(False).alias("issue_end_before_start"),
        pl.when(sensible).then(pl.col("end_date", "end_datetime")),
    )


# --- Patient ---------------------------------------------------------------------------------------------------------


def person(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """person: birth as far as known, sex (birthsex first), race and ethnicity (OMB), no identifying value."""
    frame = derivation.dated(frame, "birth_date")
    frame = derivation.mapped(frame, "birth_sex", "gender", "birthsex", "by_birth_sex")
    frame = derivation.mapped(frame, "gender", "gender", "administrative-gender", "by_gender")
    day, precision = pl.col("birth_date_date"), pl.col("birth_date_precision")
    midyear = pl.date(day.dt.year(), 6, 15)  # Themis: year only, no earlier record known
    born = pl.when(precision == 4).then(midyear).otherwise(day)
    by_sex = pl.col("by_birth_sex").fill_null(0)
    omb = "urn:oid:2.16.840.1.113883.6.238"
    frame = frame.with_columns(
        day.dt.year().alias("year_of_birth"),
        pl.when(precision >= 7).then(day.dt.month()).alias("month_of_birth"),
        pl.when(precision >= 10).then(day.dt.day()).alias("day_of_birth"),
        born.cast(pl.Datetime("us")).alias("birth_datetime"),
        pl.when(by_sex != 0).then(by_sex).otherwise(pl.col("by_gender").fill_null(0)).alias("gender_concept_id"),
        pl.when(by_sex != 0)
        .then("birth_sex")
        .otherwise(pl.coalesce("gender", "birth_sex"))
        .alias("gender_source_value"),
        pl.col("deceased_boolean").fill_null(False).alias("issue_death_without_date"),
    )
    frame = _omb_category(frame, derivation, "race", omb, derivation.constant("race_mixed"))
    return _omb_category(frame, derivation, "ethnicity", omb, 0)


def _omb_category(frame: pl.DataFrame, derivation: Derivation, name: str, system: str, several: int) -> pl.DataFrame:
    """`<name>_concept_id` of a list of codes: one known → its concept, several → `several`, none → 0.

    UNK and asked-unknown have no entry in the map and are so ignored beside a valid one.
    """
    codes, key = f"{name}_codes", "row_of_list"
    entries = derivation.value_maps[name].filter(pl.col("system") == system).select("code", "concept_id")
    concepts = (
        frame.with_row_index(key)
        .select(key, pl.col(codes).alias("code"))
        .explode("code")
        .join(entries, on="code", how="inner")
        .unique([key, "concept_id"])
        .group_by(key)
        .agg(pl.col("concept_id").first(), pl.len().alias("known"))
    )
    return (
        frame.with_row_index(key)
        .join(concepts, on=key, how="left", maintain_order="left")
        .with_columns(
            pl.when(pl.col("known") > 1)
            .then(pl.lit(several, dtype=pl.Int64))
            .otherwise(pl.col("concept_id").fill_null(0))
            .alias(f"{name}_concept_id"),
            pl.when(pl.col(codes).list.len() > 0).then(pl.col(codes).list.join("|")).alias(f"{name}_source_value"),
        )
        .drop(key, "known", "concept_id")
    )


def death(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """death: month known → its last day; year only → 31 December (Themis)."""
    frame = derivation.dated(frame, "deceased_datetime")
    day, precision = pl.col("deceased_datetime_date"), pl.col("deceased_datetime_precision")
    last = pl.when(precision == 4).then(pl.date(day.dt.year(), 12, 31)).when(precision == 7).then(day.dt.month_end())
    return frame.with_columns(
        pl.coalesce(last, day).alias("death_date"),
        pl.coalesce(last.cast(pl.Datetime("us")), "deceased_datetime_datetime").alias("death_datetime"),
        pl.lit(derivation.fixed((32817,)), dtype=pl.Int64).alias("death_type_concept_id"),
        pl.col("surrogate_id").alias("person_id"),
    )


# --- Practitioner, Organization, Location ---------------------------------------------------------------------------


def provider(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """provider: NPI, sex, year of birth, specialty."""
    frame = derivation.dated(frame, "birth_date")
    frame = derivation.mapped(frame, "gender", "gender", "administrative-gender", "gender_concept_id")
    frame = derivation.resolved(frame, "specialty", "value", "specialty")
    return frame.with_columns(
        pl.col("birth_date_date").dt.year().alias("year_of_birth"),
        pl.col("gender").alias("gender_source_value"),
        pl.col("specialty_concept_id").fill_null(0),
        pl.col("specialty_source_code").alias("specialty_source_value"),
    )


def care_site(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    frame = derivation.resolved(frame, "place_of_service", "value", "place_of_service")
    return frame.with_columns(pl.col("place_of_service_source_code").alias("place_of_service_source_value"))


# --- Encounter --------------------------------------------------------------------------------------------------------


def visit(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """visit_occurrence: class by crosswalk, missing end by kind of visit (outpatient: start; inpatient: as-of)."""
    frame = _ending(_starting(frame, derivation, "start"), derivation, "end")
    crosswalk = derivation.value_maps["encounter_class"].rename(
        {"system": "class_system", "code": "class_code", "concept_id": "visit_concept_id"}
    )
    frame = frame.join(crosswalk, on=["class_system", "class_code"], how="left", maintain_order="left")
    frame = derivation.mapped_set(frame, "admit_source", "admit_source", "admitted_from_concept_id")
    frame = derivation.mapped_set(frame, "discharge_disposition", "discharge_disposition", "discharged_to_concept_id")
    open_stay = pl.col("visit_concept_id").is_in(INPATIENT_VISITS) & pl.col("end").is_null()
    as_of = pl.max_horizontal(pl.lit(derivation.as_of), pl.col("start_date"))
    return frame.with_columns(
        pl.col("start_date").alias("visit_start_date"),
        pl.col("start_datetime").alias("visit_start_datetime"),
        pl.when(open_stay).then(as_of).otherwise(pl.coalesce("end_date", "start_date")).alias("visit_end_date"),
        pl.when(open_stay)
        .then(as_of.cast(pl.Datetime("us")))
        .otherwise(pl.coalesce("end_datetime", "start_datetime"))
        .alias("visit_end_datetime"),
        pl.lit(derivation.constant("visit_type_ehr_encounter"), dtype=pl.Int64).alias("visit_type_concept_id"),
        pl.col("class_code").alias("visit_source_value"),
        pl.col("admitted_from_concept_id_code").alias("admitted_from_source_value"),
        pl.col("discharged_to_concept_id_code").alias("discharged_to_source_value"),
    )


def discharge(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """An event at the end of the stay (or its start), linked to the visit itself."""
    frame = derivation.dated(_starting(frame, derivation, "start"), "end")
    ended = pl.col("end_date") >= pl.col("start_date")
    return frame.with_columns(
        pl.when(ended).then("end_date").otherwise("start_date").alias("start_date"),
        pl.when(ended).then("end_datetime").otherwise("start_datetime").alias("start_datetime"),
        pl.col("surrogate_id").alias("visit_occurrence_id"),
    )


# --- Condition --------------------------------------------------------------------------------------------------------

_MAX_DAYS_OUTSIDE = 7


def condition(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Start by precedence, end from abatement, status from the encounter's diagnosis, visit only where it fits."""
    frame = (
        frame.pipe(_at_age, derivation, "onset")
        .pipe(_at_age, derivation, "abatement")
        .pipe(_with_visit_period, derivation)
    )
    frame = _starting(
        frame, derivation, "onset_datetime", "onset_period_start", "onset_by_age", "recorded_date", "visit_start"
    )
    frame = _ending(frame, derivation, "abatement_datetime", "abatement_period_end", "abatement_by_age")
    frame = derivation.dated(frame, "visit_start", "visit_end")
    margin = pl.duration(days=_MAX_DAYS_OUTSIDE)
    first, last = pl.col("visit_start_date"), pl.coalesce("visit_end_date", "visit_start_date")
    outside = (pl.col("start_date") < first - margin) | (pl.col("start_date") > last + margin)
    frame = frame.with_columns(
        pl.when(~(outside & ~pl.col("is_encounter_diagnosis").fill_null(False)).fill_null(False))
        .then("visit_occurrence_id")
        .alias("visit_occurrence_id")
    )
    return _condition_status(frame, derivation)


def _with_visit_period(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds visit_start and visit_end: FHIR date strings of the encounter that the resource refers to."""
    frame = derivation.with_fact(frame, "visit_occurrence_id", "encounter_period", "encounter_period")
    period = pl.col("encounter_period").str.split_exact("/", 1).struct.rename_fields(["visit_start", "visit_end"])
    return (
        frame.with_columns(period)
        .unnest("encounter_period")
        .with_columns(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in ("visit_start", "visit_end")
        )
    )


def _at_age(frame: pl.DataFrame, derivation: Derivation, element: str) -> pl.DataFrame:
    """Adds `<element>_by_age` (FHIR date string) where `<element>_age` and the patient's birth date are known."""
    age, target = f"{element}_age", f"{element}_by_age"
    aged = frame.filter(pl.col(age).is_not_null()).select("person_id", age).unique()
    if aged.is_empty():
        return frame.with_columns(pl.lit(None, dtype=pl.String).alias(target))
    aged = derivation.with_fact(aged, "person_id", "birth_date", "birth_date")
    dates = [_add_age(birth, text) for birth, text in aged.select("birth_date", age).iter_rows()]
    aged = aged.with_columns(pl.Series(target, dates, dtype=pl.String)).drop("birth_date")
    return frame.join(aged, on=["person_id", age], how="left", maintain_order="left")


_AGE = re.compile(r"(\d+(?:\.\d+)?) (a|mo|wk|d)")
_AGE_DAYS = {"a": 365.25, "mo": 30.4375, "wk": 7.0, "d": 1.0}


def _add_age(birth: str | None, age: str) -> str | None:
    """A birth date ('1960', '1960-05', '1960-05-04') and an age ('45 a') → ISO date, else None."""
    match = _AGE.fullmatch(age)
    if not birth or not match:
        return None
    try:
        born = date.fromisoformat((birth + "-01-01")[:10] if len(birth) == 4 else (birth + "-01")[:10])
        if match[2] == "a" and "." not in match[1]:
            year = born.year + int(match[1])
            return born.replace(year=year, day=min(born.day, 28) if born.month == 2 else born.day).isoformat()
        return (born + timedelta(days=float(match[1]) * _AGE_DAYS[match[2]])).isoformat()
    except (ValueError, OverflowError):
        return None


def _condition_status(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """From the encounter's diagnosis, else resolved, else confirmed; no verificationStatus → NULL."""
    frame = derivation.with_fact(frame, "surrogate_id", "condition_status", "diagnosis_use")
    uses = derivation.value_maps["diagnosis_use"].select("code", "concept_id").unique("code", maintain_order=True)
    frame = frame.join(
        uses.rename({"code": "diagnosis_use", "concept_id": "by_diagnosis"}),
        on="diagnosis_use",
        how="left",
        maintain_order="left",
    )
    frame = derivation.mapped(frame, "clinical_status", "condition_status", "clinical", "by_clinical")
    frame = derivation.mapped(frame, "verification_status", "condition_status", "verification", "by_verification")
    return frame.with_columns(
        pl.coalesce("by_diagnosis", "by_clinical", "by_verification").alias("condition_status_concept_id"),
        pl.when(pl.col("by_diagnosis").is_not_null())
        .then("diagnosis_use")
        .when(pl.col("by_clinical").is_not_null())
        .then("clinical_status")
        .otherwise("verification_status")
        .alias("condition_status_source_value"),
    )


def history(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The condition of a medical history becomes the value of "History of event"."""
    frame = derivation.resolved(frame, "code", "condition", "value")
    return frame.with_columns(
        pl.col("value_concept_id").alias("value_as_concept_id"),
        pl.col("value_source_concept_id").fill_null(0).alias("source_concept_id"),
        pl.col("value_source_code").alias("value_source_value"),
        pl.col("value_source_code").alias("source_value"),
    )


# --- Observation ------------------------------------------------------------------------------------------------------


def observation_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    return _starting(frame, derivation, "effective_datetime", "effective_instant", "effective_period_start", "issued")


_COMPARATORS = {
    "<": "operator_less",
    "<=": "operator_less_or_equal",
    ">=": "operator_greater_or_equal",
    ">": "operator_greater",
}
_NUMBER_TEXT = r"^\s*(<=|>=|<|>)?\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*$"


def observation_value(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """value[x], unit, range and interpretation → OMOP value columns.

    A string that is a number, with or without comparator, is parsed ("<0.01"); other types become text. The
    interpretation is the value only where there is no other.
    """
    parts = pl.col("value_string").str.extract_groups(_NUMBER_TEXT)
    number = parts.struct.field("2").cast(pl.Float64, strict=False)
    frame = frame.with_columns(
        pl.when(number.is_finite()).then(number).alias("string_number"),
        pl.when(number.is_finite()).then(parts.struct.field("1")).alias("string_comparator"),
    )
    frame = derivation.resolved(frame, "value_code", "value", "value")
    frame = derivation.resolved(frame, "unit", "unit", "unit")
    frame = derivation.mapped_set(frame, "interpretation", "interpretation", "interpretation_concept_id")
    operators = {text: derivation.constant(name) for text, name in _COMPARATORS.items()}
    comparator = pl.coalesce("value_comparator", "string_comparator")
    boolean = pl.col("value_boolean")
    truth = (
        pl.when(boolean)
        .then(pl.lit(derivation.constant("value_true"), dtype=pl.Int64))
        .when(~boolean)
        .then(pl.lit(derivation.constant("value_false"), dtype=pl.Int64))
    )
    has_value = pl.any_horizontal(
        pl.col(
            "value_quantity", "value_integer", "value_string", "value_code", "value_boolean", "value_other"
        ).is_not_null()
    )
    interpretation = pl.when(~has_value).then("interpretation_concept_id")
    text = pl.coalesce("value_string", "value_other", boolean.cast(pl.String))
    return frame.with_columns(
        pl.coalesce("value_quantity", pl.col("value_integer").cast(pl.Float64), "string_number").alias(
            "value_as_number"
        ),
        comparator.replace_strict(operators, default=None, return_dtype=pl.Int64).alias("operator_concept_id"),
        pl.coalesce("value_concept_id", truth, interpretation).alias("value_as_concept_id"),
        pl.coalesce("value_string", "value_other").alias("value_as_string"),
        pl.coalesce(
            "value_source_code", text, pl.when(~has_value).then("interpretation_concept_id_code"), _number_text()
        ).alias("value_source_value"),
        pl.coalesce("unit_source_code", "unit_text").alias("unit_source_value"),
        pl.col("interpretation_concept_id").alias("qualifier_concept_id"),
        pl.col("interpretation_concept_id_code").alias("qualifier_source_value"),
    ).drop("value_source_code")


def _number_text() -> pl.Expr:
    """The number as the source wrote it, with its comparator."""
    number = pl.coalesce(pl.col("value_integer").cast(pl.String), pl.col("value_quantity").cast(pl.String))
    number = number.str.strip_suffix(".0")
    return pl.when(number.is_not_null()).then(pl.col("value_comparator").fill_null("") + number)


# --- MedicationRequest, Immunization, Procedure -----------------------------------------------------------------------


def medication(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The code of the referenced Medication where the request has none; else the reference's display as text."""
    wanted = frame.filter(pl.col("code").is_null() & pl.col("medication_reference").is_not_null())
    if wanted.is_empty():
        return frame
    found = derivation.facts("medication_code", wanted["medication_reference"].unique())
    numbers = [derivation.sets.add_concept(orjson.loads(value)) for value in found["value"]]
    codes = found.select(pl.col("surrogate_id").alias("medication_reference")).with_columns(
        pl.Series("referenced_code", numbers, dtype=pl.Int32)
    )
    frame = frame.join(codes, on="medication_reference", how="left", maintain_order="left")
    displays = frame.filter(pl.col("code").is_null() & pl.col("referenced_code").is_null())["medication_display"]
    texts = {text: derivation.sets.add_concept({"text": text}) for text in displays.drop_nulls().unique()}
    by_display = pl.col("medication_display").replace_strict(texts, default=None, return_dtype=pl.Int32)
    return frame.with_columns(
        pl.coalesce("code", "referenced_code", by_display).alias("code"),
        (
            pl.col("code").is_null()
            & pl.col("referenced_code").is_null()
            & pl.col("medication_reference").is_not_null()
        ).alias("pending_medication"),
    )


_DAYS = {"d": 1, "day": 1, "days": 1, "wk": 7, "week": 7, "weeks": 7}
_DEFAULT_SUPPLY_DAYS = 29
_MOST_SUPPLY_DAYS = 3650


def drug_request_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """drug_exposure end: bounds > days supply > quantity by daily dose > start + 29 for prescriptions only.

    An inpatient order ends by its bounds, else with the visit, else on its first day.
    """
    frame = _starting(frame, derivation, "authored_on")
    frame = _ending(frame, derivation, "bounds_end", "validity_end")
    frame = derivation.dated(_with_visit_period(frame, derivation), "visit_end").drop("visit_end_precision")
    inpatient, reported = (pl.col(name).fill_null(False) for name in ("is_inpatient", "is_reported"))
    discharge = pl.when(pl.col("visit_end_date") >= pl.col("start_date")).then("visit_end_date")
    supply = _whole_days(pl.col("supply_value") * _days_of(pl.col("supply_unit")), "round")
    dose_days = _whole_days(pl.col("quantity") / pl.col("daily_dose"), "ceil")
    usual = pl.when(~reported).then(pl.lit(_DEFAULT_SUPPLY_DAYS, dtype=pl.Int64))
    days = pl.when(~inpatient).then(pl.coalesce(supply - 1, dose_days - 1, usual)).fill_null(0)
    by_days = pl.col("start_date") + pl.duration(days=days)
    return frame.with_columns(
        supply.alias("days_supply"),
        pl.coalesce("end_date", pl.when(inpatient).then(discharge), by_days).alias("end_date"),
    )


def _days_of(unit: pl.Expr) -> pl.Expr:
    return unit.str.to_lowercase().replace_strict(_DAYS, default=None, return_dtype=pl.Int64)


def _whole_days(days: pl.Expr, rounding: Literal["round", "ceil"]) -> pl.Expr:
    """A number of days as an integer; NULL for what cannot be meant: none, or more than ten years."""
    whole = days.round() if rounding == "round" else days.ceil()
    return pl.when(whole.is_between(1, _MOST_SUPPLY_DAYS)).then(whole).cast(pl.Int64)


def route(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    frame = derivation.resolved(frame, "route", "value", "route")
    return frame.with_columns(pl.col("route_source_code").alias("route_source_value"))


def immunization(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One day; route by the value map of v3-RouteOfAdministration."""
    frame = _starting(frame, derivation, "occurrence")
    frame = derivation.mapped_set(frame, "route", "immunization_route", "route_concept_id")
    return frame.with_columns(
        pl.col("start_date").alias("end_date"),
        pl.col("start_datetime").alias("end_datetime"),
        pl.col("route_concept_id_code").alias("route_source_value"),
    )


def procedure(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Date or period; body site → modifier."""
    frame = _starting(frame, derivation, "performed_datetime", "performed_start")
    frame = _ending(frame, derivation, "performed_end")
    frame = derivation.resolved(frame, "body_site", "value", "modifier")
    return frame.with_columns(pl.col("modifier_source_code").alias("modifier_source_value"))


DERIVATIONS: Mapping[str, Callable[[pl.DataFrame, Derivation], pl.DataFrame]] = {
    function.__name__: function
    for function in (
        person,
        death,
        provider,
        care_site,
        visit,
        discharge,
        condition,
        history,
        observation_date,
        observation_value,
        medication,
        drug_request_dates,
        route,
        immunization,
        procedure,
    )
}


# --- converters of view columns: functions of one FHIR value --------------------------------------------------------

_OTHER_VALUES = ("valueRange", "valueRatio", "valueSampledData", "valueTime", "valueDateTime", "valuePeriod")


def other_value(element: dict[str, Any]) -> str | None:
    """Text of the value types that OMOP has no column for, None for the others."""
    for name in _OTHER_VALUES:
        if name in element:
            return _value_text(name, element[name])
    return None


def _value_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "valueRange":
        return f"{_quantity_text(value.get('low'))} - {_quantity_text(value.get('high'))}".strip()
    if name == "valueRatio":
        return f"{_quantity_text(value.get('numerator'))}/{_quantity_text(value.get('denominator'))}"
    if name == "valuePeriod":
        return f"{value.get('start', '')}/{value.get('end', '')}"
    return str(value.get("data", ""))


def _quantity_text(value: Any) -> str:
    if not value:
        return ""
    return f"{value.get('comparator', '')}{value.get('value', '')} {value.get('unit', value.get('code', ''))}".strip()


def comparator(value: str) -> str | None:
    """A Quantity's comparator, None for "=". It is a modifier: one that is not known is refused (f2o-063)."""
    if value == "=":
        return None
    if value not in _COMPARATORS:
        raise ValueError("expected one of < <= >= > =")
    return value


def integer32(value: int) -> int:
    """FHIR's integers have 32 bits, and so have the columns: a larger one would make PostgreSQL refuse a whole load."""
    if value.__class__ is not int:
        raise TypeError("expected an integer")
    if not -(2**31) <= value < 2**31:
        raise ValueError("expected an integer of 32 bits")
    return value


def diagnosis_use(diagnosis: dict[str, Any]) -> str | None:
    """Key of the value map diagnosis_use: the role's code where it is one of AD and DD, else by rank."""
    for coding in (diagnosis.get("use") or {}).get("coding") or ():
        if coding.get("code") in {"AD", "DD"}:
            return str(coding["code"])
    rank = diagnosis.get("rank")
    return None if rank is None else "1" if rank == 1 else "other"


def period_text(period: dict[str, Any]) -> str:
    """'start/end', either may be empty."""
    return f"{period.get('start') or ''}/{period.get('end') or ''}"


def age_text(age: dict[str, Any]) -> str | None:
    """An Age as '45 a' (UCUM code), None without value or code."""
    value, code = age.get("value"), age.get("code")
    return None if value is None or code is None else f"{value} {code}"


def dosage_text(request: dict[str, Any]) -> str | None:
    """sig: the texts of all dosage instructions, in order."""
    texts = [dosage["text"] for dosage in request.get("dosageInstruction") or () if dosage.get("text")]
    return "; ".join(texts) or None


_PERIOD_DAYS = {"h": 1 / 24, "d": 1.0, "wk": 7.0}


def daily_dose(request: dict[str, Any]) -> float | None:
    """Dose a day in the unit of the dispensed quantity; None where units differ or anything is missing.

    Never invented: tablets are not divided by milligrams.
    """
    quantity = (request.get("dispenseRequest") or {}).get("quantity") or {}
    dosage = (request.get("dosageInstruction") or [{}])[0]
    dose = ((dosage.get("doseAndRate") or [{}])[0]).get("doseQuantity") or {}
    repeat = (dosage.get("timing") or {}).get("repeat") or {}
    unit, dose_unit = (part.get("code") or part.get("unit") for part in (quantity, dose))
    days = _PERIOD_DAYS.get(str(repeat.get("periodUnit")))
    if not unit or unit != dose_unit or not days or not repeat.get("period") or not dose.get("value"):
        return None
    return float(dose["value"] * repeat.get("frequency", 1) / (repeat["period"] * days))


def medication_code(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter MedicationRequest → code set of its medication, None where that is another resource."""

    def convert(request: dict[str, Any]) -> int | None:
        concept = request.get("medicationCodeableConcept")
        if concept is not None:
            return sets.add_concept(concept)
        reference = (request.get("medicationReference") or {}).get("reference")
        if isinstance(reference, str) and reference.startswith("#"):
            for contained in request.get("contained") or ():
                if contained.get("id") == reference[1:] and contained.get("code"):
                    return sets.add_concept(contained["code"])
        return None

    return convert
