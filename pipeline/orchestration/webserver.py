"""`python -m pipeline.orchestration.webserver`: dagster-webserver with its own options, behind `ui_guard.UiGuard`.

The same Starlette app in the same process, wrapped; no proxy. `epic-omop ui` and docker-compose.yml start it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Raises AttributeError at once where another version of Dagster makes its app elsewhere: never without the guard."""
    cli: Any = import_module("dagster_webserver.cli")
    from pipeline.core.logs import configure_logging
    from pipeline.core.private_files import work_privately
    from pipeline.core.settings import home_folder, load_log_settings, load_settings
    from pipeline.orchestration.ui_guard import UiGuard

    work_privately(home_folder())
    configure_logging(load_log_settings())
    hosts = load_settings().ui_hosts
    made = cli.create_app_from_workspace_process_context

    def guarded(*arguments: Any, **named: Any) -> UiGuard:
        return UiGuard(made(*arguments, **named), hosts)

    cli.create_app_from_workspace_process_context = guarded
    cli.main()


if __name__ == "__main__":
    main()
