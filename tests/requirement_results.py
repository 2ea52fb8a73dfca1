"""Which statements of the FHIR-to-OMOP guide and of Themis which tests show, and the results of these tests."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

__all__ = ["RequirementResults", "marked_tests", "note_requirements"]

_PROPERTY = "requirements"
#: LibYAML where it is: faster.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def note_requirements(items: list[pytest.Item]) -> None:
    """Put the ids of a test's markers where its report takes them along, also from a worker of pytest-xdist."""
    for item in items:
        ids = sorted({str(name) for mark in item.iter_markers("requirement") for name in mark.args})
        if ids:
            item.user_properties.append((_PROPERTY, ids))


class RequirementResults:
    """Writes requirement → test → outcome (passed, skipped, failed) when the session ends: `--requirements-json`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        for name, ids in report.user_properties:
            for requirement in ids if name == _PROPERTY else ():
                self._found.setdefault(requirement, {})[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(self._found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def marked_tests(root: Path) -> dict[str, dict[str, str]]:
    """Requirement → node id → `passed` of every marked test in the tree of tests, without running or importing any."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(root.rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        for name, requirement in _markers(ast.parse(text)) if "mark.requirement(" in text else ():
            node_id = f"{file.relative_to(root.parent).as_posix()}::{name}"
            found.setdefault(requirement, {})[node_id] = "passed"
    for file in sorted((root / "golden").glob("[A-Z]*/*.yaml")):
        for document in yaml.load_all(file.read_text(encoding="utf-8"), _LOADER):
            for requirement in document.get("requirements") or ():
                case = f"{file.parent.name}/{file.stem}/{document['case']}"
                found.setdefault(requirement, {})[f"tests/golden/test_golden.py::test_golden[{case}]"] = "passed"
    return found


def _markers(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(function, requirement) of `@pytest.mark.requirement("…")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.requirement":
                    yield from ((node.name, ast.literal_eval(argument)) for argument in decorator.args)
