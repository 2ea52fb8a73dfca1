"""FHIRPath, the part that SQL on FHIR views use: from text to a syntax tree.

Here: the tree's nodes, the tokenizer, the parser, and the error that knows its position in the path.
Not here: what an expression means. `compiler` turns the tree into Python, `functions`
holds what that Python calls while it runs.

Grammar and precedence: https://hl7.org/fhirpath/N1/ (normative release), restricted to what
https://sql-on-fhir.org/ig/latest/ views and the project's mappings need. Everything else is refused here or by the
compiler, with its position, before any data is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

__all__ = [
    "Binary",
    "Call",
    "Constant",
    "Empty",
    "FhirPathError",
    "Index",
    "Literal",
    "Member",
    "Negative",
    "Node",
    "OfType",
    "This",
    "caret",
    "parse",
]


class FhirPathError(ValueError):
    """A path that cannot be used: `reason`, the whole `path`, and the 0-based `position` in it."""

    def __init__(self, reason: str, path: str, position: int) -> None:
        super().__init__(f"{reason} (position {position + 1})\n{caret(path, position)}")
        self.reason = reason
        self.path = path
        self.position = position


def caret(path: str, position: int) -> str:
    """`path`, indented, with a caret under its character at `position`, for a terminal or a log."""
    start = path.rfind("\n", 0, position) + 1
    line = path[start:].split("\n", 1)[0]
    return f"    {line}\n    {' ' * (position - start)}^"


@dataclass(frozen=True)
class Node:
    """One expression. `start` and `end` are its place in the path's text."""

    start: int
    end: int


@dataclass(frozen=True)
class Literal(Node):
    """A string, number or boolean; `kind` is `string`, `integer`, `decimal`, `boolean`, `date` or `time`.

    Dates keep FHIR's JSON form (`2024-01-31`), without FHIRPath's `@`.
    """

    value: str | int | float | bool
    kind: str


@dataclass(frozen=True)
class Empty(Node):
    """`{}`, the empty collection."""


@dataclass(frozen=True)
class This(Node):
    """`$this`."""


@dataclass(frozen=True)
class Constant(Node):
    """`%name`."""

    name: str


@dataclass(frozen=True)
class Member(Node):
    """`target.name`; without target, an element of the current context."""

    target: Node | None
    name: str


@dataclass(frozen=True)
class OfType(Node):
    """`target.ofType(type_name)`."""

    target: Node | None
    type_name: str


@dataclass(frozen=True)
class Index(Node):
    """`target[position]`."""

    target: Node
    position: Node


@dataclass(frozen=True)
class Call(Node):
    """`target.name(arguments)`; without target, applied to the current context."""

    target: Node | None
    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Negative(Node):
    """`-operand`."""

    operand: Node


@dataclass(frozen=True)
class Binary(Node):
    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


_TOKENS: Final = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<time>@T\d\d(:\d\d(:\d\d(\.\d+)?)?)?)
    | (?P<date>@\d{4}(-\d\d(-\d\d)?)?(T(\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?(Z|[+-]\d\d:\d\d)?)?)
    | (?P<decimal>\d+\.\d+)
    | (?P<integer>\d+)
    | (?P<string>'(?:[^'\\]|\\.)*')
    | (?P<quoted>`(?:[^`\\]|\\.)*`)
    | (?P<constant>%(?:[A-Za-z_]\w*|`(?:[^`\\]|\\.)*`|'(?:[^'\\]|\\.)*'))
    | (?P<variable>\$\w+)
    | (?P<name>[A-Za-z_]\w*)
    | (?P<symbol><=|>=|!=|[=<>+\-*/|&.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)

# Operators by how tightly they bind; a path (`.`, `[]`) binds tighter than all.
_BINDING: Final = {
    "or": 1,
    "and": 2,
    "in": 3,
    "contains": 3,
    "=": 4,
    "!=": 4,
    "<": 5,
    "<=": 5,
    ">": 5,
    ">=": 5,
    "|": 6,
    "+": 7,
    "-": 7,
    "&": 7,
    "*": 8,
    "/": 8,
}
_UNARY_BINDING: Final = 9
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
# What FHIRPath has and views do not: named, so that the message says more than "unexpected".
_UNSUPPORTED_OPERATORS: Final = frozenset({"xor", "implies", "div", "mod", "is", "as"})


@lru_cache(maxsize=4096)  # views have many paths in common, and are compiled for each site and export; nodes are frozen
def parse(path: str) -> Node:
    """The syntax tree of one FHIRPath expression.

    Raises FhirPathError where the text is not FHIRPath, or uses syntax outside the supported subset.
    """
    return _Parser(path).parse()


class _Parser:
    """Precedence climbing over the tokens of one path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._tokens = list(_tokenize(path))
        self._next = 0

    def parse(self) -> Node:
        node = self._expression(0)
        token = self._peek()
        if token.kind == "end":
            return node
        if token.text in _UNSUPPORTED_OPERATORS:
            raise self._error(f"the operator '{token.text}' is not supported in views", token)
        raise self._error(f"unexpected {_shown(token)} after the end of the expression", token)

    def _expression(self, floor: int) -> Node:
        left = self._unary()
        while True:
            token = self._peek()
            binding = _BINDING.get(token.text, 0) if token.kind in {"symbol", "name"} else 0
            if binding <= floor:
                return left
            self._take()
            right = self._expression(binding)
            left = Binary(left.start, right.end, token.text, left, right)

    def _unary(self) -> Node:
        token = self._peek()
        if token.kind == "symbol" and token.text in {"-", "+"}:
            self._take()
            operand = self._expression(_UNARY_BINDING)
            return operand if token.text == "+" else Negative(token.start, operand.end, operand)
        return self._postfix(self._primary())

    def _postfix(self, node: Node) -> Node:
        while True:
            token = self._peek()
            if token.text == "." and token.kind == "symbol":
                self._take()
                node = self._step(node)
            elif token.text == "[" and token.kind == "symbol":
                self._take()
                position = self._expression(0)
                node = Index(node.start, self._expect("]").end, node, position)
            else:
                return node

    def _step(self, target: Node | None) -> Node:
        """A name or a call; `target` is what stands before the dot."""
        token = self._take()
        start = target.start if target else token.start
        if token.kind == "variable" and token.text == "$this" and target is None:
            return This(token.start, token.end)
        if token.kind not in {"name", "quoted"}:
            raise self._error(f"expected the name of an element or function, found {_shown(token)}", token)
        name = _unquote(token.text) if token.kind == "quoted" else token.text
        if token.kind == "quoted" or self._peek().text != "(":
            return Member(start, token.end, target, name)
        self._take()
        if name == "ofType":
            return self._of_type(target, start)
        arguments = self._arguments()
        return Call(start, self._expect(")").end, target, name, arguments)

    def _of_type(self, target: Node | None, start: int) -> Node:
        token = self._take()
        if token.text in {"FHIR", "System"} and self._peek().text == ".":
            self._take()
            token = self._take()
        if token.kind not in {"name", "quoted"}:
            raise self._error(f"ofType() needs the name of a FHIR type, found {_shown(token)}", token)
        type_name = _unquote(token.text) if token.kind == "quoted" else token.text
        return OfType(start, self._expect(")").end, target, type_name)

    def _arguments(self) -> tuple[Node, ...]:
        if self._peek().text == ")":
            return ()
        arguments = [self._expression(0)]
        while self._peek().text == ",":
            self._take()
            arguments.append(self._expression(0))
        return tuple(arguments)

    def _primary(self) -> Node:
        token = self._peek()
        if token.kind == "symbol" and token.text in {"(", "{"}:
            return self._enclosed()
        if token.kind == "name" and token.text in {"true", "false"}:
            self._take()
            return Literal(token.start, token.end, token.text == "true", "boolean")
        if token.kind in {"string", "integer", "decimal", "date", "time"}:
            self._take()
            return Literal(token.start, token.end, _literal(token), token.kind)
        if token.kind == "constant":
            self._take()
            name = token.text[1:]
            return Constant(token.start, token.end, name if name[0] not in "`'" else _unquote(name))
        if token.kind == "variable" and token.text != "$this":
            raise self._error(f"{token.text} is not supported in views; only $this is", token)
        if token.kind == "end":
            raise self._error("the path ends where an expression is expected", token)
        return self._step(None)

    def _enclosed(self) -> Node:
        opening = self._take()
        if opening.text == "{":
            return Empty(opening.start, self._expect("}").end)
        node = self._expression(0)
        return replace(node, start=opening.start, end=self._expect(")").end)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind != "end":
            self._next += 1
        return token

    def _expect(self, symbol: str) -> _Token:
        token = self._take()
        if token.text != symbol:
            raise self._error(f"expected '{symbol}', found {_shown(token)}", token)
        return token

    def _error(self, reason: str, token: _Token) -> FhirPathError:
        return FhirPathError(reason, self._path, token.start)


def _tokenize(path: str) -> Iterator[_Token]:
    position = 0
    while position < len(path):
        match = _TOKENS.match(path, position)
        if match is None:
            text = path[position]
            reason = "the text that begins here has no closing quote" if text in "'`" else f"'{text}' is not FHIRPath"
            raise FhirPathError(reason, path, position)
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match.group(), position)
        position = match.end()
    yield _Token("end", "", len(path))


def _literal(token: _Token) -> str | int | float:
    if token.kind == "string":
        return _unquote(token.text)
    if token.kind == "integer":
        return int(token.text)
    if token.kind == "decimal":
        return float(token.text)
    return token.text[2:] if token.kind == "time" else token.text[1:].removesuffix("T")


def _unquote(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        escape = match.group(1)
        return chr(int(escape[1:], 16)) if len(escape) == 5 else _ESCAPES.get(escape, escape)

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|.)", plain, text[1:-1], flags=re.DOTALL)


def _shown(token: _Token) -> str:
    return "the end of the path" if token.kind == "end" else f"'{token.text}'"
