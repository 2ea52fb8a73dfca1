"""Hash of code by what it does: of a module and all modules of the project that it imports, without comments and docstrings.

Only the standard library is needed, and the value is the same on every Python that the project supports.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["code_hash", "import_closure", "raw_hash"]

_PACKAGES = ("pipeline", "omop_schema")


def code_hash(root: Path, entries: Iterable[str], *, alone: Iterable[str] = (), data: Iterable[Path] = ()) -> str:
    """Hexadecimal SHA-256 of what the modules `entries` do, with their import closure; of the modules `alone`
    without theirs; and of the files `data`.

    `root`: the folder above the project's packages. Names and imports inside functions count; a comment, a docstring and
    the layout of lines change nothing.
    """
    digest = hashlib.sha256()
    modules = _closure(root, entries) | {name: _tree(_module_file(root, name)) for name in alone}
    for name, tree in sorted(modules.items()):
        digest.update(f"\0{name}\0{_normal(tree)}".encode())
    for file in sorted(data):
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def import_closure(root: Path, entries: Iterable[str]) -> dict[str, Path]:
    """Module → file: the entries, what they import of the project, what that imports, and the packages above, by name."""
    return {name: _module_file(root, name) for name in sorted(_closure(root, entries))}


def _closure(root: Path, entries: Iterable[str]) -> dict[str, ast.Module]:
    """Module → its tree: each file is parsed once, which is most of the work of a hash."""
    found: dict[str, ast.Module] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _tree(_module_file(root, name))
        waiting += _imported(root, name, found[name])
        waiting += [name[:end] for end, character in enumerate(name) if character == "."]
    return found


def raw_hash(root: Path, data: Iterable[Path] = ()) -> str:
    """Hexadecimal SHA-256 of the bytes of all of the project's modules and of `data`: where it is the same, so is every
    `code_hash`. It takes a hundredth of the time."""
    digest = hashlib.sha256()
    for file in sorted([*(file for name in _PACKAGES for file in (root / name).rglob("*.py")), *data]):
        digest.update(f"\0{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def _module_file(root: Path, name: str) -> Path:
    file = _file(root, name)
    if file is None:
        raise ModuleNotFoundError(f"There is no module {name} under {root}.")
    return file


def _file(root: Path, name: str) -> Path | None:
    place = root.joinpath(*name.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if file.is_file():
            return file
    return None


def _imported(root: Path, importer: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in _PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            module = _named_module(root, importer, node)
            if module.split(".")[0] in _PACKAGES:
                names = [f"{module}.{alias.name}" for alias in node.names]
                yield from (name if _file(root, name) else module for name in names)


def _named_module(root: Path, importer: str, node: ast.ImportFrom) -> str:
    """What stands behind `from`; one dot is the importer's package, each further one the package above."""
    if not node.level:
        return node.module or ""
    parts = importer.split(".")
    is_package = _module_file(root, importer).name == "__init__.py"
    package = parts[: len(parts) - node.level + is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


def _normal(tree: ast.Module) -> str:
    """The module's code as the parser writes it again, without docstrings. The tree is changed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = _without_docstring(node.body)
    return ast.unparse(_Texts().visit(tree))


class _Texts(ast.NodeTransformer):
    """Texts in ASCII, and f-strings as calls: how they are parsed and written again differs between versions of Python.

    Which characters are printable depends on its version of Unicode; some give an empty text behind a nested field.
    """

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if not isinstance(node.value, str):
            return node
        return ast.Constant(node.value.encode("unicode_escape").decode("ascii"))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Call:
        parts = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        return _call("f", [self.visit(part) for part in parts])

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.Call:
        layout = [self.visit(node.format_spec)] if node.format_spec else []
        return _call("value", [self.visit(node.value), ast.Constant(node.conversion), *layout])


def _call(name: str, arguments: list[ast.expr]) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), arguments, [])


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return (body[1:] or [ast.Pass()]) if is_text else body
