"""What a test says that it shows: the first sentence of its docstring, read without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["statement_of"]

_TESTS = Path(__file__).resolve().parents[1] / "tests"


def statement_of(test: str) -> str | None:
    """Of `golden/test_requirements.py::test_x`, as docs/conformance.md names tests; None where it has no docstring."""
    file, _, name = test.partition("::")
    return _docstrings(_TESTS / file).get(name) if (_TESTS / file).is_file() else None


@cache
def _docstrings(file: Path) -> Mapping[str, str]:
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = " ".join((ast.get_docstring(node) or "").split())
            if text:
                found[node.name] = re.split(r"(?<=[.:;])\s", text)[0].rstrip(":;")
    return found
