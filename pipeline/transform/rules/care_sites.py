"""Who gave care, where, and who paid: providers, care sites and coverages."""

from __future__ import annotations

import orjson
import polars as pl

from pipeline.transform.rules.base import GENDERS, Derivation
from pipeline.transform.rules.dates import IMPLAUSIBLE, ending, starting, with_birth_date

#: Domain of the concepts that say what kind of place a care site is (CDM: "choose the concept in the visit domain").
_PLACE_DOMAIN = "Visit"


def provider(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """provider: NPI, sex, year of birth; specialty and care site of the role, whose facts are about this resource: when
    they change, publication has it mapped again."""
    frame = with_birth_date(frame, derivation)
    known = ~pl.col(IMPLAUSIBLE) if IMPLAUSIBLE in frame.columns else pl.lit(True)
    frame = derivation.look_ups.of_codes(frame, "gender", "gender", value_map="gender", system=GENDERS)
    frame = derivation.with_fact(frame, "surrogate_id", "provider_specialty", "role_specialty")
    frame = derivation.with_fact(frame, "surrogate_id", "provider_care_site", "role_care_site")
    roles = {text: derivation.sets.add_concept(orjson.loads(text)) for text in frame["role_specialty"].drop_nulls()}
    by_role = pl.col("role_specialty").replace_strict(roles, default=None, return_dtype=pl.Int32)
    frame = frame.with_columns(pl.coalesce(by_role, "specialty").alias("specialty"))
    frame = derivation.look_ups.of(frame, "specialty", "specialty", purpose="specialty")
    return frame.with_columns(
        pl.when(known).then(pl.col("birth_date_date").dt.year()).alias("year_of_birth"),
        pl.col("gender").alias("gender_source_value"),
        pl.col("specialty_concept_id").fill_null(0),
        pl.col("specialty_source_code").alias("specialty_source_value"),
        pl.col("role_care_site").cast(pl.Int64).alias("care_site_id"),
    )


def care_site(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """care_site: its kind by the value map, else by a standard concept of domain Visit; present but neither → 0."""
    return derivation.look_ups.of(
        frame,
        "place_of_service",
        "place_of_service",
        value_map="place_of_service",
        purpose="place",
        domain=_PLACE_DOMAIN,
    ).rename({"place_of_service_source_code": "place_of_service_source_value"})


_ROLES = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
_EMERGENCY = ("ER", "ETU")


def emergency_location(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the code by which a location says that it is an emergency room."""
    codings = derivation.sets.codings_of(frame["place_of_service"].drop_nulls().unique(maintain_order=True))
    emergency = codings.filter((pl.col("system") == _ROLES) & pl.col("code").is_in(_EMERGENCY))
    first = emergency.unique("code_set", keep="first", maintain_order=True)
    first = first.select(pl.col("code_set").alias("place_of_service"), pl.col("code").alias("value"))
    return frame.join(first, on="place_of_service", how="inner", maintain_order="left")


def coverage(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """payer_plan_period: without an end it lasts until the as-of date of the export; an impossible end is the start.

    A type of domain Payer is the payer, any other the plan.
    """
    frame = ending(starting(frame, derivation, "start"), derivation, "end")
    frame = derivation.look_ups.of(frame, "kind", "kind", purpose="payer")
    domains = derivation.concepts(frame["kind_concept_id"].drop_nulls().unique().to_list())
    payers = domains.filter(pl.col("domain_id") == "Payer")["concept_id"].implode()
    is_payer = pl.col("kind_concept_id").is_in(payers).fill_null(False)
    as_of = pl.max_horizontal(pl.lit(derivation.as_of), pl.col("start_date"))
    return frame.with_columns(
        pl.col("start_date").alias("payer_plan_period_start_date"),
        pl.when(pl.col("end").is_null())
        .then(as_of)
        .otherwise(pl.coalesce("end_date", "start_date"))
        .alias("payer_plan_period_end_date"),
        *(
            pl.when(is_payer if owner == "payer" else ~is_payer).then(f"kind_{source}").alias(f"{owner}_{target}")
            for owner in ("payer", "plan")
            for source, target in (
                ("concept_id", "concept_id"),
                ("source_concept_id", "source_concept_id"),
                ("source_code", "source_value"),
            )
        ),
    )
