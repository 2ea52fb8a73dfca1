"""The folders of compiled concept indices in a home: made when they are missing, opened by release.

What the files hold is written by `compiling`; reading them is `pipeline.transform.concepts.index`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipeline.core.errors import VocabularyError
from pipeline.core.files import disk_errors, put_in_place, replace_file
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.warehouse.connection import connect
from pipeline.warehouse.server_failures import server_errors
from pipeline.warehouse.vocabulary.compiling import INDEX_FORMAT, write_index
from pipeline.warehouse.vocabulary.releases import VocabularyRelease, current_release, list_releases
from pipeline.warehouse.vocabulary.switching import hold_vocabulary

__all__ = ["compile_index", "ensure_index", "index_of", "open_index", "prune_indices"]

_CURRENT = "current"
_DESCRIPTION = "release.json"
_LOAD_ADVICE = "Load one with `epic-omop vocabulary load FOLDER`."


def compile_index(url: str, release: VocabularyRelease, *, vocab_schema: str, home: Path) -> Path:
    """Write the release's concept index below `home`/vocabulary, and make it the current one where the release is active;
    returns its folder. `vocab_schema`: where the release's tables are.

    `concept_index.parquet` has `INDEX_SCHEMA`'s columns, sorted by vocabulary_id and concept_code, one row for
    each (source, standard concept, value concept):

    - standard concepts are the targets of valid `Maps to` that are Standard and valid themselves. A source
      concept may be invalid; one without `Maps to` but with `Concept replaced by` takes the targets of its
      replacement. A source without any keeps one row with a null target.
    - `Maps to value`: OHDSI's documentation (vocabulary.html, "Mapping of Concepts") allows it with a single
      `Maps to` only, and each value then goes with that target. Other rows may still turn up, and for them the
      rule is our own: only targets whose table has a value column (domains Measurement and Observation; all of
      them where none has) carry values; as many carriers as values are paired in order of concept id, otherwise
      each carrier gets each value, so that no meaning is lost.
    - `Maps to unit`: the only valid Standard concept to which it leads; none where it leads to several.
    - rows of source_to_concept_map are no part of it: the local map is laid over it (`pipeline.warehouse.local_map`).
    - where a vocabulary has used a code twice, the valid and then the latest concept counts.

    `concept_by_id.parquet` holds every concept with its lowest standard target, `ancestor.parquet` the pairs of
    concept_ancestor except a concept with itself, and those of a concept and the next broader one (`Is a`, `Subsumes`)
    of which one at least is not standard, `drug_strength.parquet` the valid strengths of drugs.
    Vocabularies and ranges of ids are compiled one after the other, so that memory grows with the largest of them.
    Raises LandingError when the disk refuses.
    """
    root = home / "vocabulary"
    folder = root / _folder_name(release.content_hash)
    with disk_errors("The concept index", root, "The vocabulary in the database is as it should be."):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            if not folder.is_dir():
                partial = root / f".{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    write_index(url, vocab_schema, partial)
                    description = {"release": release.release, "content_hash": release.content_hash}
                    (partial / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
                    put_in_place(partial, folder)
                except BaseException:  # it may be what fills the disk
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
            if release.is_current:
                replace_file(root / _CURRENT, folder.name.encode())
    return folder


def prune_indices(home: Path, releases: Iterable[VocabularyRelease]) -> int:
    """Remove the index folders of releases whose tables are gone, and those of an older layout; returns how many."""
    root = home / "vocabulary"
    kept = {_folder_name(release.content_hash) for release in releases if release.state == "ready"}
    removed = 0
    with disk_errors("The concept index", root, "The vocabulary in the database is as it should be."):
        if not root.is_dir():
            return 0
        with FileLock(root / ".lock"):
            for description in sorted(root.glob(f"*/{_DESCRIPTION}")):
                if description.parent.name not in kept:
                    shutil.rmtree(description.parent)
                    removed += 1
    return removed


def index_of(url: str, release: VocabularyRelease, *, vocab_schema: str, etl_schema: str, home: Path) -> ConceptIndex:
    """The index of a release whose tables are there, active or not, compiled now if `home` does not have it.

    `vocab_schema`: of the active release.
    """
    folder = home / "vocabulary" / _folder_name(release.content_hash)
    if folder.is_dir():
        return _open(folder)
    with _no_switch(url, etl_schema):
        known = {item.content_hash: item for item in list_releases(url, etl_schema=etl_schema) if item.state == "ready"}
        there = known.get(release.content_hash, release)  # one that is being loaded has no row under its hash yet
        return _open(compile_index(url, there, vocab_schema=there.schema_name or vocab_schema, home=home))


def ensure_index(url: str, *, vocab_schema: str, etl_schema: str, home: Path) -> ConceptIndex:
    """The index of the release that is active in the database, compiled now if `home` does not have it.

    Raises VocabularyError when no vocabulary is loaded.
    """
    release = _active(url, etl_schema)
    if (home / "vocabulary" / _folder_name(release.content_hash)).is_dir():
        return _open(compile_index(url, release, vocab_schema=vocab_schema, home=home))
    with _no_switch(url, etl_schema):
        release = _active(url, etl_schema)
        index = _open(compile_index(url, release, vocab_schema=vocab_schema, home=home))
    prune_indices(home, list_releases(url, etl_schema=etl_schema))
    return index


def _active(url: str, etl_schema: str) -> VocabularyRelease:
    release = current_release(url, etl_schema=etl_schema)
    if release is None:
        raise VocabularyError("No vocabulary is loaded.", _LOAD_ADVICE)
    return release


@contextmanager
def _no_switch(url: str, etl_schema: str) -> Iterator[None]:
    """No release changes its schema meanwhile: one's rows would come into the folder of another."""
    with server_errors(), connect(url) as connection:
        hold_vocabulary(connection, etl_schema)
        yield


def open_index(home: Path, release: str | None = None) -> ConceptIndex:
    """An index that was compiled below `home`: the current one, or that of a release (label or content hash).

    Raises VocabularyError when there is none.
    """
    root = home / "vocabulary"
    if release is None:
        current = root / _CURRENT
        if not current.is_file():
            raise VocabularyError("No vocabulary is loaded.", _LOAD_ADVICE)
        return _open(root / current.read_text(encoding="utf-8").strip())
    for description in sorted(root.glob(f"*/{_DESCRIPTION}"), key=lambda path: path.stat().st_mtime, reverse=True):
        index = _open(description.parent)
        if release in {index.release, index.content_hash} and index.folder.name == _folder_name(index.content_hash):
            return index
    raise VocabularyError(f"There is no concept index of vocabulary release {release}.", _LOAD_ADVICE)


def _open(folder: Path) -> ConceptIndex:
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VocabularyError(f"The concept index {folder.name} cannot be read.", _LOAD_ADVICE) from error
    return ConceptIndex(folder, description["release"], description["content_hash"])


def _folder_name(content_hash: str) -> str:
    return f"{content_hash[:16]}-{INDEX_FORMAT}"
