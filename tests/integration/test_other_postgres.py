"""The main way on another PostgreSQL than the embedded one: a customer's, older, by TCP and password."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.clock import ManualClock
from pipeline.core.settings import MAPPINGS_FOLDER, Settings
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary
from tests.integration.support import START, Lines, Warehouse, encounter, observation, patient, reference


def test_install_load_load_again_and_replay(
    other_database_url: str, other_postgres_folder: Path | None, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home", database_url=other_database_url, workers=1)
    assert install_schemas(other_database_url, cdm="cdm", vocab="vocab", etl="etl").changed
    assert not install_schemas(other_database_url, cdm="cdm", vocab="vocab", etl="etl").changed
    vocabulary = MAPPINGS_FOLDER / "demo_vocabulary"
    release = load_vocabulary(other_database_url, vocabulary, vocab_schema="vocab", etl_schema="etl")
    compile_index(other_database_url, release, vocab_schema="vocab", home=settings.home)
    warehouse = Warehouse(Runtime(settings, ManualClock(START)), tmp_path)
    if other_postgres_folder is not None and other_postgres_folder.parent.name.isdigit():
        assert warehouse.value("SHOW server_version").split(".")[0] == other_postgres_folder.parent.name

    waiting = observation("waiting", person="p2")
    files: dict[str, Lines] = {
        "Patient": [patient()],
        "Encounter": [encounter()],
        "Observation": [
            observation(encounter=reference("Encounter", "e1")),
            observation("wrong", valueQuantity={"value": "12"}),
            waiting,
            b'{"resourceType": "Observation", "id"',
        ],
    }
    (first,) = warehouse.load(files)
    assert (first.outcomes["loaded"], first.outcomes["rejected"]) == (3, 3)
    assert warehouse.rows("SELECT code FROM dead_letter_open ORDER BY line") == [
        ("wrong_type",),
        ("person_unknown",),
        ("json_invalid",),
    ]
    before = warehouse.checksums()
    (second,) = warehouse.load(files)
    assert (second.outcomes["unchanged"], second.outcomes["rejected"]) == (3, 3)
    assert warehouse.checksums() == before

    came, replayed = warehouse.load({"Patient": [patient(), patient("p2")], "Observation": [observation()]})
    assert (came.outcomes["loaded"], replayed.outcomes["loaded"]) == (2, 1)
    assert warehouse.value("SELECT count(*) FROM cdm.measurement") == 2
    assert warehouse.value("SELECT count(*) FROM dead_letter_open") == 2
