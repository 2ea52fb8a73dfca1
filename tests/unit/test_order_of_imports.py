"""What transform needs is little: a worker process, or another executor, loads neither HTTP nor a database nor Dagster."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
