"""The commands as people use them: the installed program, its exit codes, its words, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from pipeline.commands.cli import app
from pipeline.core.settings import MAPPINGS_FOLDER
from tests.command_line import CommandLine
from tests.databases import Prepared
from tests.integration.support import encounter, observation, patient

VOCABULARY = MAPPINGS_FOLDER / "demo_vocabulary"
SECRET = "Quillfeather"

#: Modules that take long to import and that no help text needs.
HEAVY = {"dagster", "polars", "sqlalchemy", "alembic", "psycopg", "uvicorn", "httpx"}


def _commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in sorted(group.commands.items()):
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


def _program() -> typer.core.TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group


COMMANDS = list(_commands(_program()))


@pytest.fixture
def terminal(database_url: str, tmp_path: Path) -> CommandLine:
    """A new home and an empty database."""
    return CommandLine(tmp_path, database_url)


@pytest.fixture(scope="module")
def loaded(module_database_url: str, make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[CommandLine]:
    """A warehouse into which `folder/` was loaded once: for commands that only look."""
    with make_home() as home:
        terminal = CommandLine(home, module_database_url)
        _write(home / "folder")
        terminal.run("vocabulary", "load", VOCABULARY)
        terminal.run("ingest", "--site", "s", "--from", home / "folder")
        yield terminal


def _write(folder: Path) -> Path:
    """Six lines: three load, one is excluded, two are dead letters."""
    wrong = observation("wrong", valueQuantity={"value": "12"}, note=[{"text": SECRET}])
    files = {
        "Patient": [patient(name=[{"family": SECRET}])],
        "Encounter": [encounter()],
        "Observation": [observation(), observation("error", status="entered-in-error"), wrong],
    }
    folder.mkdir()
    for name, resources in files.items():
        lines = [json.dumps({"resourceType": name, **resource}) for resource in resources]
        if name == "Observation":
            lines.append('{"resourceType": "Observation", "id"')
        (folder / f"{name}.ndjson").write_text("\n".join(lines) + "\n")
    return folder


# --- help -----------------------------------------------------------------------------------------------------------


def test_there_are_the_commands_that_the_readme_promises() -> None:
    names = {" ".join(path) for path in COMMANDS}
    assert names >= {
        "db init",
        "db url",
        "psql",
        "db stop",
        "vocabulary load",
        "sandbox serve",
        "site list",
        "export",
        "ingest",
        "run",
        "status",
        "verify",
        "view run",
        "mappings check",
        "mappings show",
        "manifest",
        "dead-letters list",
        "dead-letters show",
        "dead-letters replay",
        "report mapping",
        "ui",
        "demo",
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], prog_name="epic-omop", env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"Usage: {' '.join(('epic-omop', *path))}" in shown.output


def test_the_installed_program_has_help(terminal: CommandLine) -> None:
    assert "Usage: epic-omop ingest" in terminal.run("ingest", "--help").out


def test_a_demonstration_whose_loads_fail_ends_with_an_error(demo_warehouse: Prepared, tmp_path: Path) -> None:
    """Not with "Done" under an empty table: the loads find a file where their folder should be."""
    home = tmp_path / "home"
    with demo_warehouse.copy(home) as url:
        (home / "staging").write_text("not a folder", encoding="utf-8")
        finished = CommandLine(home, url).run("demo", "--patients", "2", code=1)
    assert "The night of the demonstration failed: " in finished.err
    assert "epic-omop ui" in finished.err
    assert "Done in" not in finished.out


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """That is what makes it fast; seconds would be measured on a machine that is busy with other tests."""
    script = (
        "import sys, pipeline.commands.cli\n"
        "sys.argv = ['epic-omop', 'ingest', '--help']\n"
        "try:\n"
        "    pipeline.commands.cli.main()\n"
        "finally:\n"
        f"    print(*sys.modules.keys() & set({sorted(HEAVY)}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


# --- loading a folder -----------------------------------------------------------------------------------------------


def test_the_whole_way(terminal: CommandLine, tmp_path: Path) -> None:
    folder = _write(tmp_path / "folder")
    refused = terminal.run("ingest", "--site", "s", "--from", folder, code=1)
    assert "No vocabulary is loaded" in refused.err
    assert "epic-omop vocabulary load" in refused.err
    assert "264 concepts are loaded" in terminal.run("vocabulary", "load", VOCABULARY).out
    first = terminal.run("ingest", "--site", "s", "--from", folder).out
    assert "Export 1 of s: 6 lines" in first
    assert "2 open dead letters" in first
    assert SECRET not in first
    second = terminal.run("ingest", "--site", "s", "--from", folder).out
    assert "Export 2 of s: 6 lines" in second
    assert _row(second, "all") == ["6", "·", "4", "·", "·", "2"]
    assert ["measurement", "1", "·", "·"] in [line.split() for line in second.splitlines()]
    assert "checks hold" in terminal.run("verify", "--files").out
    for letter in ("json_invalid", "wrong_type"):
        assert letter in terminal.run("dead-letters", "list", "--code", letter).out
    (folder / "Observation.ndjson").unlink()
    third = terminal.run("ingest", "--site", "s", "--from", folder).out
    assert "2 of 2 lines (100.0 %) were unchanged" in third


def _row(text: str, name: str) -> list[str]:
    (line,) = [line.split() for line in text.splitlines() if line.split()[:1] == [name]]
    return line[1:]


def test_an_export_that_is_landed_is_loaded_by_its_number(loaded: CommandLine) -> None:
    again = loaded.run("ingest", "--site", "s", "--export", "1").out
    assert "Export 1 of s: 6 lines" in again
    assert "checks hold" in loaded.run("verify").out


def test_a_deep_verification_and_the_plan_of_a_remap(loaded: CommandLine) -> None:
    assert "Every row and every link is as a fresh load makes it" in loaded.run("verify", "--deep", "--all").out
    assert "Site s: nothing would be mapped again." in loaded.run("remap", "--dry-run").out
    assert "would be mapped again" in loaded.run("remap", "--site", "s", "--all", "--dry-run").out
    assert "--persons" in loaded.run("verify", "--persons", "3", code=2).err


def test_an_approved_code_is_mapped_at_all_sites(terminal: CommandLine, tmp_path: Path) -> None:
    """What would change is said first, in 80 columns; then it is done, once."""
    code = {"coding": [{"system": "urn:oid:1.2.3.4", "code": "DIAG-7"}]}
    condition = {"id": "c1", "code": code, "subject": {"reference": "Patient/p1"}, "onsetDateTime": "2025-01-02"}
    (tmp_path / "world").mkdir()
    for name, resource in {"Patient": patient(), "Condition": condition}.items():
        line = json.dumps({"resourceType": name, **resource})
        (tmp_path / "world" / f"{name}.ndjson").write_text(f"{line}\n")
    terminal.run("vocabulary", "load", VOCABULARY)
    terminal.run("ingest", "--site", "one", "--from", tmp_path / "world")
    terminal.run("ingest", "--site", "other", "--from", tmp_path / "world", "--new-site")
    release = shutil.copytree(VOCABULARY, tmp_path / "release")
    (release / "SOURCE_TO_CONCEPT_MAP.csv").write_text(
        "source_code\tsource_concept_id\tsource_vocabulary_id\tsource_code_description\ttarget_concept_id"
        "\ttarget_vocabulary_id\tvalid_start_date\tvalid_end_date\tinvalid_reason\n"
        "DIAG-7\t0\turn:oid:1.2.3.4\t\t254761\tSNOMED\t19700101\t20991231\t\n"
    )
    terminal.run("vocabulary", "load", release)
    assert "epic-omop remap --site other" in " ".join(terminal.run("status").out.split())
    plan = terminal.run("remap", "--dry-run").out
    assert max(len(line) for line in plan.splitlines() if not line.startswith("Site ")) <= 80
    assert [line.split() for line in plan.splitlines() if "DIAG-7" in line] == [
        ["urn:oid:1.2.3.4|DIAG-7", "none", "254761"]
    ] * 2
    assert _row(plan[plan.index("Site other") :], "condition_occurrence") == ["1"]
    done = terminal.run("remap").out
    assert done.count("mapped again") == 2
    again = terminal.run("remap").out
    assert again.count("nothing was to be mapped again") == 2
    assert "checks hold" in terminal.run("verify").out
    with psycopg.connect(terminal.url) as connection:
        rows = connection.execute("SELECT condition_concept_id FROM cdm.condition_occurrence").fetchall()
    assert rows == [(254761,), (254761,)]


def test_landing_says_how_long_the_disk_suffices_and_what_pruning_would_do(loaded: CommandLine) -> None:
    said = loaded.run("landing", "status").out
    assert re.search(r"Landing holds .+ it grew by .+ a night .+ of the disk are free: enough for [\d,]+ days\.", said)
    assert "Site s keeps 30 days: 0 older exports are in landing." in said
    assert "of the disk are free" in loaded.run("status").out
    assert "Site s keeps 30 days: nothing is to be removed." in loaded.run("landing", "prune", "--dry-run").out


def test_verify_names_what_does_not_hold(loaded: CommandLine) -> None:
    (file,) = (loaded.home / "landing" / "s" / "1" / "files").glob("Patient.*.ndjson.zst")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
        failed = loaded.run("verify", "--files", code=70)
    finally:
        file.write_bytes(content)
    assert "does not have its digest" in failed.out
    assert "Patient" in failed.out


# --- looking --------------------------------------------------------------------------------------------------------


def test_status_says_where_everything_stands(loaded: CommandLine) -> None:
    shown = loaded.run("status", "--site", "s").out
    assert "epic-omop demo 1" in shown
    assert str(loaded.home) in shown
    assert "export 1, " in shown


def test_the_mapping_report_says_which_tables_and_codes_lack_a_concept(loaded: CommandLine) -> None:
    shown = loaded.run("report", "mapping").out
    assert "person" in shown
    report = json.loads(loaded.run("report", "mapping", "--json").out)
    (persons,) = [table for table in report["tables"] if table["table"] == "person"]
    assert persons == {"table": "person", "concept_column": "gender_concept_id", "rows": 1, "mapped": 1, "share": 1.0}
    assert [code for code in report["codes"] if code["finding"] == "defect"] == []
    assert json.loads(loaded.run("report", "mapping", "--json", "--site", "s").out)["codes"] == report["codes"]


def test_dead_letters_are_listed_without_patient_data_and_shown_on_request(loaded: CommandLine) -> None:
    listed = loaded.run("dead-letters", "list").out
    assert "json_invalid" in listed
    assert "wrong_type" in listed
    assert SECRET not in listed
    assert "×" in listed
    assert loaded.run("dead-letters", "list", "--site", "s").out == listed
    assert "wrong_type" not in loaded.run("dead-letters", "list", "--code", "json_invalid").out
    ids = [
        cells[0] for line in listed.splitlines() if (cells := line.split()) and "wrong_type" in cells and len(cells) > 6
    ]
    (letter,) = ids
    shown = loaded.run("dead-letters", "show", letter).out
    assert "Observation.value.ofType(Quantity).value" in shown
    assert SECRET not in shown
    raw = loaded.run("dead-letters", "show", letter, "--raw").out
    assert json.loads(raw)["note"] == [{"text": SECRET}]


def test_a_replay_says_what_came_of_it(loaded: CommandLine) -> None:
    replayed = loaded.run("dead-letters", "replay", "--site", "s", "--code", "wrong_type").out
    assert _row(replayed, "all") == ["1", "·", "·", "·", "·", "1"]
    assert "No open dead letter" in loaded.run("dead-letters", "replay", "--site", "s", "--code", "none_such").out


def test_sites_are_listed(terminal: CommandLine) -> None:
    assert "No sites yet" in terminal.run("site", "list").out
    (terminal.home / "sites.yaml").write_text("sites:\n  folders: {time_zone: America/Chicago}\n")
    assert "America/Chicago" in terminal.run("site", "list").out


def test_date_and_datetime_of_a_row_are_one_day(terminal: CommandLine, database_url: str) -> None:
    """The zone of datetimes is the first site's, also after the order of sites changed; metadata names it."""
    north, south = "  north: {time_zone: America/Chicago}\n", "  south: {time_zone: Asia/Tokyo}\n"
    folder = terminal.home / "folder"
    folder.mkdir()
    evening = observation(effectiveDateTime="2024-01-02T03:00:00Z")
    for name, resource in (("Patient", patient()), ("Observation", evening)):
        (folder / f"{name}.ndjson").write_text(json.dumps({"resourceType": name, **resource}))
    (terminal.home / "sites.yaml").write_text("sites:\n" + north + south)
    terminal.run("vocabulary", "load", VOCABULARY)
    terminal.run("ingest", "--site", "north", "--from", folder)
    (terminal.home / "sites.yaml").write_text("sites:\n" + south + north)
    terminal.run("ingest", "--site", "south", "--from", folder)
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT measurement_date::text, measurement_datetime::text FROM cdm.measurement ORDER BY 1"
        ).fetchall()
        zones = connection.execute(
            "SELECT value_as_string FROM cdm.metadata WHERE name LIKE '%/datetime_time_zone'"
        ).fetchall()
    assert rows == [("2024-01-01", "2024-01-01 21:00:00"), ("2024-01-02", "2024-01-01 21:00:00")]
    assert zones == [("America/Chicago",)] * 2


def test_a_view_is_run_on_a_file(loaded: CommandLine) -> None:
    view, file = MAPPINGS_FOLDER / "Observation.yaml", loaded.home / "folder" / "Observation.ndjson"
    ran = loaded.run("view", "run", view, file, code=1)
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert {row["view"] for row in rows} >= {"observation", "value"}
    assert "Observation.value.ofType(Quantity).value: expected a number, found a string" in ran.err
    assert "2 of 4 lines are broken" in ran.err


@pytest.mark.parametrize("has_server", [False, True])
def test_mappings_are_checked_before_there_is_a_warehouse(
    database_url: str, tmp_path: Path, *, has_server: bool
) -> None:
    """A home that holds a site's own mapping and nothing else, without a database or with an empty one: none is made."""
    own = tmp_path / "mappings" / "sites" / "north" / "Observation.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("status: {keep: [preliminary]}\n")
    terminal = CommandLine(tmp_path, database_url if has_server else "")
    checked = terminal.run("mappings", "check", "--site", "north").out
    assert "The mappings of north are right; concepts looked up in the demonstration vocabulary." in checked
    assert [file.name for file in tmp_path.iterdir()] == ["mappings"]


def test_each_mapping_and_each_type_without_one_is_shown(tmp_path: Path) -> None:
    mapped = sorted(file.stem for file in MAPPINGS_FOLDER.glob("*.yaml"))
    for resource in [*mapped, "Goal"]:
        words = ["mappings", "show", resource]
        shown = CliRunner().invoke(app, words, prog_name="epic-omop", env={"EPIC_OMOP_HOME": str(tmp_path)})
        assert (shown.exit_code, shown.exception) == (0, None), resource
        assert resource in shown.output


def test_mappings_are_checked_and_shown_with_a_sites_own(loaded: CommandLine) -> None:
    assert (
        "The mappings are right; concepts looked up in vocabulary epic-omop demo 1"
        in loaded.run("mappings", "check").out
    )
    own = loaded.home / "mappings" / "sites" / "north"
    (own / "values").mkdir(parents=True)
    (own / "Procedure.yaml").write_text(
        "status: {keep: [in-progress]}\nviews:\n- name: procedure\n  columns:\n"
        "  - {name: provider_id, path: asserter, type: Reference(Practitioner)}\n"
    )
    shown = loaded.run("mappings", "show", "Procedure", "--site", "north").out
    assert "status: kept completed, in-progress" in shown
    [line] = [line.split() for line in shown.splitlines() if line.strip().startswith("provider_id")]
    assert line[1:3] == ["asserter", "Reference(Practitioner)"]
    assert line[3].endswith("mappings/sites/north/Procedure.yaml:5")
    shared = loaded.run("mappings", "show", "Procedure").out
    assert [line.split()[1] for line in shared.splitlines() if line.split()[:1] == ["provider_id"]] != ["asserter"]
    (own / "Procedure.yaml").write_text("views:\n- name: procedure\n  columns:\n  - {name: code, path: kode}\n")
    (own / "values" / "gender.csv").write_text("system,code,concept_id\nurn:x,1,four\n")
    checked = loaded.run("mappings", "check", "--site", "north", "--no-vocabulary", code=1).out
    assert "north/Procedure.yaml:4" in checked
    assert "Procedure has no element 'kode' in FHIR R4; did you mean 'code'?" in checked
    assert "north/values/gender.csv:2" in checked
    assert "problems; concepts not looked up" in checked
    assert "gender.csv:2" in loaded.run("mappings", "show", "Procedure", "--site", "north", code=2).err
    assert (
        "not mapped: its resources are excluded, with the reason plan_not_event"
        in loaded.run("mappings", "show", "Goal").out
    )
    assert "There is no mapping of Nothing" in loaded.run("mappings", "show", "Nothing", code=2).err


def test_the_manifest_is_json(loaded: CommandLine) -> None:
    manifest = json.loads(loaded.run("manifest").out)
    assert manifest["output"]["tables"]["person"]["from"] == ["Patient"]


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("verify",),
        ("dead-letters", "list"),
        ("dead-letters", "show", "1"),
        ("dead-letters", "replay", "--site", "s"),
        ("remap", "--site", "s"),
        ("verify", "--deep"),
    ],
    ids=" ".join,
)
def test_looking_into_an_empty_database(terminal: CommandLine, command: tuple[str, ...]) -> None:
    finished = terminal.run(*command, code=0 if command == ("status",) else 74)
    assert "epic-omop db init" in finished.out + finished.err


# --- a user's mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ingest", "--site", "s", "--from", "nowhere"), "nowhere"),
        (("ingest", "--site", "s", "--from", "a[/b]c"), "a[/b]c"),
        (("ingest", "--site", "s"), "--from"),
        (("ingest", "--site", "s", "--from", ".", "--export", "1"), "--export"),
        (("ingest", "--site", "Not a Name", "--from", "."), "lower-case"),
        (("ingest", "--site", "s", "--export", "many"), "--export"),
        (("ingest", "--from", "."), "--site"),
        (("run", "--site", "unknown"), "unknown"),
        (("view", "run", "nowhere.yaml", "x.ndjson"), "nowhere.yaml"),
        (("no-such-command",), "no-such-command"),
    ],
)
def test_wrong_use_is_told(terminal: CommandLine, arguments: tuple[str, ...], words: str) -> None:
    assert words in terminal.run(*arguments, code=2).err


def test_a_folder_without_ndjson_is_told(loaded: CommandLine, tmp_path: Path) -> None:
    assert "holds no NDJSON file" in loaded.run("ingest", "--site", "s", "--from", tmp_path, code=2).err


def test_exports_and_letters_that_are_not_there(loaded: CommandLine) -> None:
    assert "export 77" in loaded.run("ingest", "--site", "s", "--export", "77", code=74).err
    assert "dead letter 777" in loaded.run("dead-letters", "show", "777", code=2).err


EPIC_SITE = {
    "fhir_url": "https://127.0.0.1:9/api/FHIR/R4",
    "client_id": "c",
    "private_key_file": "key.pem",
    "groups": ["g"],
    "test_mode": True,
}


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("sites: [", "not valid YAML"),
        ("sites: {a: {fhir_url: 'http://x'}}", "https://"),
        ("sites: {a: {colour: red}}", "colour"),
        ("sites: {a: {time_zone: Nowhere/At_All}}", "IANA"),
        ("sites: {a: {schedule: nightly}}", "cron"),
        ("sites: {a: {vanished: remove}}", "vanished: 'remove' is none of keep, delete"),
        ("sites: {a: {left_group: delete-after 0 exports}}", "left_group"),
        ("[1, 2]", "the file is a list"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_wrong_sites_file_is_told(terminal: CommandLine, sites: str | bytes, words: str) -> None:
    (terminal.home / "sites.yaml").write_bytes(sites if isinstance(sites, bytes) else sites.encode())
    assert words in terminal.run("site", "list", code=2).err


@pytest.mark.parametrize("key", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"{}"])
def test_a_wrong_key_is_told(loaded: CommandLine, tmp_path: Path, key: bytes | None) -> None:
    sites = tmp_path / "sites.yaml"
    sites.write_text(json.dumps({"sites": {"a": EPIC_SITE}}))
    if key is not None:
        (tmp_path / "key.pem").write_bytes(key)
    terminal = CommandLine(loaded.home, loaded.url, {"EPIC_OMOP_SITES": str(sites)})
    assert "key.pem" in terminal.run("run", "--site", "a", code=2).err


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("mysql://u:hush@h/d", 2),
        ("postgresql://u:hush@127.0.0.1:1/d", 74),
        ("postgresql://u:hu@sh@h/d", 2),
        ("nonsense", 2),
    ],
)
def test_a_wrong_database_is_told_without_its_password(terminal: CommandLine, url: str, code: int) -> None:
    wrong = CommandLine(terminal.home, url)
    finished = wrong.run("status", code=code)
    assert "Error:" in finished.err
    assert "hush" not in finished.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EPIC_OMOP_WORKERS", "none"),
        ("EPIC_OMOP_WORKERS", "0"),
        ("EPIC_OMOP_CDM_SCHEMA", "cdm; drop"),
        ("EPIC_OMOP_TIME_ZONE", "Mars/Olympus"),
        ("EPIC_OMOP_SITES", "nowhere.yaml"),
    ],
)
def test_a_wrong_variable_is_told(terminal: CommandLine, name: str, value: str) -> None:
    wrong = CommandLine(terminal.home, terminal.url, {name: value})
    assert wrong.run("status", code=2).err.startswith("Error:")
