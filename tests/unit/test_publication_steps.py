"""Steps of publication have their SQL in files."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import pipeline.publication
import pipeline.publication.values
from pipeline.publication.sql import SQL_FOLDER, read_script

FOLDER = Path(pipeline.publication.__file__).resolve().parent
STEPS = [
    *sorted((FOLDER / "steps").glob("*.py")),
    *(FOLDER / f"{name}.py" for name in ("derived", "publish", "removed_persons", "tables", "unlink", "values")),
]
_STATEMENT = re.compile(
    r"\b(SELECT\b.*\bFROM|INSERT INTO|UPDATE \S+ (AS \S+ )?SET|DELETE FROM|CREATE TEMP|TRUNCATE)\b", re.S
)


@pytest.mark.parametrize("module", STEPS, ids=lambda path: path.stem)
def test_no_statement_is_in_code(module: Path) -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in texts if _STATEMENT.search(text)] == []


def test_every_script_says_what_it_is_for_and_is_used() -> None:
    names = {file.stem for file in SQL_FOLDER.glob("*.sql")}
    code = "\n".join(file.read_text(encoding="utf-8") for file in FOLDER.rglob("*.py"))
    texts = "\n".join(file.read_text(encoding="utf-8") for file in SQL_FOLDER.glob("*.sql"))
    unused = {name for name in names if f'"{name}"' not in code and f"{{{name}}}" not in texts}
    # `fresh_<table>` is asked for by table.
    assert {name for name in unused if not name.startswith("fresh_")} == set()
    for name in names:
        head = (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()[0]
        assert re.match(r"-- (?!reads:|makes:)", head), name
        assert read_script(name).statements, name


def test_the_table_of_steps_names_functions_that_are_there() -> None:
    """docstring of `pipeline.publication.values`: what each step takes and leaves."""
    table = pipeline.publication.values.__doc__ or ""
    names = re.findall(r"`(\w+)\.(\w+)`", table)
    assert len(names) >= 9
    modules = {module: importlib.import_module(f"pipeline.publication.steps.{module}") for module, _ in names}
    assert [name for module, name in names if not hasattr(modules[module], name)] == []
