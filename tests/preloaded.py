"""Imports what the commands import, for the server from which tests fork them: all of the project but Dagster's part.

Nothing else is run here: no thread but those that libraries start when they are imported, and no state that a command sees.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import tempfile
from pathlib import Path

import pipeline

# Before numpy and polars are imported: threads that nothing here needs do not go through a fork.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_DAGSTER = ("pipeline.orchestration", "pipeline.definitions")
#: Imported where they are needed, inside of functions of libraries.
_LIBRARIES = (
    "alembic.autogenerate",
    "alembic.command",
    "annotated_types",
    "anyio",
    "certifi",
    "email.parser",
    "getpass",
    "httpcore",
    "jwt",
    "rich.progress",
    "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg",
)


def _names() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline.")]


for _name in [*_LIBRARIES, *(name for name in _names() if not name.startswith(_DAGSTER))]:
    importlib.import_module(_name)
# What the first load of a process computes, from the project's files alone.
with tempfile.TemporaryDirectory() as _folder:
    importlib.import_module("pipeline.load.fingerprints").rows_code_hash(Path(_folder))
    importlib.import_module("pipeline.publication.version").publication_version(Path(_folder))
_mappings = importlib.import_module("pipeline.core.settings").MAPPINGS_FOLDER
importlib.import_module("pipeline.transform.mapping.mappings").load_mappings(_mappings)
gc.collect()
gc.freeze()  # or each child would copy the pages of what it never changes
