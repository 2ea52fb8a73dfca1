"""OMOP vocabularies: an Athena download → `vocab.*` in PostgreSQL → the concept index in Parquet.

Reading the index is `pipeline.transform.concepts.index`, whose names are repeated here for convenience.
"""

from __future__ import annotations

from pipeline.transform.concepts.index import ConceptIndex, FixedConcept
from pipeline.warehouse.vocabulary.download import ignored_files
from pipeline.warehouse.vocabulary.index_files import compile_index, ensure_index, index_of, open_index, prune_indices
from pipeline.warehouse.vocabulary.loading import LoadOptions, Progress, load_vocabulary
from pipeline.warehouse.vocabulary.releases import (
    VocabularyRelease,
    concept_counts,
    current_release,
    find_release,
    list_releases,
)
from pipeline.warehouse.vocabulary.using import prune_vocabulary, use_release

__all__ = [
    "ConceptIndex",
    "FixedConcept",
    "LoadOptions",
    "Progress",
    "VocabularyRelease",
    "compile_index",
    "concept_counts",
    "current_release",
    "ensure_index",
    "find_release",
    "ignored_files",
    "index_of",
    "list_releases",
    "load_vocabulary",
    "open_index",
    "prune_indices",
    "prune_vocabulary",
    "use_release",
]
