"""What every derive function may ask for: concepts, value maps, and facts of other resources. Dates are in `dates`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date

import polars as pl

from pipeline.mapping_options import MappingOptions
from pipeline.omop.code_sets import CodeSets
from pipeline.omop.concepts import ConceptResolver

#: Vocabulary concepts of visits in which a patient stays: their missing end is the export's as-of date.
INPATIENT_VISITS = (9201, 262, 42898160, 8717)


#: `unmapped_<element>`: code set of an element that is present and has no concept, for the count of failures.
UNMAPPED = "unmapped_"


@dataclass(frozen=True)
class Derivation:
    """What derive functions may ask for. `fixed` maps a concept id of the mappings to the loaded vocabulary's."""

    site_zone: str
    instance_zone: str
    as_of: date
    options: MappingOptions
    fixed: Callable[[tuple[int, ...]], int]
    constants: Mapping[str, tuple[int, ...]]
    value_maps: Mapping[str, pl.DataFrame]
    sets: CodeSets
    resolver: ConceptResolver
    #: facts(name, surrogate ids) → columns surrogate_id, value
    facts: Callable[[str, pl.Series], pl.DataFrame]
    #: concepts(ids) → their rows of the concept index: concept_id, domain_id, concept_class_id and others
    concepts: Callable[[list[int]], pl.DataFrame]
    #: strengths(drug concept ids) → rows of drug_strength, one for each ingredient
    strengths: Callable[[list[int]], pl.DataFrame]
    #: binary_texts(values of the fact `binary`) → the text at each of those lines, where there is one
    binary_texts: Callable[[pl.Series], Mapping[str, str]]

    def constant(self, name: str) -> int:
        return self.fixed(self.constants[name])

    def mapped(self, frame: pl.DataFrame, column: str, value_map: str, system: str, target: str) -> pl.DataFrame:
        """Adds `target`: the concept of a code column by a value map; NULL where the map has no entry."""
        entries = self.value_maps[value_map].filter(pl.col("system") == system).select("code", "concept_id")
        return frame.join(
            entries.rename({"code": column, "concept_id": target}), on=column, how="left", maintain_order="left"
        )

    def mapped_set(
        self, frame: pl.DataFrame, column: str, value_map: str, target: str, *, last: str | None = None
    ) -> pl.DataFrame:
        """Adds `target`, `<target>_code` and `<target>_meaning`: the concept of a code set, the code, its `meaning:`.

        The first coding that the map knows counts, those of system `last` after all others. Present but not in the
        map: 0 and the first code, if any; absent: NULL. `unmapped_<column>`: failures.
        """
        codings = self.sets.codings_of(frame[column].drop_nulls().unique(maintain_order=True))
        known = codings.join(self.value_maps[value_map], on=["system", "code"], how="left", maintain_order="left")
        best = (
            known.sort(
                "code_set",
                pl.col("concept_id").is_null(),
                (pl.col("system") == pl.lit(last, dtype=pl.String)).fill_null(False),
                "position",
                maintain_order=True,
            )
            .group_by("code_set", maintain_order=True)
            .first()
            .select(
                pl.col("code_set").alias(column),
                pl.col("concept_id").fill_null(0).alias(target),
                pl.col("code").alias(f"{target}_code"),
                pl.col("meaning").alias(f"{target}_meaning"),
            )
        )
        present = pl.when(pl.col(column).is_not_null()).then(pl.col(target).fill_null(0))  # a text without codings
        frame = frame.join(best, on=column, how="left", maintain_order="left").with_columns(present.alias(target))
        return _noted_failures(frame, column, target)

    def resolved(self, frame: pl.DataFrame, column: str, purpose: str, prefix: str) -> pl.DataFrame:
        """Adds `<prefix>_concept_id`, `_source_concept_id`, `_source_code`: a code set resolved to one concept.

        Present but unmapped → 0, absent → NULL. `unmapped_<column>`: failures.
        """
        single = self.resolver.resolve_single(purpose).select(
            pl.col("code_set").alias(column),
            pl.col("target_concept_id").alias(f"{prefix}_concept_id"),
            pl.col("source_concept_id").alias(f"{prefix}_source_concept_id"),
            pl.col("source_code").alias(f"{prefix}_source_code"),
        )
        frame = frame.join(single, on=column, how="left", maintain_order="left")
        return _noted_failures(frame, column, f"{prefix}_concept_id")

    def with_fact(self, frame: pl.DataFrame, key: str, name: str, target: str) -> pl.DataFrame:
        """Adds `target`: the value of fact `name` of the resource that column `key` refers to.

        Who lets a row depend on it says so by `used`.
        """
        keys = frame[key].drop_nulls().unique()
        if keys.is_empty():
            return frame.with_columns(pl.lit(None, dtype=pl.String).alias(target))
        values = self.facts(name, keys).rename({"surrogate_id": key, "value": target})
        return frame.join(values, on=key, how="left", maintain_order="left")


def _noted_failures(frame: pl.DataFrame, column: str, concept: str) -> pl.DataFrame:
    return frame.with_columns(pl.when(pl.col(concept) == 0).then(pl.col(column)).alias(f"{UNMAPPED}{column}"))


def as_value(frame: pl.DataFrame, derivation: Derivation, purpose: str) -> pl.DataFrame:
    """The code becomes the value of a row whose concept the mapping fixes, and stays its source."""
    frame = derivation.resolved(frame, "code", purpose, "value")
    return frame.with_columns(
        pl.col("value_concept_id").alias("value_as_concept_id"),
        pl.col("value_source_concept_id").fill_null(0).alias("source_concept_id"),
        pl.col("value_source_code").alias("value_source_value"),
        pl.col("value_source_code").alias("source_value"),
    )


def used(frame: pl.DataFrame, name: str, key: str, when: pl.Expr, missing: pl.Expr) -> pl.DataFrame:
    """Note that rows depend on fact `name` of the resource in column `key` where `when` holds.

    They are mapped again when that resource changes; `missing`: where it has not come yet. Adds `uses_<name>` (Int64)
    and `lacks_<name>` (Boolean), which the transform stage turns into `etl.reference`. Where a row asks for a fact
    twice, `name` is the fact's name, `__`, and what for.
    """
    return frame.with_columns(
        pl.when(when).then(pl.col(key)).alias(f"uses_{name}"), missing.fill_null(False).alias(f"lacks_{name}")
    )
