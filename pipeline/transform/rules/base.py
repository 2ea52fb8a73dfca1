"""What every rule may ask for: concepts, value maps, and facts of other resources. Dates are in `dates`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date

import polars as pl

from pipeline.core.mapping_options import MappingOptions
from pipeline.transform.column_names import lacks, unmapped, uses
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.concepts.look_ups import LookUps
from pipeline.transform.concepts.resolver import ConceptResolver

#: What the value map `gender` calls the system of FHIR's own codes.
GENDERS = "administrative-gender"

#: Vocabulary concepts of visits in which a patient stays: their missing end is the export's as-of date.
INPATIENT_VISITS = (9201, 262, 42898160, 8717)


@dataclass(frozen=True)
class Derivation:
    """What rules may ask for. `fixed` maps a concept id of the mappings to the loaded vocabulary's."""

    site_zone: str
    instance_zone: str
    as_of: date
    options: MappingOptions
    fixed: Callable[[tuple[int, ...]], int]
    constants: Mapping[str, tuple[int, ...]]
    look_ups: LookUps
    #: facts(name, surrogate ids) → columns surrogate_id, value
    facts: Callable[[str, pl.Series], pl.DataFrame]
    #: strengths(drug concept ids) → rows of drug_strength, one for each ingredient
    strengths: Callable[[list[int]], pl.DataFrame]
    #: resource types of which a text may stand as source value (setting text_source_value_types)
    text_types: tuple[str, ...]
    #: binary_texts(values of the fact `binary`) → the text at each of those lines, where there is one
    binary_texts: Callable[[pl.Series], Mapping[str, str]]

    @property
    def sets(self) -> CodeSets:
        return self.look_ups.sets

    @property
    def resolver(self) -> ConceptResolver:
        return self.look_ups.resolver

    @property
    def concepts(self) -> Callable[[list[int]], pl.DataFrame]:
        """concepts(ids) → their rows of the concept index: concept_id, domain_id, concept_class_id and others."""
        return self.look_ups.concepts

    def constant(self, name: str) -> int:
        return self.fixed(self.constants[name])

    def with_fact(self, frame: pl.DataFrame, key: str, name: str, target: str) -> pl.DataFrame:
        """Adds `target`: the value of fact `name` of the resource that column `key` refers to.

        Who lets a row depend on it says so by `used`.
        """
        keys = frame[key].drop_nulls().unique()
        if keys.is_empty():
            return frame.with_columns(pl.lit(None, dtype=pl.String).alias(target))
        values = self.facts(name, keys).rename({"surrogate_id": key, "value": target})
        return frame.join(values, on=key, how="left", maintain_order="left")


def as_value_writes(column: str = "code") -> tuple[str, ...]:
    """What `as_value` makes."""
    return (
        *("value_concept_id", "value_source_code", "value_source_concept_id", unmapped(column)),
        *(
            "value_as_concept_id",
            "value_source_value",
            "value_as_source_concept_id",
            "source_concept_id",
            "source_value",
        ),
    )


#: What `as_value` makes of a code.
AS_VALUE = as_value_writes()


def as_value(
    frame: pl.DataFrame, derivation: Derivation, purpose: str, column: str = "code", *, value_map: str | None = None
) -> pl.DataFrame:
    """The code becomes the value of a row whose concept the mapping fixes, and stays its source."""
    frame = derivation.look_ups.of(frame, column, "value", value_map=value_map, purpose=purpose)
    return frame.with_columns(
        pl.col("value_concept_id").alias("value_as_concept_id"),
        pl.col("value_source_concept_id").fill_null(0).alias("source_concept_id"),
        source_of_value().alias("value_as_source_concept_id"),
        pl.col("value_source_code").alias("value_source_value"),
        pl.col("value_source_code").alias("source_value"),
    )


def source_of_value() -> pl.Expr:
    """value_as_source_concept_id of a value that was looked up under the prefix `value`: 0 where its code has no concept,
    NULL where there is no code."""
    return pl.when(pl.col("value_source_code").is_not_null()).then(pl.col("value_source_concept_id").fill_null(0))


def used(frame: pl.DataFrame, name: str, key: str, when: pl.Expr, missing: pl.Expr) -> pl.DataFrame:
    """Note that rows depend on fact `name` of the resource in column `key` where `when` holds.

    They are mapped again when that resource changes; `missing`: where it has not come yet. Adds `uses_<name>` (Int64)
    and `lacks_<name>` (Boolean), which the transform stage turns into `etl.reference`. Where a row asks for a fact
    twice, `name` is the fact's name, `__`, and what for.
    """
    return frame.with_columns(
        pl.when(when).then(pl.col(key)).alias(uses(name)), missing.fill_null(False).alias(lacks(name))
    )
