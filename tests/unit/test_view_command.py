"""`epic-omop view run`, called as from a terminal."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from pipeline.commands.view import app
from pipeline.core.errors import MappingError, UsageError

MAPPING = """
resource: Observation
views:
  - name: value
    kind: event
    select:
      - column:
          - {name: id, path: id, type: id}
          - {name: value, path: value.ofType(Quantity).value, type: decimal}
          - {name: code, path: code, type: CodeableConcept}
          - {name: whole, path: $this, type: known_to_the_pipeline_only}
  - name: component
    select:
      - forEach: component
        column:
          - {name: text, path: code.text, type: string}
"""
GOOD: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o1",
    "valueQuantity": {"value": 1.5},
    "code": {"text": 'a, "b"'},
    "component": [{"code": {"text": "[red]x[/red]"}}, {"code": {"text": "é"}}],
}
LINES = [
    json.dumps(GOOD),
    "",
    "{broken",
    json.dumps({"resourceType": "Observation", "id": "o2", "valueQuantity": {"value": "12"}}),
    json.dumps({"resourceType": "Patient", "id": "p"}),
    "[]",
]

main = typer.Typer()
main.add_typer(app, name="view")


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "Observation.yaml"
    path.write_text(MAPPING, encoding="utf-8")
    return path


@pytest.fixture
def resources(tmp_path: Path) -> Path:
    path = tmp_path / "Observation.ndjson"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, ["view", "run", *map(str, arguments)], input=text)


def test_rows_as_ndjson_and_broken_lines_on_standard_error(mapping: Path, resources: Path) -> None:
    result = run(mapping, resources, "--name", "value")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows == [{"id": "o1", "value": 1.5, "code": GOOD["code"], "whole": GOOD}]
    assert result.stderr.splitlines() == [
        f"{resources}:3: not JSON: unexpected character, expected a string key (column 2)",
        f"{resources}:4: Observation.value.ofType(Quantity).value: expected a number, found a string",
        f"{resources}:6: Observation: expected an object with resourceType Observation, found an array",
        "3 of 5 lines are broken.",
    ]
    assert result.exit_code == 1


def test_all_views_of_a_mapping_say_whose_row_it_is(mapping: Path) -> None:
    result = run(mapping, "-", text=json.dumps(GOOD))
    assert [json.loads(line)["view"] for line in result.stdout.splitlines()] == ["value", "component", "component"]
    assert result.exit_code == 0


def test_csv(mapping: Path) -> None:
    result = run(mapping, "-", "--format", "csv", "--name", "value", text=json.dumps(GOOD))
    [header, row] = csv.reader(io.StringIO(result.stdout))
    assert header == ["id", "value", "code", "whole"]
    assert row[:2] == ["o1", "1.5"]
    assert json.loads(row[2]) == GOOD["code"]


def test_csv_needs_one_view(mapping: Path) -> None:
    result = run(mapping, "-", "--format", "csv", text="")
    assert isinstance(result.exception, UsageError)
    assert "value, component" in str(result.exception)


def test_table_and_limit(mapping: Path, tmp_path: Path) -> None:
    packed = tmp_path / "Observation.ndjson.gz"
    packed.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    result = run(mapping, packed, "--format", "table", "--name", "component", "--limit", "1")
    assert "[red]x[/red]" in result.stdout
    assert "é" not in result.stdout
    assert "2 rows, 1 shown; see --limit" in result.stdout
    assert result.exit_code == 0


def test_a_wide_view_is_shown_as_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "wide.json"
    columns = [{"name": f"column_number_{number}", "path": "id"} for number in range(12)]
    path.write_text(json.dumps({"resource": "Observation", "select": [{"column": columns}]}))
    result = run(path, "-", "--format", "table", text=json.dumps(GOOD))
    assert sum("column_number_" in line and "o1" in line for line in result.stdout.splitlines()) == 12


def test_explain_shows_python(mapping: Path) -> None:
    result = run(mapping, "--explain", "--name", "component")
    assert result.exit_code == 0
    assert result.stdout.startswith("# View component\ndef run(views):")
    compile(result.stdout, "explained", "exec")


def test_many_broken_lines_are_counted_not_listed(mapping: Path) -> None:
    result = run(mapping, "-", text="{\n" * 1000)
    assert len(result.stderr.splitlines()) == 21
    assert result.stderr.endswith("1,000 of 1,000 lines are broken.\n")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        (
            "v.yaml",
            "resource: Patient\nselect:\n  - column: [{name: x, path: id.frist()}]\n",
            "    id.frist()\n       ^",
        ),
        ("v.yaml", "resource: [\n", "v.yaml:2: not YAML"),
        ("v.json", '{"resource": \n,}', "v.json:2: not JSON"),
        ("v.yaml", "just text", "a view must be an object"),
        ("v.yaml", "views: {a: 1}", "views must be a list of views"),
        ("v.yaml", "a: \x00", "not YAML"),
    ],
)
def test_a_bad_view_is_told_with_its_file(tmp_path: Path, name: str, content: str, part: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    result = run(path, "-", text="")
    assert isinstance(result.exception, MappingError)
    assert result.exception.exit_code == 2
    assert str(path) in str(result.exception)
    assert part in str(result.exception)


def test_who_names_the_resource_is_shown_its_mapping() -> None:
    result = run("Procedure", "-", text="")
    assert isinstance(result.exception, UsageError)
    assert re.search(r"Name the file of the mapping: .*mappings/Procedure\.yaml", result.exception.advice)


def test_files_that_cannot_be_read(mapping: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ndjson.gz"
    cut.write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-20])
    for arguments, part in (
        ((tmp_path / "none.yaml", "-"), "none.yaml cannot be read: No such file"),
        ((mapping, tmp_path / "none"), "none cannot be read: No such file"),
        ((mapping, cut), "cannot be read to its end"),
        ((mapping,), "There is no file to run the view on"),
        ((mapping, "-", "--name", "other"), "The file has: value, component"),
    ):
        result = run(*arguments, text="")
        assert isinstance(result.exception, UsageError)
        assert part in str(result.exception)
