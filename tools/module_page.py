"""docs/modules.md: the folders of `pipeline/` in their order, and their modules with the first sentences of their docstrings."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

__all__ = ["module_page"]

_ROOT = Path(__file__).resolve().parents[1]
_CONTRACT = "A stage imports only from stages below it"
_HEAD = """\
# Modules

Made by `make documents` from the modules' docstrings; do not edit. What a folder holds, and what not, is described in
its `__init__.py`.

Folders of `pipeline/` are stages. They stand in one order, and each imports only from folders below it; `make lint`
checks that, with the other contracts in `pyproject.toml` (only `orchestration` imports Dagster, `transform` imports no
HTTP and no database, no circles).
"""


def module_page() -> str:
    """The page as text."""
    lines = [_HEAD, "## From the top", "", "| folder | holds |", "|---|---|"]
    stages = _stages()
    lines += [
        f"| [`{name}/`](#{name}) | {_summary(_ROOT / 'pipeline' / name / '__init__.py', end='.')} |" for name in stages
    ]
    for name in stages:
        lines += ["", f"## {name}", "", *_modules(_ROOT / "pipeline" / name)]
    lines += ["", "## omop_schema", "", *_modules(_ROOT / "omop_schema")]
    return "\n".join(lines) + "\n\n" + (Path(__file__).with_name("modules_tail.md")).read_text(encoding="utf-8")


def _stages() -> list[str]:
    """The folders in the order of the contract, from the top."""
    settings = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(each["layers"] for each in settings["contracts"] if each["name"] == _CONTRACT)
    return [name for layer in layers for name in re.split(r" [:|] ", layer) if (_ROOT / "pipeline" / name).is_dir()]


def _modules(folder: Path) -> Iterator[str]:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    yield from [*wrap(" ".join(text.split()), 120), "", "| module | holds | main interface |", "|---|---|---|"]
    for file in sorted(folder.rglob("*.py"), key=lambda path: (path.parent != folder, path)):
        if "migrations" in file.parts or file == folder / "__init__.py":
            continue
        name = file.relative_to(folder)
        shown = name.parent if file.name == "__init__.py" else name.with_suffix("")
        yield f"| `{shown}{'/' if file.name == '__init__.py' else ''}` | {_summary(file)} | {', '.join(_public(file))} |"


def _summary(file: Path, end: str = ".:") -> str:
    """The first sentence of the docstring, up to one of the characters of `end`. Raises ValueError where there is none."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{file} has no docstring: it begins by saying what belongs in it.")
    sentence = re.split(rf"(?<=[{end}])\s", " ".join(text.split("\n\n")[0].split()))[0]
    return sentence.rstrip(".:").replace("|", "\\|")


def _public(file: Path) -> list[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [f"`{name}`" for name in sorted(ast.literal_eval(node.value))]
    return []
