"""`dead-letters repair`: lines of letters into a private file, repaired, loaded; what is wrong again stays open; what cannot be
repaired any more is refused. And how long letters stay open."""

from __future__ import annotations

import json
import re
import stat
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from pipeline.core.settings import SiteSettings
from pipeline.load.repair import repair
from pipeline.load.repair_file import RepairedLine, read_repairs, write_repairs
from pipeline.orchestration.definitions import build_definitions
from pipeline.quality.dead_letter_history import code_histories, open_by_code
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine, killed
from tests.integration.support import Warehouse, observation, patient

SECRET = "Quillfeather"
NOTE = [{"text": SECRET}]


def line(resource_id: str, **more: object) -> bytes:
    return json.dumps({"resourceType": "Observation", **observation(resource_id, **{"note": NOTE, **more})}).encode()


def repaired(warehouse: Warehouse, *lines: tuple[int | None, bytes]):
    found = [RepairedLine(letter, raw, place) for place, (letter, raw) in enumerate(lines, start=1)]
    outcomes = list(repair(warehouse.runtime, found))
    warehouse.assert_whole()
    return [(one.letter, one.outcome, one.code) for one in outcomes], outcomes


def letters(warehouse: Warehouse) -> dict[str, int]:
    """Resource id → letter, of the open ones; the broken line by its code."""
    rows = warehouse.rows("SELECT coalesce(resource_id, code), id FROM dead_letter WHERE state = 'open'")
    return dict(rows)


@pytest.fixture
def broken(warehouse: Warehouse) -> Warehouse:
    bad_date = {"effectiveDateTime": "00.00.0000"}
    bad = [line("date", **bad_date), line("twice", **bad_date), line("type", valueQuantity={"value": "x"})]
    cut = line("cut")[:-30]
    warehouse.load({"Patient": [patient()], "Observation": [*bad, line("newer", **bad_date), cut]})
    warehouse.load({"Observation": [line("twice", effectiveDateTime="2020-02-31")]})
    return warehouse


def test_letters_are_repaired_stay_open_or_are_refused(broken: Warehouse) -> None:
    open_ = letters(broken)
    assert set(open_) == {"date", "twice", "type", "newer", "json_invalid"}
    ((superseded,),) = broken.rows("SELECT id FROM dead_letter WHERE state = 'superseded'")

    found, outcomes = repaired(
        broken,
        (open_["date"], line("date")),
        (open_["json_invalid"], json.dumps(json.loads(line("cut")), indent=1).replace("\n", " ").encode()),
        (open_["type"], line("type", effectiveDateTime="31.12.2020")),
        (superseded, line("twice")),
        (open_["twice"], line("other")),
        (open_["newer"], line("newer", effectiveDateTime="00.00.0000")),
        (None, b"no letter at all"),
        (987_654, line("none")),
    )

    assert sorted(found, key=str) == sorted(
        [
            (open_["date"], "loaded", None),
            (open_["json_invalid"], "loaded", None),
            (open_["type"], "open", "date_invalid"),
            (superseded, "refused", None),
            (open_["twice"], "refused", None),
            (open_["newer"], "refused", None),
            (None, "refused", None),
            (987_654, "refused", None),
        ],
        key=str,
    )
    why = {one.letter: one.reason for one in outcomes if one.outcome == "refused"}
    assert f"dead letter {open_['twice']}" in why[superseded]
    assert "another id" in why[open_["twice"]]
    assert "as it was" in why[open_["newer"]]
    assert SECRET not in str(outcomes)
    assert letters(broken).keys() == {"twice", "type", "newer"}
    assert broken.rows("SELECT code, path FROM dead_letter WHERE id = %s AND state = 'open'", open_["type"]) == [
        ("date_invalid", "Observation.effective.ofType(dateTime)")
    ]
    assert broken.rows(
        "SELECT count(*), count(*) FILTER (WHERE is_repaired) FROM dead_letter WHERE state = 'resolved'"
    ) == [(2, 2)]
    assert broken.rows("SELECT * FROM dead_letter_repair") == []
    assert broken.value("SELECT count(*) FROM cdm.measurement") == 2

    # The one that was wrong again is repaired again; a newer export brings another, whose repair then comes too late.
    broken.load({"Observation": [line("newer", valueQuantity={"value": 2, "code": "mg/dL"})]})
    found, outcomes = repaired(
        broken,
        (open_["type"], line("type")),
        (open_["newer"], line("newer")),
        (open_["date"], line("date", status="amended")),
        (open_["twice"], line("twice", status="entered-in-error")),
    )
    assert sorted(found, key=str) == sorted(
        [
            (open_["date"], "refused", None),
            (open_["newer"], "refused", None),
            (open_["twice"], "excluded", None),
            (open_["type"], "loaded", None),
        ],
        key=str,
    )
    assert letters(broken) == {}

    # The site sends its broken line again: a new letter, and what was repaired stays.
    rows = broken.value("SELECT count(*) FROM cdm.measurement")
    broken.load({"Observation": [line("date", effectiveDateTime="00.00.0000")]})
    assert letters(broken).keys() == {"date"}
    assert broken.value("SELECT count(*) FROM cdm.measurement") == rows


def test_days_are_counted_since_the_resource_was_first_rejected(broken: Warehouse) -> None:
    now = broken.runtime.clock.now() + timedelta(days=9)
    with broken.runtime.connect() as connection:
        by_code = {one.code: one for one in open_by_code(connection, now)}
        histories = {one.code: one for one in code_histories(connection, now, days=30)}
    dates = by_code["date_invalid"]  # `twice` was broken in another way first, a day before
    assert (dates.letters, (now - dates.oldest).days, dates.days_open) == (3, 10, 10)
    assert dates.by_site == {"one": 3}
    assert dates.by_type == {"Observation": 3}
    assert (histories["date_invalid"].open_now, histories["date_invalid"].longest_open) == (3, 10)
    assert histories["date_invalid"].count("superseded") == 1
    assert histories["date_invalid"].days_to_resolve is None

    open_ = letters(broken)
    repaired(broken, (open_["date"], line("date")), (open_["newer"], line("newer")))
    with broken.runtime.connect() as connection:
        one = {one.code: one for one in code_histories(connection, broken.runtime.clock.now(), days=30)}["date_invalid"]
    assert (one.open_now, one.count("repaired"), one.days_to_resolve, one.longest) == (1, 2, 1, 1)


def test_the_command_writes_a_private_file_and_loads_it(broken: Warehouse, tmp_path: Path) -> None:
    assert broken.runtime.settings.database_url is not None
    terminal = CommandLine(broken.runtime.settings.home, broken.runtime.settings.database_url)
    open_, file = letters(broken), tmp_path / "broken.txt"
    written = terminal.run("dead-letters", "repair", file, "--code", "date_invalid", "--id", str(open_["json_invalid"]))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.letter for one in read_repairs(file)] == sorted(
        open_[name] for name in ("date", "newer", "twice", "json_invalid")
    )
    terminal.run("dead-letters", "repair", file, "--code", "date_invalid", code=2)  # never over a person's work

    text = file.read_text().replace("00.00.0000", "2025-03-04").replace("2020-02-31", "2020-02-28")
    text = re.sub(rf"(# letter {open_['json_invalid']}:.*\n).*", lambda head: head[1] + line("cut").decode(), text)
    file.write_text(text.replace('"status": "final"', '"status":\n  "final"'))
    file.chmod(0o644)
    assert "chmod 600" in terminal.run("dead-letters", "repair", file, code=2).err
    file.chmod(0o600)
    # Killed after the lines were landed, and again when a part is published: the letters are open, and the file still works.
    for where in ("pipeline.load.repair:load_in_turn", "pipeline.publication.publish:_record"):
        terminal.run("dead-letters", "repair", file, code=-9, program=killed(where))
        assert letters(broken).keys() == open_.keys()
    finished = terminal.run("dead-letters", "repair", file, "--delete")
    assert finished.out.count("resolved") == 5
    assert not file.exists()
    assert letters(broken).keys() == {"type"}
    broken.assert_whole()
    looked = broken.rows(
        "SELECT DISTINCT detail, resources FROM access_log WHERE event = 'dead letter' ORDER BY 1 DESC"
    )
    assert looked == [("written to a file", 4), ("repaired lines", 4)]
    by_code = terminal.run("dead-letters", "list", "--by", "code")
    history = terminal.run("dead-letters", "history")
    assert "wrong_type" in by_code.out
    assert "Compare the path" in by_code.out
    by_json = {one["code"]: one for one in json.loads(terminal.run("dead-letters", "history", "--json").out)}
    assert (by_json["date_invalid"]["repaired"], by_json["json_invalid"]["repaired"]) == (3, 1)
    assert "repaired" in history.out
    shown = terminal.run("dead-letters", "show", str(open_["type"]))
    assert "Compare the path" in shown.out
    everything = [written, finished, by_code, history, shown]
    assert SECRET not in "".join(one.out + one.err for one in everything)


def test_dagster_replays_by_a_form(broken: Warehouse) -> None:
    """With a limit that was too low and is raised; a site that is none, and a busy one, are failures that say so."""
    site = SiteSettings(name="one", max_line_bytes=1100)
    runtime = Runtime(broken.runtime.settings.model_copy(update={"sites": {"one": site}}), broken.runtime.clock)
    tight = Warehouse(runtime, broken.folder, broken.loads)
    tight.load(
        {"Observation": [line("long", note=[{"text": SECRET * 200}]), line("date", effectiveDateTime="x" * 1200)]}
    )
    roomy = runtime.settings.model_copy(update={"sites": {"one": SiteSettings(name="one")}})
    job = build_definitions(roomy, {"runtime": Runtime(roomy, runtime.clock)}).resolve_job_def("replay_dead_letters")

    def run(**form: object) -> tuple[dg.ExecuteInProcessResult, str]:
        with dg.DagsterInstance.ephemeral() as instance:
            result = job.execute_in_process(
                {"ops": {"replay": {"config": form}}}, instance=instance, raise_on_error=False
            )
            stored = "".join(map(str, instance.all_logs(result.run_id)))
        assert SECRET not in stored
        return result, stored

    ((export,),) = broken.rows("SELECT DISTINCT export_id FROM dead_letter WHERE code = 'line_too_long'")
    open_before = letters(broken).keys()
    assert not run(site="two")[0].success
    assert "The sites of this installation are one" in run(site="two")[1]
    assert run(site="one", code="line_too_long", export=export + 100)[0].success
    assert letters(broken).keys() == open_before
    result, _ = run(site="one", code="line_too_long", export=export)
    assert result.success
    assert "long" not in letters(broken)
    assert broken.rows("SELECT DISTINCT code FROM dead_letter WHERE code = 'line_too_long' AND state = 'open'") == []
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert "cdm/measurement" in made
    broken.assert_whole()


def test_a_file_of_plain_lines_is_known_by_its_resources(broken: Warehouse, tmp_path: Path) -> None:
    file = tmp_path / "plain.ndjson"
    file.write_bytes(b"\xef\xbb\xbf" + line("date") + b"\r\n\r\n" + line("stranger") + b"\n")
    file.chmod(0o600)
    found, _ = repaired(broken, *((one.letter, one.raw) for one in read_repairs(file)))
    assert sorted(found, key=str) == sorted(
        [(letters_before(broken, "date"), "loaded", None), (None, "refused", None)], key=str
    )


def letters_before(warehouse: Warehouse, resource_id: str) -> int:
    return warehouse.value("SELECT min(id) FROM dead_letter WHERE resource_id = %s", resource_id)


def test_lines_come_back_from_the_file_as_they_went_in(tmp_path: Path) -> None:
    raws = [b'{"a": 1.10, "b": "\\u0000"}', b"\xff\xfe not utf-8", b'{"cut": "off', b"[1,\t2]"]
    file = tmp_path / "lines"
    write_repairs(file, [(number, "two\nlines: why", raw) for number, raw in enumerate(raws, start=1)])
    assert [(one.letter, one.raw) for one in read_repairs(file)] == list(enumerate(raws, start=1))
