"""What the project has once: a second copy of one of these, anywhere in its source, fails here."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from omop_schema.exports import ExportKind, ExportState

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipeline", "omop_schema", "tools", "benchmarks")
STATES = frozenset(ExportState)
KINDS = frozenset(ExportKind)

Found = Iterator[int]
Node = TypeVar("Node", bound=ast.AST)


def nodes_of(tree: ast.AST, kind: type[Node]) -> Iterator[Node]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def renames_and_syncs(tree: ast.AST) -> Found:
    """Path.rename and Path.replace take one path; polars' and str's take a mapping, or two arguments."""
    for call in nodes_of(tree, ast.Call):
        if not isinstance(call.func, ast.Attribute):
            continue
        name, owner = call.func.attr, ast.unparse(call.func.value)
        of_path = len(call.args) == 1 and not call.keywords and not is_mapping(call.args[0])
        if (
            name in ("fsync", "fdatasync")
            or (name in ("rename", "replace", "renames") and (owner == "os" or of_path))
            or (name == "move" and owner == "shutil")
        ):
            yield call.lineno


def is_mapping(node: ast.AST) -> bool:
    union = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
    return union or isinstance(node, ast.Dict | ast.DictComp | ast.Lambda)


def byte_order_marks(tree: ast.AST) -> Found:
    for constant in nodes_of(tree, ast.Constant):
        if constant.value in (b"\xef\xbb\xbf", "\ufeff"):
            yield constant.lineno
    for attribute in nodes_of(tree, ast.Attribute):
        if attribute.attr.startswith("BOM_UTF"):
            yield attribute.lineno


def readers_of_issues(tree: ast.AST) -> Found:
    """`outcome.get("issue")`, `outcome["issue"]`, a class with a field `issue`, or the name of the resource itself."""
    for call in nodes_of(tree, ast.Call):
        if re.match(r".*\.get\('issue'", ast.unparse(call), re.DOTALL):
            yield call.lineno
    for item in nodes_of(tree, ast.Subscript):
        if isinstance(item.slice, ast.Constant) and item.slice.value == "issue":
            yield item.lineno
    for field in nodes_of(tree, ast.AnnAssign):
        if isinstance(field.target, ast.Name) and field.target.id == "issue":
            yield field.lineno
    for constant in nodes_of(tree, ast.Constant):
        if constant.value == "OperationOutcome":
            yield constant.lineno


def trimmed_bases(tree: ast.AST) -> Found:
    """A base URL whose last slash is taken off: the setting has none (`SiteSettings.fhir_url`)."""
    trimming = re.compile(r"(.*fhir_url.*|\w*base\w*)\.(rstrip|removesuffix)\('/'\)")
    for call in nodes_of(tree, ast.Call):
        if trimming.fullmatch(ast.unparse(call)):
            yield call.lineno


def reads_after_a_seek(tree: ast.AST) -> Found:
    """A function that seeks to a place and then reads a length: `landing/reading.py` does it, and says what is missing."""
    for function in nodes_of(tree, ast.FunctionDef):
        calls = [call for call in nodes_of(function, ast.Call) if isinstance(call.func, ast.Attribute) and call.args]
        seeks = [call for call in calls if call.func.attr == "seek" and not isinstance(call.args[0], ast.Constant)]  # type: ignore[attr-defined]
        if seeks and any(call.func.attr in ("read", "readinto") for call in calls):  # type: ignore[attr-defined]
            yield seeks[0].lineno


def bare_states(tree: ast.AST) -> Found:
    """A state or kind of an export as a text: compared with one, given for one, or in SQL that Python makes."""
    words = STATES | KINDS
    for comparison in nodes_of(tree, ast.Compare):
        left, sides = comparison.left, [*comparison.comparators]
        texts = {node.value for side in sides for node in nodes_of(side, ast.Constant)}
        if isinstance(left, ast.Attribute | ast.Name) and ast.unparse(left).rpartition(".")[2] in ("state", "kind"):
            own = STATES if ast.unparse(left).endswith("state") else KINDS
            if texts & own and ast.unparse(left) not in NOT_OF_AN_EXPORT:
                yield comparison.lineno
    in_sql = re.compile(r"(?<!search\.)\b(?:state|kind) (?:=|<>|IN|NOT IN) \(?((?:'[a-z]+'(?:, )?)+)")
    for constant in nodes_of(tree, ast.Constant):
        if isinstance(constant.value, str):
            found = {word for match in in_sql.findall(constant.value) for word in re.findall("[a-z]+", match)}
            if found & words:
                yield constant.lineno


#: Variables of these names that are about something else: a finding, a search of a crawl, the server, a group.
NOT_OF_AN_EXPORT = {"finding.state", "search.state", "found.state", "state", "self.state"}


def lineage_columns(tree: ast.AST) -> Found:
    """A list of names that is that of the lineage tables."""
    columns = ["row_id", "surrogate_id", "row_key", "export_id"]
    for text in nodes_of(tree, ast.Constant):
        if isinstance(text.value, str) and ", ".join(columns) in text.value:
            yield text.lineno
    for node in ast.walk(tree):
        children = getattr(node, "elts", None) or getattr(node, "args", None)
        if isinstance(children, list):
            names = [child.value for child in children if isinstance(child, ast.Constant)]
            if names[: len(columns)] == columns:
                yield children[0].lineno


CASES: dict[str, tuple[Callable[[ast.AST], Found], dict[str, str]]] = {
    "atomic write": (renames_and_syncs, {"pipeline/core/files.py": "the one place"}),
    "byte order mark": (byte_order_marks, {"pipeline/fhir/lines.py": "the one place"}),
    "issues of an OperationOutcome": (
        readers_of_issues,
        {
            "pipeline/fhir/operation_outcome.py": "the one place",
            "pipeline/sandbox/": "the simulated site writes them",
        },
    ),
    "base URL, whose last slash the settings take off": (trimmed_bases, {}),
    "line at a place": (
        reads_after_a_seek,
        {
            "pipeline/landing/reading.py": "the one place",
            "pipeline/landing/partial.py": "a file that is still being downloaded, and its end",
        },
    ),
    "states and kinds of exports": (
        bare_states,
        {
            "omop_schema/etl.py": "states of a crawl's searches",
            "omop_schema/migrations/": "revisions keep what they wrote",
        },
    ),
    "columns of lineage": (
        lineage_columns,
        {"omop_schema/etl.py": "the one place", "omop_schema/migrations/": "revisions keep what they wrote"},
    ),
}


def sources() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


@pytest.mark.parametrize("what", CASES)
def test_there_is_one_of_each(what: str) -> None:
    finder, places = CASES[what]
    found: list[str] = []
    used: set[str] = set()
    for name, source in sources():
        lines = list(finder(ast.parse(source)))
        place = next((place for place in places if name.startswith(place)), None)
        if lines and place is not None:
            used.add(place)
        elif lines:
            found += [f"{name}:{line}" for line in lines]
    assert found == [], f"a second {what}; the one is in {next(iter(places), None)}"
    kept = {place for place, reason in places.items() if not reason.startswith("revisions")}
    assert kept - used == set(), "exceptions that nothing needs"


LONGEST_FUNCTION = 60

#: Longer functions, each with its reason.
LONGER_FUNCTIONS = {
    "omop_schema/migrations/versions/0001_etl_schema.py: upgrade": "a revision is one list of statements, never changed",
}


def test_functions_are_short() -> None:
    """Signature, docstring and body. Complexity and branches are ruff's (pyproject.toml)."""
    found = {
        f"{name}: {function.name}"
        for name, source in sources()
        if not name.startswith("benchmarks/")
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and (function.end_lineno or 0) - function.lineno + 1 > LONGEST_FUNCTION
    }
    assert found - LONGER_FUNCTIONS.keys() == set()
    assert LONGER_FUNCTIONS.keys() - found == set(), "exceptions that nothing needs"


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("atomic write", "import os\nos.replace('a', 'b')"),
        ("atomic write", "temporary.replace(path)"),
        ("atomic write", "temporary.rename(self._folder / 'name')"),
        ("atomic write", "os.fsync(3)"),
        ("byte order mark", "body.removeprefix(b'\\xef\\xbb\\xbf')"),
        ("byte order mark", "codecs.BOM_UTF8"),
        ("issues of an OperationOutcome", "outcome.get('issue')"),
        ("issues of an OperationOutcome", "class Outcome:\n    issue: list[Issue] = []"),
        ("base URL, whose last slash the settings take off", "(site.fhir_url or '').rstrip('/')"),
        ("base URL, whose last slash the settings take off", "base.rstrip('/')"),
        ("line at a place", "def f(stream, place):\n    stream.seek(place)\n    return stream.read(10)"),
        ("states and kinds of exports", "job.state == 'running'"),
        ("states and kinds of exports", "job.kind in ('bulk', 'folder')"),
        ("states and kinds of exports", "q = \"SELECT 1 FROM export_job WHERE state IN ('landed', 'published')\""),
        ("columns of lineage", "q = 'INSERT INTO x (row_id, surrogate_id, row_key, export_id)'"),
        ("columns of lineage", "rows.select('row_id', 'surrogate_id', 'row_key', 'export_id')"),
    ],
)
def test_a_second_copy_is_found(what: str, source: str) -> None:
    assert list(CASES[what][0](ast.parse(source)))


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("atomic write", "frame.rename({'a': 'b'})"),
        ("atomic write", "text.replace('a', 'b')"),
        ("atomic write", "when.replace(tzinfo=UTC)"),
        ("line at a place", "def f(buffer):\n    buffer.seek(0)\n    return buffer.read(10)"),
        ("states and kinds of exports", "finding.state == 'failed'"),
        ("states and kinds of exports", "q = \"WHERE search.state = 'complete'\""),
    ],
)
def test_what_only_looks_like_a_copy_is_not_found(what: str, source: str) -> None:
    assert not list(CASES[what][0](ast.parse(source)))
