"""Importing the project runs no query: a process that is forked afterwards has no threads to do its queries."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import polars, threading
from pathlib import Path

def threads():
    return {Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}

before = threads()
import importlib, pkgutil, pipeline

for stage in ("commands", "erasure", "load", "publication", "quality", "orchestration", "sandbox", "transform"):
    package = importlib.import_module(f"pipeline.{stage}")
    for module in pkgutil.walk_packages(package.__path__, f"pipeline.{stage}."):
        if not module.name.endswith(("webserver", "ui_services")):  # programs of Dagster's
            importlib.import_module(module.name)
print(sorted(name for name in threads() - before if "polars" in name.lower()))
"""


def test_no_query_runs_while_modules_are_imported() -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
