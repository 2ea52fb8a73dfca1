"""CONTRIBUTING.md names files, commands and options that are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer

from pipeline.commands.cli import app
from tests.golden.test_golden import CASES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("pipeline/", "omop_schema/", "mappings/", "tests/", "docs/", "tools/", "benchmarks/", ".ci/")


def paths(page: str) -> set[str]:
    """What begins with a folder of the project, in running text, code and links; also files at the top."""
    words = re.findall(r"[\w./<>*-]+", page.replace("::", " "))
    below = {word.rstrip(".") for word in words if word.startswith(FOLDERS)}
    return (
        below | set(re.findall(r"\]\(([\w./-]+)\)", page)) | set(re.findall(r"`([\w-]+\.(?:toml|txt|md|yml))`", page))
    )


def commands(page: str) -> set[tuple[str, ...]]:
    """Words of `epic-omop …` up to the first that is an option, a path or a name in capitals."""
    found = re.findall(r"epic-omop((?: [a-z][a-z-]*(?![\w./]))*)", page)
    return {tuple(words.split()) for words in found if words}


def is_command(words: tuple[str, ...]) -> bool:
    group = typer.main.get_command(app)
    for word in words:
        if not isinstance(group, typer.core.TyperGroup) or word not in group.commands:
            return False
        group = group.commands[word]
    return True


def test_paths_are_there() -> None:
    found = paths(PAGE)
    assert len(found) > 40
    plain = {path for path in found if "<" not in path}
    assert {path for path in plain if not (ROOT / path).exists()} == set()
    for pattern in found - plain:  # such as tests/golden/<Resource>/<topic>.yaml
        if not pattern.startswith("mappings/sites/"):  # of a home, and none of ours
            assert list(ROOT.glob(re.sub(r"<\w+>", "*", pattern))), pattern


def test_commands_are_there() -> None:
    found = commands(PAGE)
    assert len(found) >= 4
    assert {words for words in found if not is_command(words)} == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", PAGE, re.MULTILINE))
    assert len(targets) >= 5
    assert all(re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE) for target in targets)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {re.split(r"[^\w-]", name)[0] for name in project["optional-dependencies"]["dev"]} | set(
        project["scripts"]
    )
    programs = set(re.findall(r"\.venv/bin/([\w-]+)", PAGE))
    assert len(programs) >= 3
    assert programs <= installed


def test_names_that_the_walks_give_are_in_their_files() -> None:
    for file, names in {
        "tests/unit/test_dates.py": ("RESOURCES", "TABLE"),
        "tests/unit/test_look_ups.py": ("CASES",),
        "tests/unit/test_further_rows.py": ("DATES", "OWN", "FURTHER"),
        "tests/faults/test_faults.py": ("OUTLIVED", "STOPPED"),
        "pipeline/sandbox/faults.py": ("Fault",),
        "omop_schema/etl.py": ("LINEAGE_COLUMNS", "view_statements"),
        "pipeline/orchestration/asset_checks.py": ("accounting_check",),
        "pipeline/orchestration/definitions.py": ("_of_site",),
        "tests/conftest.py": ("--all-deep",),
    }.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert {name for name in names if not re.search(rf"{re.escape(name)}\b", text) or name not in PAGE} == set(), (
            file
        )


def test_golden_cases_that_are_named_are_there() -> None:
    names = {case.name for case in CASES}
    (exact,) = re.findall(r"test_golden\[([^\]]+)\]", PAGE)
    assert exact in names
    (part,) = re.findall(r"test_golden\.py -k (\S+)", PAGE)
    assert any(part in name for name in names)


def test_the_readme_leads_here_and_to_the_security_policy() -> None:
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        assert f"]({name})" in README
        assert (ROOT / name).is_file()


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("see `pipeline/nowhere.py`.", "pipeline/nowhere.py", None),
        ("[a](docs/nowhere.md)", "docs/nowhere.md", None),
        ("`epic-omop mappings shew Observation`", None, ("mappings", "shew")),
        ("`epic-omop view run mappings/x.yaml`", "mappings/x.yaml", ("view", "run")),
    ],
)
def test_what_is_named_is_found(text: str, path: str | None, words: tuple[str, ...] | None) -> None:
    assert path is None or path in paths(text)
    assert words is None or words in commands(text)
    assert not is_command(("mappings", "shew"))
