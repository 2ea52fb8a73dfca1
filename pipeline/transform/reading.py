"""Reading: the chosen lines of a chunk → rows of the views, column by column, and what is wrong with the others.

The only Python that runs for every line. Nearly all lines are as usual (JSON of the file's type, with an id, nothing to
look at closely) and take the short way through `_read_usual`; `_read_closely` says what is wrong with the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from pipeline.core.line_codes import RejectionCode
from pipeline.fhir.lines import ERASED, PERSON_ERASED, is_erased
from pipeline.fhir.ndjson import texts_of
from pipeline.fhir.white_space import lines_with_white_space, without_white_space
from pipeline.sql_on_fhir import exact_numbers
from pipeline.sql_on_fhir.view_definition import Append, Problem
from pipeline.transform.column_names import exact
from pipeline.transform.content import Contents
from pipeline.transform.mapping.mappings import ResourceMapping
from pipeline.transform.plan import ResourcePlan, Worker
from pipeline.transform.salvage import CONVERSION_ERRORS, salvaged

__all__ = ["ChunkReader", "ReadResources", "Rejected"]

#: What may change the meaning of a resource, at any depth (f2o-063).
_MODIFIERS = ('"modifierExtension"', '"implicitRules"')
_NUL = "\\u0000"


@dataclass
class Rejected:
    """A line that is not a resource, or one that the views cannot be run on."""

    index: int
    stage: str
    code: RejectionCode
    path: str | None
    reason: str
    resource_type: str | None = None
    resource_id: str | None = None


@dataclass
class ReadResources:
    """Rows of one resource type in a chunk: for each view one list, a row after the other, each ended by its line's index
    (`pipeline.sql_on_fhir.view_definition.CompiledViews`)."""

    plan: ResourcePlan
    resource_ids: list[str] = field(default_factory=list)
    views: list[list[Any]] = field(init=False)
    #: whether a number may be an ExactNumber
    has_long_numbers: bool = False
    #: index, and why a part of that line was left out
    left_out: list[tuple[int, Problem]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views = [[] for _ in self.plan.views]
        self.append: Append = self.plan.bind(self.views)

    def cut_back(self, index: int) -> None:
        """Drop the rows that a failed resource left behind."""
        for view, rows in zip(self.plan.views, self.views, strict=True):
            while rows and rows[-1] == index:
                del rows[-len(view.columns) - 1 :]

    def frame(self, number: int) -> pl.DataFrame:
        """The rows of a view: index (Int32) and its columns, with `<column>_exact` where a double cannot hold a number."""
        view, rows = self.plan.views[number], self.views[number]
        width = len(view.columns) + 1
        columns = [pl.Series("index", rows[width - 1 :: width], dtype=pl.Int32)]
        for place, (column, dtype) in enumerate(zip(view.columns, view.dtypes, strict=True)):
            values = rows[place::width]
            if column.name != "resource_id":  # views of rows without elements of their own select only the id
                columns.append(_series(column.name, values, dtype))
            if self.has_long_numbers and dtype == pl.Float64:
                texts = pl.Series(exact(column.name), map(exact_numbers.text_of, values), dtype=pl.String)
                if texts.null_count() < len(texts):
                    columns.append(texts)
        return pl.DataFrame(columns)


def _series(name: str, values: list[Any], dtype: pl.DataType) -> pl.Series:
    """What `pl.Series` makes of the values, sooner where polars would look at each: without any value, and for lists."""
    if isinstance(dtype, pl.List):
        items = pl.DataFrame(
            {
                "row": pl.Series([row for row, found in enumerate(values) for _ in found], dtype=pl.UInt32),
                name: pl.Series([item for found in values for item in found], dtype=dtype.inner),
            }
        )
        rows = pl.DataFrame({"row": pl.int_range(len(values), dtype=pl.UInt32, eager=True)})
        lists = rows.join(
            items.group_by("row", maintain_order=True).agg(name), on="row", how="left", maintain_order="left"
        )
        return lists[name].fill_null(pl.Series([[]], dtype=dtype))
    if values and values[0] is None and not any(values) and values.count(None) == len(values):
        return pl.repeat(None, len(values), dtype=dtype, eager=True).alias(name)
    return pl.Series(name, values, dtype=dtype)


class ChunkReader:
    """Reads the chosen lines (indexes of `raws`) of one chunk when it is made.

    `contents` notes the content of each line that can be read.
    """

    def __init__(
        self,
        worker: Worker,
        resource_type: str,
        raws: list[bytes],
        chosen: list[int],
        contents: Contents,
    ) -> None:
        self._worker = worker
        self._resource_type = resource_type
        self._contents = contents
        self._limit = worker.plan.site.max_line_bytes
        self._raws = raws
        #: by resource type
        self.types: dict[str, ReadResources] = {}
        self.rejected: list[Rejected] = []
        #: index → (resource type, id or None, reason)
        self.excluded: dict[int, tuple[str, str | None, str]] = {}
        self._search(chosen)
        self._read(resource_type, chosen)

    def _search(self, chosen: list[int]) -> None:
        """Find the few lines that need a closer look, by searches over all of them at once."""
        raws = self._raws if len(chosen) == len(self._raws) else [self._raws[index] for index in chosen]
        texts = texts_of(raws)
        # Each text by itself: one expression for both is ten times as slow.
        modified = texts.str.contains(_MODIFIERS[0], literal=True) | texts.str.contains(_MODIFIERS[1], literal=True)
        with_nul = texts.str.contains(_NUL, literal=True)
        self._long_numbers = {chosen[place] for place in exact_numbers.lines_with_long_numbers(texts)}
        self._modified = {chosen[place] for place in modified.arg_true()}
        self._with_nul = {chosen[place] for place in with_nul.arg_true()}
        self._spaced = {chosen[place] for place in lines_with_white_space(texts)}
        self._odd = self._long_numbers | self._modified | self._with_nul
        if max(map(len, raws)) > self._limit:
            self._odd.update(index for index in chosen if len(self._raws[index]) > self._limit)

    def _read(self, resource_type: str, chosen: list[int]) -> None:
        resources = self._resources_of(resource_type)
        if resources is None:
            for index in chosen:
                self._read_closely(index)
            return
        raws, odd, loads, append, ids = self._raws, self._odd, orjson.loads, resources.append, resources.resource_ids
        note, spaced = self._contents.note, self._spaced
        for index in chosen:
            if index not in odd:
                try:
                    raw = raws[index]
                    landed = resource = loads(raw)
                    if index in spaced:
                        resource = without_white_space(landed)
                    resource_id = resource["id"]
                    if resource["resourceType"] == resource_type and resource_id.__class__ is str and resource_id:
                        append(resource, index)
                        ids.append(resource_id)
                        note(index, landed, raw, has_long_numbers=False)
                        continue
                except CONVERSION_ERRORS:
                    resources.cut_back(index)
            self._read_closely(index)

    def _resources_of(self, resource_type: str) -> ReadResources | None:
        """Where the rows of a type go; None for a type without a mapping."""
        known = self.types.get(resource_type)
        if known is None:
            plan = self._worker.resource_plan(resource_type)
            if plan is None:
                return None
            known = self.types[resource_type] = ReadResources(plan)
        return known

    # --- lines that are not as usual --------------------------------------------------------------------------------

    def _read_closely(self, index: int) -> None:
        raw = self._raws[index]
        if len(raw) > self._limit and not is_erased(raw):
            self._reject(
                index, "parse", RejectionCode.LINE_TOO_LONG, None, f"the line is longer than {self._limit:,} bytes"
            )
            return
        try:
            resource = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            if "limit" in error.msg:  # of the depth that is read
                self._reject_nested(index, raw)
            else:
                self._reject(index, "parse", *_json_problem(raw, error))
            return
        landed = resource
        try:
            if index in self._spaced:
                resource = without_white_space(landed)
            resources = self._resources_for(index, resource)
            if isinstance(landed, dict):
                self._contents.note(index, landed, raw, has_long_numbers=index in self._long_numbers)
            if resources is None:
                return
            if index in self._long_numbers:  # read a second time for the digits that a double cannot hold
                resource = exact_numbers.loads(raw)
                resource = without_white_space(resource) if index in self._spaced else resource
                resources.has_long_numbers = True
        except RecursionError:
            self._reject_nested(index, raw)
            return
        self._read_resource(index, resource, resources)

    def _reject_nested(self, index: int, raw: bytes) -> None:
        self._reject(index, "parse", RejectionCode.NESTED_TOO_DEEPLY, None, "the elements are nested too deeply")
        self.rejected[-1].resource_type, self.rejected[-1].resource_id = _type_and_id(raw)

    def _read_resource(self, index: int, resource: dict[str, Any], resources: ReadResources) -> None:
        """A resource with a mapping: its rows, or what is wrong with it."""
        if index in self._with_nul and (path := _path_of_nul(resource, resource["resourceType"])):
            self._reject(index, "parse", RejectionCode.NUL_CHARACTER, path, "a text holds the character NUL", resource)
            return
        if index in self._modified and (unknown := _unknown_modifier(resource, resources.plan.mapping)):
            path, url = unknown
            self._reject(
                index, "view", RejectionCode.MODIFIER_UNKNOWN, path, f"the mapping does not know {url}", resource
            )
            return
        try:
            resources.append(resource, index)
        except CONVERSION_ERRORS:
            resources.cut_back(index)
            found = salvaged(resource, index, resources.plan)
            if found.problem:
                problem = found.problem
                self._reject(index, "view", problem.code, problem.path, problem.reason, resource)
                return
            for rows, more in zip(resources.views, found.rows, strict=True):
                rows.extend(more)
            resources.left_out.extend((index, one) for one in found.left_out)
        resources.resource_ids.append(resource["id"])

    def _resources_for(self, index: int, resource: Any) -> ReadResources | None:
        """Where a resource's rows go; None (and an outcome) for what is not a resource or has no mapping."""
        resource_type = resource.get("resourceType") if isinstance(resource, dict) else None
        if not isinstance(resource_type, str) or not resource_type.isalpha() or len(resource_type) > 64:
            if resource == ERASED:
                self.excluded[index] = (self._resource_type, None, PERSON_ERASED)
                return None
            self._reject(index, "parse", RejectionCode.NOT_A_RESOURCE, "resourceType", "the line has no resourceType")
            return None
        resource_id = resource.get("id")
        known = self._resources_of(resource_type)
        if known is None:
            reason = self._worker.plan.mappings.unmapped_types.get(resource_type, "no_mapping")
            named = resource_id if isinstance(resource_id, str) and resource_id else None
            self.excluded[index] = (resource_type, named, reason)
            return None
        if not isinstance(resource_id, str) or not resource_id:
            self._reject(
                index, "parse", RejectionCode.ID_MISSING, f"{resource_type}.id", "the resource has no id", resource
            )
            return None
        return known

    def _reject(
        self,
        index: int,
        stage: str,
        code: RejectionCode,
        path: str | None,
        reason: str,
        resource: dict[str, Any] | None = None,
    ) -> None:
        rejected = Rejected(index, stage, code, path, reason)
        if resource is not None:
            rejected.resource_type = resource["resourceType"]
            given = resource.get("id")
            rejected.resource_id = given if isinstance(given, str) and "\x00" not in given else None
        self.rejected.append(rejected)


def _json_problem(raw: bytes, error: orjson.JSONDecodeError) -> tuple[RejectionCode, str | None, str]:
    """(code, path, reason) of a line that is not valid JSON, without showing any of it."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        return RejectionCode.UTF8_INVALID, None, f"byte {bad.start + 1} of the line is not UTF-8"
    return RejectionCode.JSON_INVALID, None, f"not JSON at character {error.pos + 1} of the line"


#: A string of JSON, or what structures it.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)


def _type_and_id(raw: bytes) -> tuple[str | None, str | None]:
    """resourceType and id of a line that is too deep to be read; None for another text. One pass, no recursion."""
    found: dict[bytes, bytes] = {}
    depth, key, is_value = 0, b"", False
    for match in _TOKEN.finditer(raw):
        token = match[0]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
        elif depth == 1 and token in b":,":
            is_value = token == b":"
        elif depth == 1 and is_value:
            found[key] = token
        elif depth == 1:
            key = token
    resource_type, resource_id = (_text_of(found.get(name)) for name in (b'"resourceType"', b'"id"'))
    if not resource_type or not resource_type.isalpha() or len(resource_type) > 64:
        return None, None
    return resource_type, resource_id if resource_id and "\x00" not in resource_id else None


def _text_of(token: bytes | None) -> str | None:
    try:
        text = orjson.loads(token or b"null")
    except orjson.JSONDecodeError:
        return None
    return text if isinstance(text, str) else None


def _path_of_nul(value: Any, path: str) -> str | None:
    """FHIRPath of the first text or name that holds NUL; None where `\\\\u0000` was only an escaped backslash."""
    if isinstance(value, str):
        return path if "\x00" in value else None
    if isinstance(value, dict):
        for key, item in value.items():
            if "\x00" in key:
                return path
            if found := _path_of_nul(item, f"{path}.{key}"):
                return found
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if found := _path_of_nul(item, f"{path}[{number}]"):
                return found
    return None


def _unknown_modifier(resource: dict[str, Any], mapping: ResourceMapping) -> tuple[str, str] | None:
    """FHIRPath and name of the first modifier that the mapping does not know."""
    if "implicitRules" in resource:
        return f"{mapping.resource}.implicitRules", "implicit rules"
    try:
        return _unknown_extension(resource, mapping.resource, mapping.known_modifiers)
    except RecursionError:
        return f"{mapping.resource}.modifierExtension", "what is nested this deeply"


def _unknown_extension(value: Any, path: str, known: tuple[str, ...]) -> tuple[str, str] | None:
    if isinstance(value, list):
        parts = ((item, f"{path}[{number}]") for number, item in enumerate(value))
    elif isinstance(value, dict):
        extensions = value.get("modifierExtension", ())
        for extension in extensions if isinstance(extensions, list | tuple) else [extensions]:
            url = extension.get("url") if isinstance(extension, dict) else None
            if url not in known:
                named = url[:200] if isinstance(url, str) else "a modifierExtension without url"
                return f"{path}.modifierExtension", named
        parts = ((item, f"{path}.{name}") for name, item in value.items())
    else:
        return None
    return next((found for item, place in parts if (found := _unknown_extension(item, place, known))), None)
