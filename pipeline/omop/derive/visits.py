"""Encounters: visits, and what a discharge says."""

from __future__ import annotations

import polars as pl

from pipeline.omop.derive.base import INPATIENT_VISITS, Derivation, ending, starting


def visit(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """visit_occurrence: class by crosswalk, missing end by kind of visit (outpatient: start; inpatient: as-of)."""
    frame = ending(starting(frame, derivation, "start"), derivation, "end")
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
    frame = derivation.dated(starting(frame, derivation, "start"), "end")
    ended = pl.col("end_date") >= pl.col("start_date")
    return frame.with_columns(
        pl.when(ended).then("end_date").otherwise("start_date").alias("start_date"),
        pl.when(ended).then("end_datetime").otherwise("start_datetime").alias("start_datetime"),
        pl.col("surrogate_id").alias("visit_occurrence_id"),
    )
