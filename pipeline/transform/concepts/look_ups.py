"""The one way from a code to a concept: a value map, the vocabulary, or one after the other. What a site's local map says
stands in place of the vocabulary, and comes after a value map.

A look-up has three outcomes. A code is mapped; or has no concept by rule, because a map says 0, a `meaning:` or
`exclude:`; or it is unknown. Only unknown ones are counted (`etl.unmapped_code`): `unmapped_<element>` marks them, and the
transform stage counts what is marked (`pipeline.transform.unmapped`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from pipeline.transform.column_names import unmapped
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.concepts.resolver import ConceptResolver

__all__ = ["LookUps"]


@dataclass(frozen=True)
class LookUps:
    """What codes are looked up in."""

    value_maps: Mapping[str, pl.DataFrame]
    sets: CodeSets
    resolver: ConceptResolver
    #: concepts(ids) → their rows of the concept index: concept_id, domain_id, concept_class_id and others
    concepts: Callable[[list[int]], pl.DataFrame]
    #: what a look-up of no code sets gives, by how it is made: columns and types alone
    _of_none: dict[tuple[str | None, str | None], pl.DataFrame] = field(default_factory=dict, repr=False)

    def of(
        self,
        frame: pl.DataFrame,
        column: str,
        prefix: str,
        *,
        value_map: str | None = None,
        purpose: str | None = None,
        domain: str | None = None,
        last: str | None = None,
        element: str | None = None,
    ) -> pl.DataFrame:
        """Look up `column`, a column of code sets: first in `value_map`, then in the vocabulary by `purpose`.

        Adds `<prefix>_concept_id`: NULL where the element is absent, 0 where it is present and has none; `<prefix>_source_code`;
        by a purpose `<prefix>_source_concept_id`; by a map `<prefix>_source_system`, `_meaning`, `_excludes`.
        And `unmapped_<element>`, by default of the column's name. `domain`: a concept of another one does not count.
        `last`: codings of this system are asked after all others.
        """
        if frame[column].null_count() == frame.height:  # most elements of most resources are absent
            return self._with_none(frame, column, prefix, (value_map, purpose), element or column)
        found = self._found(frame[column], value_map, purpose, domain, last)
        found = found.rename({"code_set": column} | {name: f"{prefix}_{name}" for name in found.columns[1:]})
        frame = frame.join(found, on=column, how="left", maintain_order="left")
        unknown = pl.when(f"{prefix}_is_unknown").then(pl.col(column))
        return frame.with_columns(unknown.alias(unmapped(element or column))).drop(f"{prefix}_is_unknown")

    def _with_none(
        self, frame: pl.DataFrame, column: str, prefix: str, how: tuple[str | None, str | None], element: str
    ) -> pl.DataFrame:
        """What `of` gives for a column without a value: the same columns of the same types, all NULL."""
        if how not in self._of_none:
            self._of_none[how] = self._found(frame[column].clear(), *how, None, None).clear()
        empty = self._of_none[how].drop("code_set", "is_unknown")
        nulls = [pl.lit(None, dtype=kind).alias(f"{prefix}_{name}") for name, kind in empty.schema.items()]
        return frame.with_columns(*nulls, pl.lit(None, dtype=frame[column].dtype).alias(unmapped(element)))

    def _found(
        self, code_sets: pl.Series, value_map: str | None, purpose: str | None, domain: str | None, last: str | None
    ) -> pl.DataFrame:
        if value_map is None:
            return self._in_vocabulary(purpose or "", domain)
        found = self.in_map(code_sets, value_map, last)
        return self._answered(found) if purpose is None else self._completed(found, purpose, domain)

    def of_codes(self, frame: pl.DataFrame, column: str, prefix: str, *, value_map: str, system: str) -> pl.DataFrame:
        """The same for a column of FHIR codes, which have no system of their own: `system` is what the map calls it.

        `<prefix>_concept_id` is NULL also where there is none by rule.
        """
        own = f"{prefix}_code_set"
        frame = frame.with_columns(self.code_sets(frame[column], system).alias(own))
        frame = self.of(frame, own, prefix, value_map=value_map, element=column).drop(own)
        concept = pl.col(f"{prefix}_concept_id")
        return frame.with_columns(pl.when(concept != 0).then(concept).alias(f"{prefix}_concept_id"))

    def code_sets(self, codes: pl.Series, system: str, named: Callable[[str], str] = str) -> pl.Series:
        """The numbers of codes as code sets. `named`: what the map calls a code."""
        distinct = codes.drop_nulls().unique()
        numbers = {code: self.sets.add_coding({"system": system, "code": named(code)}) for code in distinct}
        return codes.replace_strict(numbers, default=None, return_dtype=pl.Int32)

    def in_map(self, code_sets: pl.Series, value_map: str, last: str | None = None) -> pl.DataFrame:
        """code_set, concept_id, source_system, source_code, meaning, excludes, is_unknown of these code sets.

        The first coding counts for which the map has a concept, or none by rule; without one, the first.
        """
        numbers = code_sets.drop_nulls().unique(maintain_order=True)
        codings = self.sets.codings_of(numbers)
        known = codings.join(self.value_maps[value_map], on=["system", "code"], how="left", maintain_order="left")
        is_known = ((pl.col("concept_id") != 0) | pl.col("by_rule")).fill_null(False)
        first = (
            known.with_columns((~is_known).alias("is_unknown"))
            .sort(
                "code_set",
                "is_unknown",
                (pl.col("system") == pl.lit(last, dtype=pl.String)).fill_null(False),
                "position",
                maintain_order=True,
            )
            .unique("code_set", keep="first", maintain_order=True)
        )
        every = pl.DataFrame({"code_set": numbers.cast(pl.Int32)})
        return every.join(first, on="code_set", how="left", maintain_order="left").select(
            "code_set",
            pl.col("concept_id").fill_null(0),
            pl.col("system").alias("source_system"),
            pl.col("code").alias("source_code"),
            "meaning",
            pl.col("exclude_reason").alias("excludes"),
            pl.col("is_unknown").fill_null(True),  # a text without codings
        )

    def _answered(self, by_map: pl.DataFrame) -> pl.DataFrame:
        """What the map does not know, and the site's local map does: "no map" is an answer, too."""
        asked = by_map.filter(pl.col("is_unknown") & pl.col("source_code").is_not_null())
        if asked.is_empty():
            return by_map
        found = self.resolver.answers(set(asked.select("source_system", "source_code").iter_rows()))
        if not found:
            return by_map
        schema = {"source_system": pl.String, "source_code": pl.String, "answer": pl.Int64}
        answers = pl.DataFrame([(*coding, concept) for coding, concept in found.items()], schema=schema, orient="row")
        both = by_map.join(
            answers, on=["source_system", "source_code"], how="left", nulls_equal=True, maintain_order="left"
        )
        is_answered = pl.col("is_unknown") & pl.col("answer").is_not_null()
        return both.with_columns(
            pl.when(is_answered).then("answer").otherwise("concept_id").alias("concept_id"),
            is_unknown=pl.col("is_unknown") & ~is_answered,
        ).drop("answer")

    def _in_vocabulary(self, purpose: str, domain: str | None) -> pl.DataFrame:
        """code_set, concept_id, source_concept_id, source_code, is_unknown of every code set."""
        found = self.resolver.resolve_single(purpose).select(
            "code_set",
            pl.col("target_concept_id").alias("concept_id"),
            "source_concept_id",
            "source_code",
            (pl.col("target_concept_id") == 0).alias("is_unknown"),
        )
        if domain is None:
            return found
        concepts = self.concepts(found["concept_id"].unique().to_list())
        fits = pl.col("concept_id").is_in(concepts.filter(pl.col("domain_id") == domain)["concept_id"].implode())
        return found.with_columns(pl.when(fits).then("concept_id").otherwise(0).alias("concept_id"), is_unknown=~fits)

    def _completed(self, by_map: pl.DataFrame, purpose: str, domain: str | None) -> pl.DataFrame:
        """What the map does not know is asked of the vocabulary."""
        both = by_map.join(
            self._in_vocabulary(purpose, domain), on="code_set", how="left", maintain_order="left", suffix="_of_purpose"
        )
        asked = pl.col("is_unknown")
        return both.select(
            "code_set",
            pl.when(asked).then("concept_id_of_purpose").otherwise("concept_id").alias("concept_id"),
            pl.when(asked).then("source_code_of_purpose").otherwise("source_code").alias("source_code"),
            "source_concept_id",
            *("source_system", "meaning", "excludes"),
            (asked & pl.col("is_unknown_of_purpose")).alias("is_unknown"),
        )
