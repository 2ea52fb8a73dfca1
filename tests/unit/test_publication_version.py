"""The version of publication: what changes it, and what not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.publication.accounting import ACCOUNTING_RULE
from pipeline.publication.version import hash_of, publication_version
from pipeline.staging.outcomes import LineOutcome

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("pipeline/publication")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE)
    return tmp_path


def _hash(root: Path) -> str:
    return hash_of(root / PACKAGE, root)


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("sql/former.sql", "-- Changed resources", "-- Resources that changed", False),
        ("sql/former.sql", "SELECT surrogate_id FROM", "SELECT surrogate_id\n\n    FROM", False),
        ("sql/former.sql", "SELECT surrogate_id FROM", "SELECT DISTINCT surrogate_id FROM", True),
        (
            "sql/former.sql",
            "SELECT surrogate_id FROM",
            "SELECT surrogate_id -- of lines\n/* and\nothers */ FROM",
            False,
        ),
        ("sql/death_candidate.sql", "'|'", "'-- |'", True),
        ("sql/death_candidate.sql", "'|'", "' |'", True),
        ("sql/death_candidate.sql", "-- a type that", "-- 'one that", False),
        ("sql/fresh_drug_era.sql", "-- ", "-- More of it: ", False),
        ("sql/fresh_drug_era.sql", "drug_concept_id", "drug_type_concept_id", True),
        ("steps/merges.py", '"""Merged patients:', '"""Patients who were merged:', False),
        ("steps/merges.py", "    counts = RowCounts()\n", "    counts = RowCounts()  # of this step\n", False),
        ("steps/merges.py", 'table != "death"', 'table != "measurement"', True),
    ],
)
def test_only_what_code_and_sql_do_changes_the_version(
    copied: Path, file: str, old: str, new: str, *, changes: bool
) -> None:
    path = copied / PACKAGE / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    before = _hash(copied)
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert (_hash(copied) != before) is changes


def test_the_version_is_kept_in_the_home(tmp_path: Path) -> None:
    found = publication_version(tmp_path)
    assert found == _hash(ROOT)
    publication_version.cache_clear()
    kept = tmp_path / "publication_version"
    key, _ = kept.read_text().split()
    kept.write_text(f"{key} kept")
    assert publication_version(tmp_path) == "kept"
    publication_version.cache_clear()
    kept.write_text("of-other-files kept")
    assert publication_version(tmp_path) == found
    publication_version.cache_clear()


def test_the_accounting_rule_is_the_one_of_the_readme_and_names_all_outcomes() -> None:
    assert f"lines = {' + '.join(LineOutcome)}" == ACCOUNTING_RULE
    assert f"`{ACCOUNTING_RULE}`" in (ROOT / "README.md").read_text(encoding="utf-8")
