"""`etl.vocabulary_use` and `etl.vocabulary_state`: what rows took from the vocabulary, and of which release that is.

Here is how they are saved and read. What the vocabulary says is asked by `pipeline.transform.concepts.answers`; what another
release changes is found by `pipeline.load.vocabulary_changes`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from omop_schema.cdm_fields import primary_key
from omop_schema.etl import LINEAGE_TABLES
from pipeline.publication.sql import Database
from pipeline.transform.concepts.answers import ANSWER_SCHEMA, signed_hash

__all__ = [
    "ComparedState",
    "VocabularyMark",
    "VocabularyUses",
    "compared_state",
    "publication_hash",
    "save_answers",
    "save_state",
    "save_uses",
]


@dataclass(frozen=True)
class VocabularyMark:
    """What answers depend on: which vocabulary was asked, and by which rules."""

    release: str
    vocabulary_hash: str
    #: of the local map; "": there is none
    local_hash: str
    #: of the code and of the mappings that say how codes are looked up
    rules_hash: str

    @property
    def vocabulary(self) -> tuple[str, str]:
        return self.vocabulary_hash, self.local_hash


@dataclass(frozen=True)
class ComparedState:
    """The row of a site in `etl.vocabulary_state`."""

    mark: VocabularyMark
    publication_hash: str
    first_export_id: int


@dataclass(frozen=True)
class VocabularyUses:
    """What one load leaves: answers (ANSWER_SCHEMA) of code sets that the site had not looked up before."""

    mark: VocabularyMark
    new: pl.DataFrame


def save_uses(db: Database, site: str, export_id: int, uses: VocabularyUses, now: datetime) -> None:
    """Keep the answers of an export; the first export of a site says of which release they are."""
    save_answers(db, site, uses.new)
    if compared_state(db, site) is None:
        save_state(db, site, uses.mark, export_id, now)


def save_answers(db: Database, site: str, answers: pl.DataFrame) -> None:
    """Add answers (ANSWER_SCHEMA)."""
    if not answers.is_empty():
        keys = [signed_hash(asked) for asked in answers["asked"]]
        db.put("new_use", answers.select(pl.Series("use_id", keys, dtype=pl.Int64), *ANSWER_SCHEMA))
        db.execute("save_vocabulary_uses", {"site": site})


def save_state(db: Database, site: str, mark: VocabularyMark, export_id: int, now: datetime) -> None:
    """Say that the site's answers are of this vocabulary. `export_id` counts where there was no row."""
    db.execute(
        "save_vocabulary_state",
        {
            "site": site,
            "vocabulary_release": mark.release,
            "vocabulary_hash": mark.vocabulary_hash,
            "local_hash": mark.local_hash,
            "rules_hash": mark.rules_hash,
            "publication_hash": publication_hash(db),
            "export_id": export_id,
            "now": now,
        },
    )


def compared_state(db: Database, site: str) -> ComparedState | None:
    """None: nothing of the site was loaded since answers are kept."""
    rows = db.rows("vocabulary_state", {"site": site})
    if not rows:
        return None
    *mark, of_publication, first = rows[0]
    return ComparedState(VocabularyMark(*mark), of_publication, first)


def publication_hash(db: Database) -> str:
    """Of the concepts that publication puts into rows by itself: those of fields, by which rows name other rows."""
    names = sorted(f"{table}.{primary_key(table) or 'person_id'}" for table in LINEAGE_TABLES)
    return hashlib.sha256(repr(db.rows("named_fields", {"names": names})).encode()).hexdigest()[:16]
