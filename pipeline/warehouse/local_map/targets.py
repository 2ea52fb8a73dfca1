"""Targets of local maps against the active release: which can be used, what follows them, and the check at a switch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from pipeline.warehouse.local_map.rows import (
    Answer,
    LocalRow,
    MapSchemas,
    current_rows,
    has_local_map,
    lock_local_map,
    replace_answers,
)

__all__ = ["Followed", "RecheckReport", "Target", "recheck_local_map", "target_problem", "targets_of"]


@dataclass(frozen=True)
class Target:
    """A concept of the active release."""

    concept_id: int
    name: str
    domain_id: str
    vocabulary_id: str
    is_standard: bool
    is_valid: bool
    #: the valid Standard concepts of its valid `Maps to`, but for itself
    maps_to: tuple[int, ...]

    @property
    def is_usable(self) -> bool:
        return self.is_standard and self.is_valid


@dataclass(frozen=True)
class Followed:
    """An answer whose target another concept stands for in the active release."""

    answer: Answer
    former_concept_id: int


@dataclass(frozen=True)
class RecheckReport:
    """What a release made of the targets of local maps."""

    #: how many approved targets were looked at
    checked: int = 0
    followed: tuple[Followed, ...] = ()
    #: their targets can no longer be used, `target_problem` says why: the codes are 0 until somebody decides anew
    flagged: tuple[Answer, ...] = ()
    #: whose own targets are back
    restored: tuple[Answer, ...] = ()

    def sentences(self) -> list[str]:
        """For people, one a finding; codes and concepts, no patient's data."""
        return [
            *(
                f"{_named(found.answer)}: {found.former_concept_id} is followed by {found.answer.target_concept_id}."
                for found in self.followed
            ),
            *(f"{_named(answer)} is flagged: {answer.target_problem}." for answer in self.flagged),
            *(f"{_named(answer)}: concept {answer.target_concept_id} is back." for answer in self.restored),
        ]


def targets_of(connection: psycopg.Connection, schemas: MapSchemas, concept_ids: Iterable[int]) -> dict[int, Target]:
    """Those of these concepts that the active release has, by id."""
    query = sql.SQL(
        "SELECT own.concept_id, own.concept_name, own.domain_id, own.vocabulary_id,"
        " own.standard_concept IS NOT DISTINCT FROM 'S', own.invalid_reason IS NULL,"
        " array(SELECT DISTINCT target.concept_id FROM {links} AS link JOIN {concepts} AS target"
        " ON target.concept_id = link.concept_id_2 WHERE link.concept_id_1 = own.concept_id"
        " AND link.relationship_id = 'Maps to' AND link.invalid_reason IS NULL AND target.concept_id <> own.concept_id"
        " AND target.standard_concept = 'S' AND target.invalid_reason IS NULL ORDER BY 1)"
        " FROM {concepts} AS own WHERE own.concept_id = ANY(%s)"
    ).format(concepts=schemas.of_vocabulary("concept"), links=schemas.of_vocabulary("concept_relationship"))
    rows = connection.execute(query, (sorted({*concept_ids} - {0}),))
    return {
        number: Target(number, name, domain, vocabulary, is_standard, is_valid, tuple(maps_to))
        for number, name, domain, vocabulary, is_standard, is_valid, maps_to in rows
    }


def target_problem(targets: dict[int, Target], concept_id: int) -> str | None:
    """Why a concept cannot be the target of a local map; None: it can. 0 is no concept, and always possible."""
    target = targets.get(concept_id)
    if concept_id == 0 or (target is not None and target.is_usable):
        return None
    if target is None:
        return f"concept {concept_id} is not in the active vocabulary"
    kind = "not Standard" if target.is_valid else "no longer valid"
    if not target.maps_to:
        return f"concept {concept_id} is {kind}, and maps to nothing"
    return f"concept {concept_id} is {kind}, and maps to {', '.join(map(str, target.maps_to))}"


def recheck_local_map(connection: psycopg.Connection, *, vocab_schema: str, etl_schema: str) -> RecheckReport:
    """Look at every approved target in the release that is active now; in the caller's transaction.

    A target that is no longer a valid Standard concept follows its unique `Maps to`; without one the answer is flagged
    with the reason. What the reviewer chose is kept, so that going back to a former release brings it back. Each change
    is a new version of the answer. Call it after each switch of releases; where nothing changed it only reads.
    """
    schemas = MapSchemas(vocab_schema, etl_schema)
    if not has_local_map(connection, schemas):
        return RecheckReport()
    if any(before.answer != after for before, after in _checked(connection, schemas)):
        lock_local_map(connection)
    pairs = _checked(connection, schemas)
    changed = [(before, after) for before, after in pairs if before.answer != after]
    if changed:
        replace_answers(connection, schemas, [row for row, _ in changed], [answer for _, answer in changed])
    return RecheckReport(
        len(pairs),
        tuple(
            Followed(after, row.answer.target_concept_id)
            for row, after in changed
            if after.target_problem is None and after.target_concept_id != after.chosen_concept_id
        ),
        tuple(after for _, after in changed if after.target_problem),
        tuple(
            after
            for _, after in changed
            if after.target_problem is None and after.target_concept_id == after.chosen_concept_id
        ),
    )


def _checked(connection: psycopg.Connection, schemas: MapSchemas) -> list[tuple[LocalRow, Answer]]:
    """Answers that are approved, or flagged by a release, each as the active release lets it be."""
    rows = [
        row
        for row in current_rows(connection, schemas)
        if row.answer.chosen_concept_id and (row.answer.status == "approved" or _is_flagged_by_release(row.answer))
    ]
    targets = targets_of(connection, schemas, (row.answer.chosen_concept_id for row in rows))
    return [(row, _as_of(targets, row.answer)) for row in rows]


def _is_flagged_by_release(answer: Answer) -> bool:
    return answer.status == "flagged" and answer.target_problem is not None


def _as_of(targets: dict[int, Target], answer: Answer) -> Answer:
    chosen = answer.chosen_concept_id
    problem = target_problem(targets, chosen)
    if problem is None and answer.target_concept_id == chosen and answer.status == "approved":
        return answer if answer.target_problem is None else replace(answer, target_problem=None)
    if problem is None:
        return replace(answer, target_concept_id=chosen, status="approved", target_problem=None)
    target = targets.get(chosen)
    if target is not None and len(target.maps_to) == 1:
        follower = target.maps_to[0]
        return replace(
            answer, target_concept_id=follower, approved_concept_id=chosen, status="approved", target_problem=None
        )
    return replace(answer, target_concept_id=chosen, status="flagged", target_problem=problem)


def _named(answer: Answer) -> str:
    what = answer.source_code if answer.source_code is not None else "a text"
    where = f" of {answer.site}" if answer.site else ""
    return f"{answer.source_system} {what}{where}"
