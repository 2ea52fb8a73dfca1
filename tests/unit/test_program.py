"""The program around its commands: output that nobody reads, Ctrl-C, a disk that is full, and odd surroundings."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from omop_schema.versions import IG_VERSION
from pipeline.commands import ui
from pipeline.core.errors import UsageError
from pipeline.orchestration.instance import LOCATION

#: Sends itself a SIGINT when the module that is named first is imported, then runs the program.
_INTERRUPTED = """
import importlib.abc, os, signal, sys
sought = sys.argv[1]
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sought:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
import pipeline.commands.start
sys.argv = ["epic-omop", *sys.argv[2:]]
pipeline.commands.start.main()
"""
_PROGRAM = "import sys, pipeline.commands.start; sys.argv[0] = 'epic-omop'; pipeline.commands.start.main()"


def run(
    words: Sequence[str], home: Path | str, *, code: str = _PROGRAM, shell: str = "", **variables: str
) -> tuple[int, str]:
    """Exit code, and what came on standard output and error. `shell`: redirections, or what is done before."""
    before, _, after = shell.partition("PROGRAM")
    line = f"{before} {sys.executable} -c '{code}' {' '.join(words)} {after}" if shell else ""
    command = ["bash", "-c", line] if shell else [sys.executable, "-c", code, *words]
    variables = {"EPIC_OMOP_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    environment = {**os.environ, **variables}
    ended = subprocess.run(command, capture_output=True, check=False, env=environment)
    return ended.returncode, (ended.stdout + ended.stderr).decode(errors="replace")


def test_version(tmp_path: Path) -> None:
    """Its name and version, alone in the first line, then what it follows."""
    code, out = run(["--version"], tmp_path)
    assert code == 0
    assert out.splitlines() == [
        f"epic-omop {importlib.metadata.version('epic-omop')}",
        f"OMOP CDM v5.4 and v5.5, HL7 FHIR to OMOP {IG_VERSION}",
    ]


_SERVICES = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "code-server"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_dagster_finds_the_definitions_by_one_name_everywhere() -> None:
    """Dagster keeps switches by the name of the code location: by another, `site enable` turns what nobody reads."""
    command = ui._services_command(3000)
    assert command[command.index("pipeline.orchestration.ui_services") + 1 :][:2] == ["-m", LOCATION]
    root = Path(ui.__file__).parents[2]
    compose = yaml.safe_load((root / "docker-compose.yml").read_text())
    code_servers = [one["command"] for one in compose["services"].values() if "code-server" in one.get("command", [])]
    assert [command[-2:] for command in code_servers] == [["-m", LOCATION]]
    workspace = yaml.safe_load((root / "pipeline/orchestration/workspace.yaml").read_text())
    assert [one["grpc_server"]["location_name"] for one in workspace["load_from"]] == [LOCATION]
    assert tomllib.loads((root / "pyproject.toml").read_text())["tool"]["dagster"]["module_name"] == LOCATION


def test_the_ui_does_not_wait_for_a_code_server_that_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "_SECONDS_BETWEEN_LOOKS", 0.1)
    with subprocess.Popen([sys.executable, "-c", _SERVICES], stdout=subprocess.PIPE) as services:
        try:
            assert services.stdout is not None
            code_server = int(services.stdout.readline())
            threading.Timer(0.5, os.kill, (code_server, signal.SIGKILL)).start()
            with pytest.raises(UsageError, match="code server has died"):
                ui._code_of(services)
        finally:
            services.kill()


@pytest.mark.parametrize("words", ["--help", "erase --help", "mappings show Patient", "site list", "nonsense"])
def test_output_that_nobody_reads_ends_the_program_quietly(words: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "EPIC_OMOP_HOME": str(tmp_path)}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *words.split()],
            stdout=write,
            stderr=write if words == "nonsense" else subprocess.PIPE,
            check=False,
            env=environment,
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr or b"") == (141, b"")


@pytest.mark.parametrize(
    ("module", "says"), [("typer", "Stopped. Nothing was begun."), ("pipeline.warehouse.runtime", "Stopped. What")]
)
def test_ctrl_c_is_answered_with_a_sentence(module: str, says: str, tmp_path: Path) -> None:
    code, said = run([module, "status"], tmp_path, code=_INTERRUPTED)
    assert code == 130
    assert said.startswith(says)
    assert len(said.splitlines()) == 1


ODD: dict[str, tuple[str, dict[str, str], int, str]] = {
    "a full disk behind the output": ("PROGRAM >/dev/full", {}, 74, "No space left"),
    "a full disk behind the messages": ("PROGRAM nonsense 2>/dev/full", {}, 74, ""),
    "no output at all": ("PROGRAM >&- 2>&-", {}, 0, ""),
    "no input": ("PROGRAM <&-", {}, 0, "site"),
    "a folder that is gone": (
        "mkdir x; cd x; rmdir ../x; PROGRAM",
        {"EPIC_OMOP_HOME": ""},
        2,
        "not exist any more",
    ),
    "a home that is no UTF-8": ("EPIC_OMOP_HOME=$'/tmp/h\\xff'; PROGRAM", {}, 2, "UTF-8"),
    "no locale, home or terminal": (
        "unset HOME TERM LANG; PROGRAM",
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"},
        0,
        "site",
    ),
    "a narrow terminal": ("PROGRAM", {"COLUMNS": "1"}, 0, ""),
    "no rights for new files": ("umask 777; PROGRAM", {}, 0, "site"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_surroundings(name: str, tmp_path: Path) -> None:
    shell, variables, expected, says = ODD[name]
    (tmp_path / "sites.yaml").write_text("sites:\n  north: {}\n")
    code = _PROGRAM.replace("'", '"')
    words = [] if "nonsense" in shell else ["site", "list"]
    ended, said = run(words, tmp_path, code=code, shell=f"cd {tmp_path}; {shell}", **variables)
    assert says in said
    assert "Traceback" not in said
    assert ended == expected, said
