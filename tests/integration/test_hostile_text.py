"""Codes, displays, ids and messages that look like markup or hold control characters, through every command that shows
them: the program ends as it should, and shows them as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from tests.command_line import CommandLine
from tests.integration.support import encounter, observation, patient

#: A FHIR `code` may hold none of the control characters, but a server that sends them must not drive a terminal either.
VALUES = (
    "[/b]",
    "[red]",
    "[link=https://evil.example]x[/link]",
    "[/]",
    "e\x1b[31m\x1b]0;title\x07",
    "forged\n✓ 9 checks hold",
    "\u202egnp.exe",
    "c1\x9b31m",
)
SHOWN = "[/b] [red] [link=https://evil.example]x[/link] [/] e␛[31m␛]0;title␇ forged␊✓ 9 checks hold <U+202E>gnp.exe c1<U+009B>31m"


@pytest.fixture(scope="module")
def loaded(module_database_url: str, make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[CommandLine]:
    with make_home() as home:
        terminal = CommandLine(home, module_database_url, {"COLUMNS": "3000"})
        (home / "sites.yaml").write_text(
            "sites:\n  s:\n"
        )  # of its own exports, which are planted, it must have an entry
        terminal.run("vocabulary", "load", MAPPINGS_FOLDER / "demo_vocabulary")
        terminal.run("ingest", "--site", "s", "--from", _write(home / "folder[red]"))
        with psycopg.connect(module_database_url) as connection:
            _plant(connection)
        yield terminal


def _write(folder: Path) -> Path:
    codes = [
        observation(f"o{number}", code={"coding": [{"system": f"urn:x:{value}", "code": value, "display": value}]})
        for number, value in enumerate(VALUES)
    ]
    wrong = [observation(value, valueQuantity={"value": value}) for value in VALUES]
    files = {"Patient": [patient()], "Encounter": [encounter()], "Observation": [*codes, *wrong]}
    folder.mkdir()
    for name, resources in files.items():
        lines = [json.dumps({"resourceType": name, **resource}) for resource in resources]
        (folder / f"{name}[red].ndjson").write_text("\n".join(lines) + "\n")
    return folder


def _plant(connection: psycopg.Connection) -> None:
    """What a server says of itself, and what an export of a folder never has."""
    text = " ".join(VALUES)
    connection.execute(
        "INSERT INTO etl.export_job (site, group_id, kind, state, progress, error, requested_at, landed_at, next_poll_at)"
        " SELECT 's', %(text)s, 'bulk', state, %(text)s, %(text)s, now(), now(), now()"
        " FROM unnest(ARRAY['running', 'failed']) AS state",
        {"text": text},
    )
    connection.execute(
        "INSERT INTO etl.cool_down (site, client_id, group_id, next_try, reason) VALUES ('s', '', %s, now() + '1h', '')",
        (text,),
    )
    connection.execute(
        "INSERT INTO etl.export_outcome SELECT max(export_id), 'fatal', 'error', %(text)s, %(text)s, 1"
        " FROM etl.export_job",
        {"text": text},
    )
    connection.execute("UPDATE etl.dead_letter SET id = 1 WHERE id = (SELECT min(id) FROM etl.dead_letter)")
    connection.execute("UPDATE etl.dead_letter SET path = %(t)s, reason = %(t)s, caused_by = %(t)s", {"t": text})
    connection.execute("UPDATE vocab.concept SET concept_name = %s WHERE concept_code = '2160-0'", (text,))


LOOKS = (
    ("status",),
    ("dead-letters", "list"),
    ("dead-letters", "show", "1"),
    ("report", "mapping"),
    ("report", "mapping", "--json"),
    ("verify", "--files"),
    ("vocabulary", "show"),
    ("vocabulary", "lookup", "http://loinc.org", "2160-0"),
    ("site", "list"),
    ("db", "status"),
    ("view", "run", str(MAPPINGS_FOLDER / "Observation.yaml"), "folder[red]/Observation[red].ndjson", "--format", "table"),
    ("ingest", "--site", "s", "--from", "folder[red]", "--force"),
    ("dead-letters", "replay", "--site", "s"),
    ("erase", "--list"),
)  # fmt: skip


@pytest.mark.parametrize("command", LOOKS, ids=lambda command: " ".join(command[:2]))
def test_every_command_shows_values_as_they_are(loaded: CommandLine, command: tuple[str, ...]) -> None:
    code = 1 if command[0] in ("view", "status") else 0  # some lines cannot be evaluated; an export has failed
    finished = loaded.run(*command, code=code)
    for letter in finished.out + finished.err:
        assert letter == "\n" or letter.isprintable() or "--json" in command, repr(letter)
    if command[0] == "status":
        assert SHOWN in " ".join(finished.out.split())
    if command[:2] in (("report", "mapping"), ("dead-letters", "list"), ("ingest", "--site")):
        assert all(value in finished.out for value in VALUES[:4])


@pytest.mark.parametrize(
    "command",
    [
        ("vocabulary", "lookup", "[/b]\x1b[31m", "[/b]"),
        ("vocabulary", "lookup", "LOINC", "[/b]\x1b[31m"),
        ("ingest", "--site", "s", "--from", "nowhere[/b]\x1b[31m"),
        ("site", "check", "[/b]\x1b[31m"),
        ("view", "run", "[/b]\x1b[31m.yaml", "x"),
        ("mappings", "show", "[/b]\x1b[31m"),
        ("export", "--site", "[/b]\x1b[31m"),
    ],
    ids=" ".join,
)
def test_every_refusal_names_a_value_as_it_is(loaded: CommandLine, command: tuple[str, ...]) -> None:
    finished = loaded.run(*command, code=None)
    assert finished.code in (1, 2, 70, 74)
    assert "\x1b" not in finished.out + finished.err
    assert "[/b]" in finished.err
