"""Which names the code of the derive functions can ask for, found in the code itself.

A derive function asks for columns, value maps and constants by their names, so a name that stands nowhere in its
code, in what it calls, or in the constants that it uses, cannot be asked for. The reverse does not hold (a text may be
something else), so use this only where too many names do no harm: to tell a mistyped column from one that a rule
reads, and to leave out of a fingerprint what certainly has no part in it. A formatted text (`f"{name}_codes"`) stands
for the names that it can give with the other texts.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["Texts", "texts_of_pipeline", "texts_of_rules"]

_TRANSFORM = Path(__file__).resolve().parents[1]
#: Modules of the package that turn views into rows without being derive functions.
_SHARED = ("events.py", "lines.py", "routing.py", "plan.py")


@dataclass(frozen=True)
class Texts:
    """Every text of some code."""

    plain: frozenset[str]
    formatted: frozenset[str]

    def has(self, name: str) -> bool:
        if name in self.plain:
            return True
        matches = (pattern.fullmatch(name) for pattern in self._patterns)
        return any(match is not None and self.plain.issuperset(match.groups()) for match in matches)

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern) for pattern in self.formatted]


@lru_cache(maxsize=256)
def texts_of_rules(names: tuple[str, ...] | None) -> Texts:
    """The texts of the derive functions of these names and of what they call; None: of all. Unknown ones have none."""
    from pipeline.transform.rules import DERIVATIONS

    functions = [DERIVATIONS[name] for name in (DERIVATIONS if names is None else names) if name in DERIVATIONS]
    return _joined(_reached(functions))


@cache
def texts_of_pipeline() -> Texts:
    """The texts of the modules that every view's rows go through."""
    return _joined(_texts(ast.parse((_TRANSFORM / name).read_text(encoding="utf-8"))) for name in _SHARED)


def _joined(parts: Iterable[Texts]) -> Texts:
    found = list(parts)
    return Texts(
        frozenset().union(*(part.plain for part in found)), frozenset().union(*(part.formatted for part in found))
    )


def _texts(tree: ast.AST) -> Texts:
    plain: set[str] = set()
    formatted: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            plain.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            pattern = "".join(
                re.escape(str(piece.value)) if isinstance(piece, ast.Constant) else r"(\w+)" for piece in node.values
            )
            formatted.add(pattern)
    return Texts(frozenset(plain), frozenset(formatted))


def _reached(functions: Sequence[Callable[..., Any]]) -> Iterator[Texts]:
    """The texts of functions, of the project's functions that they name, and of the constants of their modules."""
    seen: set[int] = set()
    todo: list[Any] = [*functions]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, FunctionType):
            texts, named = _read(thing)
            yield texts
            todo += named
        else:
            yield Texts(frozenset(_texts_in(thing)), frozenset())


@cache
def _read(function: FunctionType) -> tuple[Texts, tuple[Any, ...]]:
    """A function's own texts, and what of the project it names."""
    tree = _tree(function)
    return _texts(tree), tuple(value for value in _globals_of(function, tree) if _is_ours(value))


def _tree(function: FunctionType) -> ast.AST:
    inner = inspect.unwrap(function)
    found = _functions_by_line(inner.__code__.co_filename).get(inner.__code__.co_firstlineno)
    return found or ast.parse(textwrap.dedent(inspect.getsource(function)))  # such as a lambda


@cache
def _functions_by_line(file: str) -> dict[int, ast.AST]:
    """Functions and methods of a module by their first lines, decorators included: one reading of the file for all."""
    found: dict[int, ast.AST] = {}
    todo: list[ast.stmt] = ast.parse(Path(file).read_text(encoding="utf-8")).body
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ClassDef):
            todo += node.body
        elif isinstance(node, ast.FunctionDef):
            found[min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])] = node
    return found


def _globals_of(function: FunctionType, tree: ast.AST) -> Iterator[Any]:
    namespace: Mapping[str, Any] = function.__globals__
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in namespace:
            yield namespace[node.id]
        elif isinstance(node, ast.Attribute):
            module = namespace.get(node.value.id) if isinstance(node.value, ast.Name) else None
            owners = (module if isinstance(module, ModuleType) else None, namespace.get("Derivation"))
            yield from (found for found in (getattr(owner, node.attr, None) for owner in owners) if found is not None)


def _is_ours(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return value.__module__.startswith("pipeline.")
    return isinstance(value, (str, tuple, list, dict, set, frozenset, Mapping))


def _texts_in(value: Any) -> Iterator[str]:
    """The texts in a constant."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts_in(key)
            yield from _texts_in(item)
    elif isinstance(value, (tuple, list, set, frozenset)):
        for item in value:
            yield from _texts_in(item)
