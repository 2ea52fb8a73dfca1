"""What the vocabulary says of code sets: one hash for each, over all that rows can take from it.

A worker notes which code sets it looked up (`asked_sets`). Their answers are kept with the rows (`etl.vocabulary_use`), those
of unknown codes too, so that under another release or local map the same questions can be asked again: a code set with
another answer says which lines are to be mapped again. What decides an answer is the resolver itself, under every purpose;
then, of the concepts that it found, what rules ask of them: class, domain, strengths, ingredients.

Not here: concepts that mappings name (`pipeline.load.fingerprints`), and what is done with answers
(`pipeline.load.vocabulary_changes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import polars as pl
import xxhash

from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.concepts.resolver import UNIT, ConceptLookup, ConceptResolver

__all__ = [
    "ANSWER_SCHEMA",
    "Coding",
    "VocabularyAnswers",
    "as_asked",
    "asked_sets",
    "codings_of",
    "concept_details",
    "signed_hash",
    "text_as_asked",
    "text_of",
]

#: (system, code, whether a user selected it); the system by the name under which maps know it.
Coding = tuple[str | None, str, bool]

#: `asked`: a code set as JSON; `answer`: hash; `targets`: the standard concepts' ids, joined by |, under any purpose.
ANSWER_SCHEMA = {"asked": pl.String, "answer": pl.Int64, "targets": pl.String}

#: Code sets that are resolved together.
_TOGETHER = 50_000

#: What says nothing of the answer: the set's number in a worker, and its own content.
_OF_SET = ("code_set", "code_set_key", "text")


def as_asked(codings: Iterable[tuple[Any, ...]]) -> str:
    """A code set as JSON: [system, code] of each coding, with 1 after those that a user selected. Displays are left out."""
    return orjson.dumps([[of, code, 1] if selected else [of, code] for of, code, _, selected in codings]).decode()


def text_as_asked(text: str) -> str:
    """A text without codings, as the vocabulary of texts has it."""
    return orjson.dumps(text).decode()


def codings_of(asked: str) -> list[Coding]:
    """The codings of `as_asked`; none of a text."""
    content = orjson.loads(asked)
    return [(one[0], one[1], len(one) > 2) for one in content] if isinstance(content, list) else []


def text_of(asked: str) -> str | None:
    content = orjson.loads(asked)
    return content if isinstance(content, str) else None


def asked_sets(sets: CodeSets, first: int) -> Iterator[str]:
    """The code sets numbered from `first`, without their displays and texts. A set of a text alone is left out: a text may
    be about a person, and which texts have a concept is known from the vocabulary."""
    for number in range(first, len(sets)):
        if codings := sets.content(number):
            yield as_asked(codings)


def signed_hash(text: str) -> int:
    """xxh3-64 as PostgreSQL's bigint holds it."""
    number = xxhash.xxh3_64_intdigest(text.encode())
    return number - (1 << 64) if number >= 1 << 63 else number


@dataclass(frozen=True)
class VocabularyAnswers:
    """Asks one release, with its local map, by one site's mappings."""

    index: ConceptIndex
    #: the purposes under which codes are looked up, keys of vocabulary_priority.yaml
    purposes: frozenset[str]
    #: makes the resolver that a worker has (`pipeline.transform.plan.resolver_of`)
    resolver: Callable[[CodeSets, ConceptLookup], ConceptResolver]

    def of(self, asked: Sequence[str]) -> pl.DataFrame:
        """The answers of code sets (`as_asked`, `text_as_asked`), each once. Columns: ANSWER_SCHEMA."""
        parts = [self._together(asked[first : first + _TOGETHER]) for first in range(0, len(asked), _TOGETHER)]
        return pl.concat(parts) if parts else pl.DataFrame(schema=ANSWER_SCHEMA)

    def texts(self) -> list[str]:
        """The texts that have an answer (`text_as_asked`)."""
        return [text_as_asked(text) for text in self.index.texts()]

    def _together(self, asked: Sequence[str]) -> pl.DataFrame:
        sets = CodeSets()
        numbers = [_number(sets, one) for one in asked]
        resolver = self.resolver(sets, _Remembering(self.index))
        found = pl.concat(
            [
                resolver.resolve(purpose).with_columns(pl.lit(purpose).alias("purpose"))
                for purpose in sorted({*self.purposes, UNIT})
            ]
        )
        targets = found["target_concept_id"].unique()
        found = found.join(
            concept_details(self.index, targets), on="target_concept_id", how="left", maintain_order="left"
        )
        said = [name for name in found.columns if name not in _OF_SET]
        parts = [pl.col(name).cast(pl.String).fill_null("") for name in said]
        by_set = (
            found.select("code_set", "target_concept_id", pl.concat_str(parts, separator="\x1f").alias("row"))
            .group_by("code_set", maintain_order=True)
            .agg(
                pl.col("row").str.join("\n"),
                pl.col("target_concept_id").filter(pl.col("target_concept_id") != 0).unique().sort(),
            )
        )
        answers = by_set.select(
            "code_set",
            pl.Series("answer", [signed_hash(row) for row in by_set["row"]], dtype=pl.Int64),
            pl.col("target_concept_id").list.eval(pl.element().cast(pl.String)).list.join("|").alias("targets"),
        )
        own = pl.DataFrame({"asked": asked, "code_set": numbers}, schema={"asked": pl.String, "code_set": pl.Int32})
        return own.join(answers, on="code_set", how="left", maintain_order="left").select(
            "asked", pl.col("answer").fill_null(0), pl.col("targets").fill_null("")
        )


def concept_details(index: ConceptIndex, concept_ids: pl.Series) -> pl.DataFrame:
    """What rules and derived tables ask of concepts that were found. Columns: target_concept_id, detail (String)."""
    ids = concept_ids.filter(concept_ids != 0).to_list()
    shown = ("domain_id", "concept_class_id", "standard_concept", "invalid_reason", "target_concept_id")
    details = {row[0]: [repr(row[1:])] for row in index.concepts(ids).select("concept_id", *shown).iter_rows()}
    for row in index.strengths(ids).iter_rows():
        details.setdefault(row[0], []).append(repr(row[1:]))
    for drug, ingredient in index.ingredients(ids).iter_rows():
        details.setdefault(drug, []).append(str(ingredient))
    rows = [(concept_id, ";".join(sorted(parts))) for concept_id, parts in details.items()]
    return pl.DataFrame(rows, schema={"target_concept_id": pl.Int64, "detail": pl.String}, orient="row")


def _number(sets: CodeSets, asked: str) -> int | None:
    text = text_of(asked)
    if text is not None:
        return sets.add_concept({"text": text})
    codings = [
        {"code": code, **({"system": system} if system else {}), **({"userSelected": True} if selected else {})}
        for system, code, selected in codings_of(asked)
    ]
    return sets.add_concept({"coding": codings})


class _Remembering:
    """A `ConceptLookup` that reads each hierarchy once for all purposes."""

    def __init__(self, index: ConceptIndex) -> None:
        self._index = index
        self._targets: set[int] = set()
        self._descents: tuple[set[int], pl.DataFrame] | None = None
        self._source_descents: tuple[set[int], pl.DataFrame] | None = None

    def lookup(self, codings: pl.DataFrame) -> pl.DataFrame:
        found = self._index.lookup(codings)
        self._targets |= set(found["target_concept_id"].drop_nulls())
        return found

    def descents(self, concept_ids: pl.Series) -> pl.DataFrame:
        asked = set(concept_ids.drop_nulls())
        if self._descents is None or not asked <= self._descents[0]:
            every = self._targets | asked
            self._descents = every, self._index.descents(pl.Series(sorted(every), dtype=pl.Int64))
        return _among(self._descents[1], concept_ids)

    def source_descents(self, concept_ids: pl.Series) -> pl.DataFrame:
        asked = set(concept_ids.drop_nulls())
        if self._source_descents is None or not asked <= self._source_descents[0]:
            every = asked | (self._source_descents[0] if self._source_descents else set())
            self._source_descents = every, self._index.source_descents(pl.Series(sorted(every), dtype=pl.Int64))
        return _among(self._source_descents[1], concept_ids)


def _among(pairs: pl.DataFrame, concept_ids: pl.Series) -> pl.DataFrame:
    given = concept_ids.implode()
    return pairs.filter(pl.col("ancestor").is_in(given), pl.col("descendant").is_in(given))
