"""What transform needs is little: a worker process, or another executor, loads neither HTTP nor a database nor Dagster."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: File → what is written at its end: each contract is broken by one of them, in passing or for types alone as well.
_BREAKS = {
    "pipeline/core/clock.py": "from ..fhir import lines as _lines\n",
    "pipeline/commands/status.py": "import dagster\n",
    "pipeline/load/plan.py": "def _later():\n    import pipeline.sandbox.people\n",
    "pipeline/erasure/later.py": "import pipeline.definitions\n",
    "pipeline/transform/udi.py": "import typing\nif typing.TYPE_CHECKING:\n    import psycopg\n",
    "pipeline/transform/us_states.py": "import pipeline.staging.facts\n",
    "pipeline/sql_on_fhir/r4.py": "import omop_schema.contact\n",
    "pipeline/quality/verify.py": "import tools.elements\n",
    "omop_schema/contact.py": "import requests, omop_schema.etl\n",
}

_IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [each.name for each in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    ("package", "modules", "absent"),
    [
        ("pipeline.transform", 30, {"httpx", "psycopg", "dagster", "sqlalchemy", "alembic", "starlette"}),
        ("pipeline.sql_on_fhir", 5, {"httpx", "psycopg", "dagster", "sqlalchemy", "omop_schema"}),
    ],
)
def test_a_fresh_process_with_every_module_loads_nothing_of(package: str, modules: int, absent: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL, package], check=True, capture_output=True, text=True)
    count, *loaded = done.stdout.split()
    assert int(count) >= modules
    assert "pipeline" in loaded
    assert not absent & set(loaded)


def test_a_worker_process_imports_no_database() -> None:
    """A pool's process, or another executor, starts with this module and what it imports."""
    code = "import sys, pipeline.load.worker; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"pipeline", "polars"} <= loaded
    assert not {"httpx", "psycopg", "dagster", "sqlalchemy", "alembic", "starlette"} & loaded


def test_every_contract_is_broken_by_what_it_forbids(tmp_path: Path) -> None:
    for folder in ("pipeline", "omop_schema", "tools"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.sql", "*.csv")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "pipeline" / "new_room").mkdir()
    (tmp_path / "pipeline" / "new_room" / "__init__.py").touch()
    for name, text in _BREAKS.items():
        with (tmp_path / name).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{text}")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=tmp_path, check=False, capture_output=True, text=True)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    broken = [contract["name"] for contract in contracts if f"{contract['name']} BROKEN" in done.stdout]
    assert broken == [contract["name"] for contract in contracts], done.stdout + done.stderr
    assert done.returncode == 1
