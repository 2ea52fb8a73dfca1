"""`python -m pipeline.orchestration.ui_services`: `dagster dev` with the webserver of `webserver.py`. For `epic-omop ui`.

`dagster dev` starts a code server that webserver and daemon share, and ends all in order; only which webserver it is, is
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

__all__ = ["guarded_command", "main"]

_THEIRS = ["-m", "dagster_webserver"]
_OURS = ["-m", "pipeline.orchestration.webserver"]


def guarded_command(command: Sequence[str]) -> list[str]:
    """A command of `dagster dev`; that of the webserver becomes ours. Raises RuntimeError where it is another than known."""
    if list(command[1:3]) == _THEIRS:
        return [command[0], *_OURS, *command[3:]]
    if any("webserver" in word for word in command):
        raise RuntimeError("This version of Dagster starts its webserver in another way; install constraints.txt.")
    return list(command)


def main() -> None:
    """Raises AttributeError where another version of Dagster starts its services otherwise: none runs without the guard."""
    dev: Any = import_module("dagster._cli.dev")
    start = dev.open_ipc_subprocess

    def started(command: Sequence[str], **named: Any) -> Any:
        return start(guarded_command(command), **named)

    dev.open_ipc_subprocess = started
    dev.dev_command(auto_envvar_prefix="DAGSTER_CLI")


if __name__ == "__main__":
    main()
