"""FHIRPath of views: outside the subset, or to elements that FHIR R4 does not have."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import yaml

from pipeline.core.errors import MappingError
from pipeline.sql_on_fhir.fhirpath import FhirPathError, parse
from pipeline.sql_on_fhir.r4 import Types, element_problems, elements_of
from pipeline.sql_on_fhir.view_definition import compile_columns
from pipeline.transform.mapping.mappings import ResourceMapping, ViewMapping
from pipeline.transform.mapping.overlays import entries
from pipeline.transform.mapping.sources import MappingProblem, line_of, node_at, plain
from pipeline.transform.mapping_check.names import unknown

__all__ = ["PathCheck"]


class PathCheck:
    """The paths of one mapping. `column_types`: the types that the pipeline converts, beside FHIR's own."""

    def __init__(self, mapping: ResourceMapping, node: yaml.Node, column_types: Collection[str]) -> None:
        self.mapping = mapping
        self.node = node
        self.column_types = column_types

    def of_view(self, number: int, view: ViewMapping) -> Iterator[MappingProblem]:
        node = node_at(self.node, ["views", number])
        pairs = entries(node)
        shared = {"resource": self.mapping.resource, "name": view.name}
        if "constant" in pairs:
            shared["constant"] = plain(pairs["constant"][1])
        root: Types = frozenset({self.mapping.resource}) if elements_of(self.mapping.resource) else None
        found: list[MappingProblem] = []
        for condition in pairs["where"][1].value if "where" in pairs else ():
            path = entries(condition).get("path")
            if path:
                text = str(path[1].value)
                select = [{"column": [{"name": "x", "path": "id"}]}]
                found += self._path(path[0], text, root, {**shared, "where": [{"path": text}], "select": select})
        if "select" in pairs:
            found += self._selects(pairs["select"][1], shared, root, lambda select: [select])
        if not found:  # what no single path shows: names that are there twice, parts of a unionAll that differ
            found += self._compiled(node, {**shared, **dict(view.definition)})
        yield from found

    def _selects(
        self, selects: yaml.Node, shared: Mapping[str, Any], this: Types, within: Callable[[Any], list[Any]]
    ) -> Iterator[MappingProblem]:
        """Each path alone, in the loops that it stands in; `within` puts a select into them."""
        for select in selects.value if isinstance(selects, yaml.SequenceNode) else ():
            pairs = entries(select)
            inner, wrapped = this, within
            for kind in ("forEach", "forEachOrNull", "repeat"):
                if kind in pairs:
                    key, value = pairs[kind]
                    texts = [str(item.value) for item in value.value] if kind == "repeat" else [str(value.value)]
                    loop: dict[str, Any] = {kind: texts if kind == "repeat" else texts[0]}
                    probe = within({**loop, "column": [{"name": "x", "path": "$this"}]})
                    inner = _types(texts[0], self.mapping.resource, this)
                    for text in texts:  # `repeat` continues from what its other paths lead to
                        at = inner if kind == "repeat" and text != texts[0] else this
                        yield from self._path(key, text, at, {**shared, "select": probe})
                    wrapped = _nested(loop, within)
            for column in pairs["column"][1].value if "column" in pairs else ():
                path = entries(column).get("path")
                if path:
                    view = {**shared, "select": wrapped({"column": [plain(column)]})}
                    yield from self._path(column, str(path[1].value), inner, view)
                    yield from self._type(column)
            for nested in ("select", "unionAll"):
                if nested in pairs:
                    yield from self._selects(pairs[nested][1], shared, inner, wrapped)

    def _path(self, node: yaml.Node, text: str, this: Types, view: Mapping[str, Any]) -> Iterator[MappingProblem]:
        compiled = list(self._compiled(node, view, text))
        yield from compiled
        if not compiled:
            for problem in element_problems(parse(text), self.mapping.resource, this)[0]:
                yield MappingProblem(*line_of(node), f"{text}: {problem.reason} (position {problem.position + 1})")

    def _type(self, column: yaml.Node) -> Iterator[MappingProblem]:
        """A type that begins with a capital letter and has no converter would give objects, which no column holds."""
        pair = entries(column).get("type")
        if pair and pair[1].value[:1].isupper() and pair[1].value not in self.column_types:
            yield MappingProblem(*line_of(column), unknown("type", str(pair[1].value), self.column_types))

    def _compiled(self, node: yaml.Node, view: Mapping[str, Any], text: str = "") -> Iterator[MappingProblem]:
        try:
            compile_columns(dict(view), dict.fromkeys(self.column_types, _unchanged))
        except MappingError as error:
            cause = error.__cause__
            if isinstance(cause, FhirPathError):
                message = f"{text or cause.path}: {cause.reason} (position {cause.position + 1})"
            else:
                message = re.sub(r"^View \S+[:,] ", "", error.message.splitlines()[0])
            yield MappingProblem(*line_of(node), message)


def _types(text: str, resource: str, this: Types) -> Types:
    try:
        return element_problems(parse(text), resource, this)[1]
    except FhirPathError:
        return None


def _nested(loop: Mapping[str, Any], within: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda select: within({**loop, "select": [select]})


def _unchanged(value: Any) -> Any:
    return value
