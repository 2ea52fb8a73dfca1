"""The folder in which Dagster keeps its settings, runs and logs: `<EPIC_OMOP_HOME>/dagster`. No definitions here."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.core.database_password import PASSWORD_FILE_VARIABLE
from pipeline.core.errors import ConfigurationError
from pipeline.core.files import replace_file
from pipeline.core.settings import Settings
from pipeline.orchestration.storage import make_storage
from pipeline.orchestration.storage_in_postgres import make_schema, storage_section

__all__ = ["LOCATION", "dagster_environment", "prepare_instance"]

#: What Dagster loads by `-m`, and so the name of the code location; in compose too. Dagster keeps switches by it.
LOCATION = "pipeline.definitions"

#: Beside this module, so that an installed package has it too; in the repository a link to the file at the top level.
_SOURCE = Path(__file__).with_name("dagster.yaml")

#: Variables that hold paths: Dagster's processes have another working folder.
_PATH_VARIABLES = (
    "EPIC_OMOP_SITES", "EPIC_OMOP_MAPPINGS", "EPIC_OMOP_LAKEHOUSE", "EPIC_OMOP_OPERATIONS", PASSWORD_FILE_VARIABLE,
)  # fmt: skip


def prepare_instance(settings: Settings) -> Path:
    """Make DAGSTER_HOME with the project's `dagster.yaml` and Dagster's storage in it; returns the folder.

    Repeating it is harmless, also by several processes. Raises ConfigurationError when the folder cannot be written, or
    Dagster cannot open its storage.
    """
    folder = settings.home / "dagster"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # another Dagster process may be reading it
        replace_file(folder / "dagster.yaml", _dagster_yaml(settings), is_durable=False)
        if settings.dagster_schema:
            make_schema(settings, folder)
        else:
            make_storage(folder)
    except OSError as error:
        raise ConfigurationError(
            f"Dagster's folder {folder} cannot be prepared ({error.strerror}).",
            "EPIC_OMOP_HOME must name a folder that this user can write.",
        ) from error
    return folder


def _dagster_yaml(settings: Settings) -> bytes:
    content = _SOURCE.read_bytes()
    return content + storage_section(settings.dagster_schema).encode() if settings.dagster_schema else content


def dagster_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """This process's environment with what Dagster's processes need besides, all paths absolute."""
    environment = dict(os.environ)
    for name in _PATH_VARIABLES:
        if environment.get(name):
            environment[name] = str(Path(environment[name]).absolute())
    return environment | {
        "EPIC_OMOP_HOME": str(settings.home),
        "DAGSTER_HOME": str(folder),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        # Dagster 1.13 recommends a program for `dagster dev` that is a package of its own and does the same.
        # Owners of a sensor are in beta; Dagster would say so at each start.
        "PYTHONWARNINGS": "ignore:Function `dev_command` is superseded,ignore:Parameter `owners` of initializer",
    }
