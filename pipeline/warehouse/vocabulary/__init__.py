"""OMOP vocabularies: an Athena download → `vocab.*` in PostgreSQL → the concept index in Parquet.

Reading the index is `pipeline.transform.concepts.index`, whose names are repeated here for convenience.
"""

from __future__ import annotations

from pipeline.transform.concepts.index import ConceptIndex, FixedConcept, normalise_code
from pipeline.warehouse.vocabulary.download import ignored_files
from pipeline.warehouse.vocabulary.index_files import compile_index, ensure_index, open_index
from pipeline.warehouse.vocabulary.loading import Progress, load_vocabulary
from pipeline.warehouse.vocabulary.releases import VocabularyRelease, concept_counts, current_release

__all__ = [
    "ConceptIndex",
    "FixedConcept",
    "Progress",
    "VocabularyRelease",
    "compile_index",
    "concept_counts",
    "current_release",
    "ensure_index",
    "ignored_files",
    "load_vocabulary",
    "normalise_code",
    "open_index",
]
