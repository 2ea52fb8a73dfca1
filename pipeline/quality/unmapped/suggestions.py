"""Standard concepts that a code or text may mean, from the names of the loaded vocabulary alone: nothing leaves the house.

Equal names first; then names that share rare words (full text), the ones whose letters are the most alike (trigrams) and
that share the most telling words. The names are `pipeline.warehouse.vocabulary.name_index`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeAlias

import psycopg
from psycopg import sql

from pipeline.core.errors import UsageError
from pipeline.quality.unmapped.codes import UnmappedSource
from pipeline.quality.unmapped.exporting import Suggestion
from pipeline.warehouse.vocabulary.name_index import NameIndex, plain_name_of

__all__ = ["Suggestions"]

#: Names that one question compares, about: more take longer than a person, or a list of thousands, waits.
_MOST_NAMES = 4_000
#: Entries of the full-text index that are read for a pair of words.
_MOST_LISTED = 60_000
#: Answers after which no further ones are sought.
_ENOUGH = 100
#: Of these, the most alike, whose words are weighed.
_MOST_WEIGHED = 300
#: Words of a text that are looked at; free texts can be long.
_MOST_WORDS = 12
_MOST_CHARACTERS = 400
#: A word that no name has stands for the words that are spelt most like it.
_MOST_SPELLINGS = 4
#: How much letters and words count.
_LETTERS = 0.5

_QUESTION = sql.SQL(
    "SELECT plain, to_tsvector('pg_catalog.english', plain) FROM (SELECT {} AS plain) AS question"
).format(sql.SQL(plain_name_of("%s::text")))
_STEMS = "SELECT lexeme FROM unnest(%s::tsvector)"


#: concept_id, name, likeness of the letters, stems of the name
_Named: TypeAlias = tuple[int, str, float, list[str]]


@dataclass(frozen=True)
class _Question:
    """A tsquery; a relaxed one is asked only while there are few answers."""

    text: str
    is_relaxed: bool = False


@dataclass
class Suggestions:
    """Answers questions over one connection; `Suggest` of `exporting`."""

    connection: psycopg.Connection
    index: NameIndex
    _count: int | None = field(default=None, init=False)

    def __call__(self, source: UnmappedSource, domains: frozenset[str] | None, limit: int) -> Sequence[Suggestion]:
        return self.of_text(source.name or source.text or source.code or "", domains, limit)

    def of_text(self, text: str, domains: frozenset[str] | None, limit: int) -> list[Suggestion]:
        """The best first, each concept once. `domains`: None is any."""
        row = self.connection.execute(_QUESTION, (text[:_MOST_CHARACTERS],)).fetchone()
        plain, document = row if row else ("", "")
        if not plain:
            return []
        scores = dict.fromkeys(self._equal(plain, domains), (1.0, plain))
        if len(scores) < limit:
            for concept_id, (score, name) in self._alike(plain, document, domains).items():
                scores.setdefault(concept_id, (min(score, 0.99), name))
        best = sorted(scores.items(), key=lambda item: (-item[1][0], item[0]))[:limit]
        named = self._concepts([concept_id for concept_id, _ in best])
        return [
            Suggestion(concept_id, named[concept_id][0], round(score, 3), named[concept_id][1], name)
            for concept_id, (score, name) in best
            if concept_id in named
        ]

    def known_domains(self, given: Iterable[str]) -> frozenset[str] | None:
        """Domains as the vocabulary writes them; None where none is given. Raises UsageError for one that it has not."""
        asked = list(given)
        if not asked:
            return None
        query = sql.SQL("SELECT domain_id FROM {} ORDER BY 1").format(sql.Identifier(self.index.vocab_schema, "domain"))
        known = {domain_id.casefold(): domain_id for (domain_id,) in self.connection.execute(query).fetchall()}
        for domain in asked:
            if domain.casefold() not in known:
                raise UsageError(f"The vocabulary has no domain {domain}.", f"Give one of {', '.join(known.values())}.")
        return frozenset(known[domain.casefold()] for domain in asked)

    def _equal(self, plain: str, domains: frozenset[str] | None) -> list[int]:
        query = sql.SQL("SELECT concept_id, min(kind) FROM {} WHERE name = %s {} GROUP BY 1 ORDER BY 2, 1")
        rows = self.connection.execute(
            query.format(self.index.names, _in_domains(domains)), (plain, *_given(domains))
        ).fetchall()
        return [concept_id for concept_id, _ in rows]

    def _alike(self, plain: str, document: str, domains: frozenset[str] | None) -> dict[int, tuple[float, str]]:
        """Concept → how alike the best of its names is, from 0 to 1, and that name."""
        stems = [stem for (stem,) in self.connection.execute(_STEMS, (document,)).fetchall()]
        known = self._known_words(stems)
        rows: list[_Named] = []
        for question in self._questions(known):
            if question.is_relaxed and len(rows) >= _ENOUGH:
                break
            rows += self._named_alike(plain, question.text, domains)
        counts = self._counts_of({word for _, _, _, words in rows for word in words})
        weights = {word: self._weight(count) for word, count in counts.items()}
        found: dict[int, tuple[float, str]] = {}
        for concept_id, name, letters, words in rows:
            score = _LETTERS * letters + (1 - _LETTERS) * _shared(known, words, weights, self._weight(1))
            found[concept_id] = max(found.get(concept_id, (0.0, "")), (score, name))
        return found

    def _counts_of(self, words: Iterable[str]) -> dict[str, int]:
        """Word → names that have it."""
        query = sql.SQL("SELECT word, names FROM {} WHERE word = ANY(%s)").format(self.index.words)
        return dict(self.connection.execute(query, (list(words),)).fetchall())

    def _known_words(self, stems: Sequence[str]) -> list[Mapping[str, int]]:
        """For each word of the question: the words of names that it may be, with the number of names; rarest first."""
        counts = self._counts_of(stems)
        known: list[Mapping[str, int]] = []
        for stem in stems:
            if stem in counts:
                known.append({stem: counts[stem]})
            elif self.index.trigram_schema is not None and len(stem) > 3 and len(known) < _MOST_WORDS:
                known.append(dict(self._spelt_alike(stem)))
        return sorted(known, key=lambda words: sum(words.values()) or math.inf)[:_MOST_WORDS]

    def _spelt_alike(self, stem: str) -> list[tuple[str, int]]:
        space = sql.Identifier(self.index.trigram_schema or "")
        query = sql.SQL(
            "SELECT word, names FROM {words} WHERE word OPERATOR({space}.%%) %(stem)s"
            " ORDER BY {space}.similarity(word, %(stem)s) DESC, names DESC LIMIT %(most)s"
        )
        return self.connection.execute(
            query.format(words=self.index.words, space=space), {"stem": stem, "most": _MOST_SPELLINGS}
        ).fetchall()

    def _questions(self, known: Sequence[Mapping[str, int]]) -> Iterator[_Question]:
        """First all words together, then rare words alone and in pairs, then ever fewer words together, the rare ones.

        Words that stand in very many names are asked only together with others: the server then skips through their lists.
        """
        parts = [("(" + "|".join(map(_quoted, words)) + ")", sum(words.values())) for words in known if words]
        if not parts:
            return
        yield _Question("&".join(text for text, _ in parts))
        total = self._names()
        left = float(_MOST_NAMES)
        chosen = []
        pairs = [
            (one[1] * other[1] / total, f"({one[0]}&{other[0]})")
            for one, other in combinations(parts, 2)
            if one[1] + other[1] <= _MOST_LISTED
        ]
        for expected, text in (*sorted((count, text) for text, count in parts), *sorted(pairs)):
            if expected <= left:
                chosen.append(text)
                left -= expected
        if chosen and len(parts) > 1:
            yield _Question("|".join(chosen))
        # One word of very many names alone says nothing, and its whole list would be read.
        fewest = 1 if parts[0][1] <= _MOST_LISTED else 2
        for count in range(len(parts) - 1, fewest - 1, -1):
            yield _Question("&".join(text for text, _ in parts[:count]), is_relaxed=True)

    def _named_alike(self, plain: str, question: str, domains: frozenset[str] | None) -> list[_Named]:
        """concept_id, name, likeness of the letters, stems of the name."""
        likeness = (
            sql.SQL("{}.similarity(name, %(plain)s)").format(sql.Identifier(self.index.trigram_schema))
            if self.index.trigram_schema is not None
            else sql.SQL("ts_rank(to_tsvector('pg_catalog.english', name), %(question)s::tsquery, 2)")
        )
        query = sql.SQL(
            "SELECT concept_id, name, likeness, tsvector_to_array(to_tsvector('pg_catalog.english', name)) FROM ("
            "  SELECT concept_id, name, {likeness} AS likeness FROM ("
            "    SELECT concept_id, name FROM {names}"
            "    WHERE to_tsvector('pg_catalog.english', name) @@ %(question)s::tsquery {domains} LIMIT %(most)s"
            "  ) AS candidate ORDER BY likeness DESC, concept_id LIMIT %(weighed)s) AS best"
        ).format(likeness=likeness, names=self.index.names, domains=_in_domains(domains, "%(domains)s"))
        values = {
            "plain": plain,
            "question": question,
            "most": _MOST_NAMES,
            "weighed": _MOST_WEIGHED,
            "domains": sorted(domains or ()),
        }
        return self.connection.execute(query, values).fetchall()

    def _names(self) -> int:
        if self._count is None:
            row = self.connection.execute(
                "SELECT greatest(reltuples, 1)::bigint FROM pg_class WHERE oid = %s::regclass",
                (self.index.names.as_string(self.connection),),
            ).fetchone()
            self._count = int(row[0]) if row else 1
        return self._count

    def _weight(self, names: int) -> float:
        """How much a word says: rare ones more."""
        return math.log(1 + self._names() / max(names, 1))

    def _concepts(self, concept_ids: list[int]) -> dict[int, tuple[str, str]]:
        query = sql.SQL("SELECT concept_id, concept_name, domain_id FROM {} WHERE concept_id = ANY(%s)").format(
            sql.Identifier(self.index.vocab_schema, "concept")
        )
        rows = self.connection.execute(query, (concept_ids,)).fetchall()
        return {concept_id: (name, domain_id) for concept_id, name, domain_id in rows}


def _shared(
    known: Sequence[Mapping[str, int]], words: Sequence[str], weights: Mapping[str, float], most: float
) -> float:
    """How much of what question and name say they have in common, from 0 to 1 (Dice, each word by its weight)."""
    of_name = sum(weights.get(word, most) for word in words)
    of_question = shared = 0.0
    for spellings in known:
        common = [word for word in words if word in spellings]
        value = max((weights.get(word, most) for word in common), default=None)
        of_question += most if value is None else value
        shared += value or 0.0
    return 2 * shared / (of_question + of_name) if of_name else 0.0


def _in_domains(domains: frozenset[str] | None, placeholder: str = "%s") -> sql.SQL:
    return sql.SQL(f"AND string_to_array(domain_id, '/') && {placeholder}::text[]" if domains is not None else "")


def _given(domains: frozenset[str] | None) -> list[list[str]]:
    return [sorted(domains)] if domains is not None else []


def _quoted(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
