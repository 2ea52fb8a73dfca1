"""Files of known lines are kept from run to run, hold for what the states say, and are not believed otherwise.

That they hold after every run of every test is asserted where tests load (`support.assert_known`).
"""

from __future__ import annotations

import shutil

import pytest

from pipeline.publication import known_lines
from tests.integration.support import Warehouse, assert_known, observation, patient

LOADED = {"Patient": [patient("p1"), patient("p2")], "Observation": [observation("o1", "p1"), observation("o2", "p2")]}


def outcomes(reports) -> dict[str, int]:
    return {name: count for name, count in reports[0].outcomes.items() if count}


def is_kept(warehouse: Warehouse) -> bool:
    with warehouse.runtime.connect() as connection:
        return assert_known(connection, warehouse.runtime.settings.home / "known" / "one")


def written(warehouse: Warehouse) -> int:
    """When the file of lines was written last."""
    return (warehouse.runtime.settings.home / "known" / "one" / "lines.first").stat().st_mtime_ns


def test_a_night_without_changes_writes_no_files(warehouse: Warehouse) -> None:
    warehouse.load(LOADED)
    assert is_kept(warehouse)
    before = written(warehouse)
    assert outcomes(warehouse.load(LOADED)) == {"unchanged": 4}
    assert written(warehouse) == before
    assert is_kept(warehouse)


def test_changes_are_merged_into_the_files(warehouse: Warehouse) -> None:
    warehouse.load(LOADED)
    changed = [observation("o1", "p1", status="amended"), observation("o3", "p1")]
    assert outcomes(warehouse.load({**LOADED, "Observation": changed})) == {"loaded": 2, "unchanged": 2}
    assert is_kept(warehouse)
    assert outcomes(warehouse.load({**LOADED, "Observation": changed})) == {"unchanged": 4}
    # The former version counts as new again.
    assert outcomes(warehouse.load(LOADED)) == {"loaded": 1, "unchanged": 3}


def test_what_somebody_else_changes_is_seen(warehouse: Warehouse) -> None:
    warehouse.load(LOADED)
    with warehouse.runtime.connect() as connection:
        connection.execute("UPDATE resource_state SET raw_hash_high = 0, raw_hash_low = 0, content_hash = NULL")
    assert not is_kept(warehouse)
    assert outcomes(warehouse.load(LOADED)) == {"loaded": 4}
    assert is_kept(warehouse)


def test_a_run_that_is_forced_leaves_no_files_that_count(warehouse: Warehouse) -> None:
    export = warehouse.land(LOADED)
    warehouse.ingest(export)
    warehouse.ingest(export, force=True)
    assert not is_kept(warehouse)
    assert outcomes(warehouse.load(LOADED)) == {"unchanged": 4}
    assert is_kept(warehouse)


@pytest.mark.parametrize("left", ["nothing", "no mark", "half of the change"])
def test_a_run_that_was_killed_before_the_files_were_written_costs_a_reading(warehouse: Warehouse, left: str) -> None:
    warehouse.load(LOADED)
    folder = warehouse.runtime.settings.home / "known" / "one"
    if left == "nothing":
        shutil.rmtree(folder)
    else:
        (folder / "mark.json").unlink()
        (folder / "lines.first").write_bytes(b"")
    if left == "half of the change":
        for name in ("new", "merged"):
            (folder / name).mkdir()
            (folder / name / "lines.first").write_bytes(bytes(16))
    assert outcomes(warehouse.load(LOADED)) == {"unchanged": 4}
    assert is_kept(warehouse)


def test_parts_of_a_sort_that_was_killed_are_not_taken_for_rows(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_lines, "_ROWS_A_SORT", 2)  # so few, that rows are spilled to parts
    warehouse.load(LOADED)
    folder = warehouse.runtime.settings.home / "known" / "one"
    (folder / "mark.json").unlink()
    (folder / "new").mkdir()
    for place in (folder, folder / "new"):
        for number in range(known_lines._PARTS):
            (place / f"lines.{number:03d}").write_bytes(bytes(24))
            (place / f"contents.{number:03d}").write_bytes(bytes(16))
    assert outcomes(warehouse.load(LOADED)) == {"unchanged": 4}
    assert is_kept(warehouse)


def test_files_of_another_copy_of_the_database_are_not_believed(warehouse: Warehouse) -> None:
    """As after a restored backup: another publication has followed the one that the backup holds."""
    warehouse.load(LOADED)
    home = warehouse.runtime.settings.home
    shutil.copytree(home / "known", home / "other-known")
    changed = {**LOADED, "Observation": [observation("o1", "p1", status="amended"), observation("o2", "p2")]}
    warehouse.load(changed)
    shutil.rmtree(home / "known")
    (home / "other-known").rename(home / "known")
    assert not is_kept(warehouse)
    assert outcomes(warehouse.load(LOADED)) == {"loaded": 1, "unchanged": 3}
