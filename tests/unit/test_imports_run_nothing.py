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
import pipeline.commands.cli, pipeline.erasure.run, pipeline.load.ingest, pipeline.publication.publish
import pipeline.quality.verify, pipeline.orchestration.definitions, pipeline.sandbox.generator
print(sorted(name for name in threads() - before if "polars" in name.lower()))
"""


def test_no_query_runs_while_modules_are_imported() -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
