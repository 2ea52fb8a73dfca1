"""Concept resolution: code sets → the chosen coding, its standard concepts, and its source concept.

Set-based: every new code set of a chunk goes through one join with the concept index; results are kept for the life
of the worker. The rules are those of the mapping specification, "Rules that hold for every resource".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import polars as pl

from pipeline.transform.concepts.code_forms import NO_FORMS, CodeForms
from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY, CodeSets
from pipeline.transform.concepts.index import unit_key
from pipeline.transform.concepts.local_rows import ANSWERS

__all__ = ["ConceptLookup", "ConceptResolver"]

#: The purpose under which units are resolved, a key of vocabulary_priority.yaml.
UNIT = "unit"

#: One row a code set and standard target; at least one a code set.
RESOLVED_SCHEMA = {
    "code_set": pl.Int32,
    "code_set_key": pl.Int64,
    "target_concept_id": pl.Int64,
    "target_domain_id": pl.String,
    "value_concept_id": pl.Int64,
    "source_concept_id": pl.Int64,
    "source_system": pl.String,
    "source_code": pl.String,
    "text": pl.String,
    #: the vocabulary knows several codes that the source may mean
    "is_ambiguous": pl.Boolean,
    #: of numbers that come without a unit
    "own_unit_concept_id": pl.Int64,
}

_SPELLING_SCHEMA = {
    "vocabulary_id": pl.String,
    "code": pl.String,
    "system": pl.String,
    "attempt": pl.Int32,
    #: of the spelling: its own, or the fall-back
    "known_in": pl.String,
    "concept_code": pl.String,
}


_ASKED = ["vocabulary_id", "concept_code"]


class ConceptLookup(Protocol):
    """What the resolver asks of a concept index; other resolvers stand behind the same interface."""

    def lookup(self, codings: pl.DataFrame) -> pl.DataFrame:
        """Index rows for distinct (vocabulary_id, concept_code)."""
        ...

    def descents(self, concept_ids: pl.Series) -> pl.DataFrame:
        """Columns ancestor, descendant: which of the concepts is truly below which other of them."""
        ...

    def source_descents(self, concept_ids: pl.Series) -> pl.DataFrame:
        """The same of concepts of which some are not standard."""
        ...


class FallBack(Protocol):
    """Where codes of a system are looked up that its own vocabulary does not have."""

    @property
    def vocabulary_id(self) -> str: ...

    def is_for(self, purpose: str) -> bool: ...


class ConceptResolver:
    """Resolves the code sets of one worker, each once per purpose (a key of vocabulary_priority.yaml)."""

    def __init__(
        self,
        sets: CodeSets,
        index: ConceptLookup,
        code_systems: Mapping[str, str],
        priorities: Mapping[str, tuple[str, ...]],
        unit_aliases: Mapping[str, str] | None = None,
        forms: CodeForms = NO_FORMS,
        fall_backs: Mapping[str, FallBack] | None = None,
    ) -> None:
        self._sets = sets
        self._index = index
        self._systems = pl.DataFrame(
            {"system": list(code_systems), "vocabulary_id": list(code_systems.values())},
            schema={"system": pl.String, "vocabulary_id": pl.String},
        )
        self._vocabularies = code_systems
        self._priorities = priorities
        self._unit_aliases = unit_aliases or {}
        self._forms = forms
        self._fall_backs = fall_backs or {}
        self._resolved: dict[str, pl.DataFrame] = {}
        self._single: dict[str, pl.DataFrame] = {}
        self._done: dict[str, int] = {}
        #: codings that the index was asked for, and its rows: other code sets and other purposes have the same
        self._asked = pl.DataFrame(schema={"vocabulary_id": pl.String, "concept_code": pl.String})
        self._rows: pl.DataFrame | None = None

    def resolve(self, purpose: str) -> pl.DataFrame:
        """Everything resolved for a purpose so far, new code sets included. Columns: RESOLVED_SCHEMA."""
        self._resolve_new(purpose)
        return self._resolved[purpose]

    def resolve_single(self, purpose: str) -> pl.DataFrame:
        """The same with one row a code set: the first standard concept, 0 for none (values, units, routes)."""
        self._resolve_new(purpose)
        return self._single[purpose]

    def tried(self, codings: Iterable[tuple[str | None, str | None]]) -> dict[tuple[str | None, str | None], str]:
        """What these codings (system, code) are in the vocabulary: for people, no row depends on it."""
        named = {coding: self._names(*coding) for coding in codings}
        every = (name for names in named.values() for name in names)
        found = set(self._rows_of(every).select(_ASKED).iter_rows())
        said = {}
        for coding, names in named.items():
            if not names:
                said[coding] = "nothing to look up"
            else:
                name = next((name for name in names if name in found), names[-1])
                finding = "no Standard concept" if name in found else "unknown"
                said[coding] = f"{' '.join(filter(None, name))}: {finding}"
        return said

    def answers(self, codings: Iterable[tuple[str | None, str]]) -> dict[tuple[str | None, str], int]:
        """What a site's local map says of these codings (system, code): the first concept, 0 for "no map". Of elements that
        only a value map is asked for; the vocabulary is not."""
        asked = {
            coding: [(f"{ANSWERS}{vocabulary}", code) for vocabulary, code in self._names(*coding)]
            for coding in codings
        }
        rows = self._rows_of(name for names in asked.values() for name in names)
        rows = rows.unique(_ASKED, keep="first", maintain_order=True)
        found = {row[:2]: row[2] or 0 for row in rows.select(*_ASKED, "target_concept_id").iter_rows()}
        firsts = {coding: next((name for name in names if name in found), None) for coding, names in asked.items()}
        return {coding: found[name] for coding, name in firsts.items() if name is not None}

    def _rows_of(self, names: Iterable[tuple[str, str]]) -> pl.DataFrame:
        """Index rows of these alone (vocabulary_id, concept_code)."""
        given = pl.DataFrame(sorted(set(names)), schema=dict.fromkeys(_ASKED, pl.String), orient="row")
        return self._lookup(given).join(given, on=_ASKED, how="semi", maintain_order="left")

    def _names(self, system: str | None, code: str | None) -> list[tuple[str, str]]:
        """vocabulary_id and concept_code of a coding, in the spellings in which they are looked up."""
        if not code:
            return []
        vocabulary = self._vocabularies.get(system or "", system or "")
        return [(vocabulary, one) for attempt in self._forms.attempts(vocabulary, code) for one in attempt]

    def _resolve_new(self, purpose: str) -> None:
        nothing = pl.DataFrame(schema=RESOLVED_SCHEMA)
        known, single = self._resolved.setdefault(purpose, nothing), self._single.setdefault(purpose, nothing)
        first = self._done.get(purpose, 0)
        if first < len(self._sets):
            new = self._resolve_from(first, purpose)
            self._resolved[purpose] = pl.concat([known, new])
            self._single[purpose] = pl.concat([single, new.unique("code_set", keep="first", maintain_order=True)])
            self._done[purpose] = len(self._sets)

    def _lookup(self, codings: pl.DataFrame) -> pl.DataFrame:
        """Index rows of distinct (vocabulary_id, concept_code), and of others. The index reads a file of millions of
        rows each time: it is asked only for codings that it was not asked for before."""
        new = codings.join(self._asked, on=["vocabulary_id", "concept_code"], how="anti", maintain_order="left")
        if self._rows is None or not new.is_empty():
            found = self._index.lookup(new)
            self._rows = found if self._rows is None else pl.concat([self._rows, found])
            self._asked = pl.concat([self._asked, new])
        return self._rows

    def _resolve_from(self, first: int, purpose: str) -> pl.DataFrame:
        sets = self._sets.sets(first)
        candidates = self._unit_candidates(first) if purpose == UNIT else self._candidates(first, purpose)
        chosen = self._choose(candidates, purpose)
        return (
            sets.join(chosen, on="code_set", how="left", maintain_order="left")
            .with_columns(
                pl.col("target_concept_id", "source_concept_id").fill_null(0), pl.col("is_ambiguous").fill_null(False)
            )
            .select(pl.col(name).cast(kind) for name, kind in RESOLVED_SCHEMA.items())
        )

    def _candidates(self, first: int, purpose: str) -> pl.DataFrame:
        """One row a coding and index row; target_concept_id is NULL where a coding has no standard concept."""
        codings = self._sets.codings(first).join(self._systems, on="system", how="left", maintain_order="left")
        codings = codings.with_columns(pl.coalesce("vocabulary_id", "system", pl.lit("")).alias("vocabulary_id"))
        codings = pl.concat([codings, self._sets.texts_alone(first).select(codings.columns)])
        key = ["vocabulary_id", "code", "system"]
        spellings = self._spelled(codings.select(key).unique(maintain_order=True), purpose)
        asked = spellings.select(pl.col("known_in").alias("vocabulary_id"), "concept_code").unique(maintain_order=True)
        rows = self._lookup(asked).rename({"vocabulary_id": "known_in"})
        known = spellings.join(rows, on=["known_in", "concept_code"], how="inner", maintain_order="left")
        # The first spelling that is known counts; of spellings that are as good as each other only one may be.
        known = known.filter(pl.col("attempt") == pl.col("attempt").min().over(key)).with_columns(
            (pl.col("concept_code").n_unique().over(key) > 1).alias("is_ambiguous")
        )
        meaning = [name for name in rows.columns if name not in {"known_in", "concept_code"}]
        nothing = [pl.when(~pl.col("is_ambiguous")).then(name).alias(name) for name in meaning]
        known = known.with_columns(nothing).unique(
            [*key, *meaning, "known_in", "is_ambiguous"], keep="first", maintain_order=True
        )
        found = codings.join(known, on=key, how="left", maintain_order="left", nulls_equal=True)
        return found.with_columns(
            pl.coalesce("known_in", "vocabulary_id").alias("vocabulary_id"),
            pl.coalesce("concept_code", "code").alias("concept_code"),
        )

    def _spelled(self, codes: pl.DataFrame, purpose: str) -> pl.DataFrame:
        """Every spelling in which codes (vocabulary_id, code, system) are looked up. Columns: _SPELLING_SCHEMA."""
        rows = []
        for vocabulary, code, system in codes.iter_rows():
            attempts = [(vocabulary, one) for one in self._forms.attempts(vocabulary, code)]
            other = self._fall_backs.get(system)
            if other is not None and other.is_for(purpose):
                # The code as it is in either, before it is taken for another: 0066 as a procedure is 00.66, not 006.6.
                elsewhere = [(other.vocabulary_id, one) for one in self._forms.attempts(other.vocabulary_id, code)]
                attempts = [attempts[0], *elsewhere, *attempts[1:]]
            rows += [
                (vocabulary, code, system, number, known_in, spelling)
                for number, (known_in, attempt) in enumerate(attempts)
                for spelling in attempt
            ]
        return pl.DataFrame(rows, schema=_SPELLING_SCHEMA, orient="row")

    def _unit_candidates(self, first: int) -> pl.DataFrame:
        """The same for units, each looked up in several spellings; a code without a system is a text.

        A code is UCUM before it is a customary spelling; a text the other way round: nobody writes coulombs as "C".
        The spelling that has a standard concept counts, then the one that is known at all.
        """
        codings = self._sets.codings(first).join(self._systems, on="system", how="left", maintain_order="left")
        codings = codings.with_columns(pl.coalesce("vocabulary_id", "system", pl.lit("UCUM")).alias("vocabulary_id"))
        key = ["vocabulary_id", "code", "is_text"]
        codings = codings.with_columns(pl.col("system").is_null().alias("is_text"))
        spellings = pl.DataFrame(
            [
                (vocabulary, code, is_text, attempt, asked, spelling)
                for vocabulary, code, is_text in codings.select(key).unique(maintain_order=True).iter_rows()
                for attempt, (asked, spelling) in enumerate(self._asked_spellings(vocabulary, code, is_text))
            ],
            schema={
                "vocabulary_id": pl.String,
                "code": pl.String,
                "is_text": pl.Boolean,
                "attempt": pl.Int32,
                "asked_vocabulary": pl.String,
                "concept_code": pl.String,
            },
            orient="row",
        )
        asked = spellings.select(pl.col("asked_vocabulary").alias("vocabulary_id"), "concept_code")
        rows = self._lookup(asked.unique(maintain_order=True)).rename({"vocabulary_id": "asked_vocabulary"})
        known = spellings.join(rows, on=["asked_vocabulary", "concept_code"], how="inner", maintain_order="left")
        known = known.sort(*key, pl.col("target_concept_id").is_null(), "attempt", maintain_order=True)
        best = known.select(*key, "attempt").unique(key, keep="first", maintain_order=True)
        known = known.join(best, on=[*key, "attempt"], how="semi", maintain_order="left")
        found = codings.join(known, on=key, how="left", maintain_order="left")
        found = found.with_columns(pl.lit(False).alias("is_ambiguous"))
        return found.with_columns(pl.lit("UCUM").alias("vocabulary_id"))  # one rank for all: the code before the text

    def _asked_spellings(self, vocabulary: str, code: str, is_text: bool) -> list[tuple[str, str]]:
        """Vocabulary and code to ask for, in their order. What a local map says of a unit without a system comes first."""
        own = [("", code)] if is_text else []
        return [*own, *((vocabulary, spelling) for spelling in self._spellings(vocabulary, code, is_text))]

    def _spellings(self, vocabulary: str, code: str, is_text: bool) -> list[str]:
        own = [attempt[0] for attempt in self._forms.attempts(vocabulary, code)]
        alias = self._unit_aliases.get(unit_key(code)) if vocabulary == "UCUM" else None
        if alias is None:
            return own
        # As it is, or as the customary spelling, before what is there is read as something else.
        names = [alias, *own] if is_text else [own[0], alias, *own[1:]]
        return list(dict.fromkeys(names))

    def _choose(self, candidates: pl.DataFrame, purpose: str) -> pl.DataFrame:
        """The rows of the best coding of each code set.

        Order: has a standard mapping; vocabulary priority; of codes of one vocabulary the more specific (f2o-036), also
        where it maps to a broader concept; then the more specific concept; userSelected; order.
        """
        priority = self._priorities.get(purpose, ())
        others = len(priority) + 1
        ranks = {vocabulary: rank for rank, vocabulary in enumerate(priority)}
        ranked = candidates.with_columns(
            pl.col("target_concept_id").is_not_null().any().over("code_set", "position").alias("has_standard"),
            pl.col("vocabulary_id")
            .replace_strict(ranks, default=None, return_dtype=pl.Int32)
            .fill_null(
                pl.when(pl.col("vocabulary_id").is_in(self._systems["vocabulary_id"].implode()))
                .then(others)
                .otherwise(others - 1)
            )
            .alias("priority"),
        )
        ranked = ranked.with_columns(
            self._less_specific(ranked).alias("less_specific"),
            self._less_specific_source(ranked).alias("less_specific_source"),
            (~pl.col("user_selected")).alias("not_selected"),
        )
        order = [
            *("code_set", "has_standard", "priority"),
            *("less_specific_source", "less_specific", "not_selected", "position"),
        ]
        best = (
            ranked.sort(order, descending=[name == "has_standard" for name in order], maintain_order=True)
            .group_by("code_set", maintain_order=True)
            .first()
            .select("code_set", "position")
        )
        return (
            ranked.join(best, on=["code_set", "position"], how="semi", maintain_order="left")
            .sort("code_set", "pair_number", "target_concept_id", nulls_last=True, maintain_order=True)
            .rename({"system": "source_system", "code": "source_code"})
            # A text is a source value only for the types that a site allows.
            .with_columns(pl.when(pl.col("vocabulary_id") != TEXT_VOCABULARY).then("source_code").alias("source_code"))
            .select(
                "code_set",
                "target_concept_id",
                "target_domain_id",
                "value_concept_id",
                "source_concept_id",
                "source_system",
                "source_code",
                "is_ambiguous",
                pl.col("unit_concept_id").alias("own_unit_concept_id"),
            )
        )

    def _less_specific(self, ranked: pl.DataFrame) -> pl.Series:
        """True for a coding that has a rival of the same rank whose concept descends from its own."""
        rows = ranked.with_row_index("row").filter(pl.col("has_standard"))
        key = ["code_set", "priority"]
        rivals = rows.filter(pl.col("position").n_unique().over(key) > 1).select("row", *key, "target_concept_id")
        flagged: set[int] = set()
        if not rivals.is_empty():
            # What is above each rival, then who of its own set that is: a concept has few ancestors, a set may have
            # thousands of codings, and pairs of them would be millions.
            descents = self._index.descents(rivals["target_concept_id"].unique())
            above = rivals.join(descents, left_on="target_concept_id", right_on="descendant")
            above = above.select(*key, pl.col("ancestor").alias("target_concept_id")).unique()
            flagged = set(rivals.join(above, on=[*key, "target_concept_id"], how="semi")["row"])
        return pl.Series("less_specific", [row in flagged for row in range(ranked.height)], dtype=pl.Boolean)

    def _less_specific_source(self, ranked: pl.DataFrame) -> pl.Series:
        """True for a coding that has a rival of the same rank and vocabulary whose source code is below its own: by the
        code within ICD (E11 is above E11.9), else by the vocabulary's hierarchy."""
        key = ["code_set", "has_standard", "priority", "vocabulary_id"]
        rivals = ranked.with_row_index("row").filter(pl.col("position").n_unique().over(key) > 1)
        flagged: set[int] = set()
        if not rivals.is_empty():
            flagged = {*_above_by_code(rivals, key), *self._above_by_hierarchy(rivals, key)}
        return pl.Series("less_specific_source", [row in flagged for row in range(ranked.height)], dtype=pl.Boolean)

    def _above_by_hierarchy(self, rivals: pl.DataFrame, key: list[str]) -> pl.Series:
        """Rows of codings whose own concept is above that of a rival, of which one at least is not standard: of two
        that are, `_less_specific` knows it."""
        rows = rivals.filter(
            pl.col("source_concept_id").is_not_null() & ~pl.col("vocabulary_id").str.starts_with(_BY_CODE)
        )
        rows = rows.filter((pl.col("source_standard_concept").fill_null("") != "S").any().over(key))
        if rows.is_empty():
            return rows["row"]
        descents = self._index.source_descents(rows["source_concept_id"].unique())
        above = rows.join(descents, left_on="source_concept_id", right_on="descendant")
        above = above.select(*key, pl.col("ancestor").alias("source_concept_id")).unique()
        return rows.join(above, on=[*key, "source_concept_id"], how="semi")["row"]


#: Vocabularies whose codes say their hierarchy: each longer one is below the one that it begins with.
_BY_CODE = "ICD"


def _above_by_code(rivals: pl.DataFrame, key: list[str]) -> pl.Series:
    """Rows of codings whose code is the beginning of a rival's."""
    code = pl.col("concept_code").str.replace_all(".", "", literal=True).str.to_uppercase()
    rows = rivals.filter(pl.col("vocabulary_id").str.starts_with(_BY_CODE)).with_columns(code.alias("plain_code"))
    texts = rows["plain_code"].drop_nulls().unique()
    beginnings = pl.DataFrame(
        [(text, text[:length]) for text in texts for length in range(1, min(len(text), _MOST_CHARACTERS))],
        schema={"plain_code": pl.String, "beginning": pl.String},
        orient="row",
    )
    above = rows.join(beginnings, on="plain_code").select(*key, pl.col("beginning").alias("plain_code")).unique()
    return rows.join(above, on=[*key, "plain_code"], how="semi")["row"]


#: No code of ICD is longer: what is, is no code.
_MOST_CHARACTERS = 12
