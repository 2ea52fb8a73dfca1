"""SQL on FHIR v2 ViewDefinitions, compiled to Python once and run on parsed JSON.

`compile_view` gives the specification's own form, a function from a resource to its rows, for people and for
the conformance tests. `compile_columns` gives the pipeline's form: rows go column by column into buffers,
declared types are checked, and a failure can be explained. Both render the same plan, so they agree on every
row. What a single path means is `compiler`'s business.

Specification: https://sql-on-fhir.org/ig/latest/StructureDefinition-ViewDefinition.html
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Final

from pipeline.core.errors import MappingError
from pipeline.core.line_codes import RejectionCode
from pipeline.sql_on_fhir.compiler import Context, ExpressionCompiler, Source, Value
from pipeline.sql_on_fhir.fhirpath import (
    Binary,
    Call,
    FhirPathError,
    Index,
    Literal,
    Member,
    Negative,
    Node,
    OfType,
    parse,
)
from pipeline.sql_on_fhir.functions import COMPOUND, FUNCTIONS, EvaluationError, NotAResource, WrongType
from pipeline.sql_on_fhir.r4 import any_of, repeated_types

__all__ = [
    "EVALUATION_ERRORS",
    "Append",
    "Column",
    "CompiledColumns",
    "CompiledViews",
    "Converter",
    "EvaluationError",
    "NotAResource",
    "OfCollection",
    "Problem",
    "WrongType",
    "compile_columns",
    "compile_together",
    "compile_view",
    "is_known_type",
    "python_source",
    "view_columns",
]

# What a compiled function raises on a resource that it cannot evaluate. Catch these, nothing wider.
EVALUATION_ERRORS: Final = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_COLUMN_KEYS: Final = frozenset({"name", "path", "type", "collection", "description", "tag", "id", "extension"})
_SELECT_KEYS: Final = frozenset(
    {"column", "select", "unionAll", "forEach", "forEachOrNull", "repeat", "id", "extension", "modifierExtension"}
)
_ITERATIONS: Final = ("forEach", "forEachOrNull", "repeat")
# FHIR primitive → (its JSON class as a Python test on `{0}`, the function that checks the rest or raises).
_STRING: Final = ("{0}.__class__ is str", "as_string")
_INTEGER: Final = ("{0}.__class__ is int", "as_integer")
_PRIMITIVES: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(
        (
            "base64Binary", "canonical", "code", "date", "dateTime", "id", "instant", "markdown", "oid",
            "string", "time", "uri", "url", "uuid", "xhtml",
        ),
        _STRING,
    ),
    **dict.fromkeys(("integer", "integer64", "positiveInt", "unsignedInt"), _INTEGER),
    "boolean": ("{0}.__class__ is bool", "as_boolean"),
    "decimal": ("{0}.__class__ is float or {0}.__class__ is int", "as_number"),
}  # fmt: skip
# Constants: value[x] of the ViewDefinition's `constant`, and the kind of literal that each becomes.
_CONSTANT_KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("Base64Binary", "Canonical", "Code", "Id", "Markdown", "Oid", "String", "Uri", "Url", "Uuid"), "string"
    ),
    **dict.fromkeys(("Integer", "Integer64", "PositiveInt", "UnsignedInt"), "integer"),
    "Boolean": "boolean",
    "Decimal": "decimal",
    "Date": "date",
    "DateTime": "dateTime",
    "Instant": "dateTime",
    "Time": "time",
}
_CONSTANT_CLASSES: Final[Mapping[str, tuple[type, ...]]] = {
    "integer": (int,),
    "boolean": (bool,),
    "decimal": (int, float),
}
_ROW_INDEX: Final = "%rowIndex"
# unionAll multiplies the generated code by its arms for each further unionAll beside it.
_MOST_LEAVES: Final = 500


@dataclass(frozen=True)
class Column:
    """One column of a view. `type` is the declared FHIR type or None; `collection` columns hold lists."""

    name: str
    path: str
    type: str | None
    collection: bool


@dataclass(frozen=True)
class Problem:
    """Why a resource cannot be evaluated.

    `code`: `wrong_type`, `not_a_resource` or `evaluation_failed`. `path`: the shortest FHIRPath that fails.
    `reason` holds no value of the data.
    """

    code: RejectionCode
    path: str
    reason: str


@dataclass(frozen=True)
class OfCollection:
    """A converter that is given all that a path finds: one item, or an array of them."""

    function: Callable[[Any], Any]


#: What converts the values of a declared type.
Converter = Callable[[Any], Any] | OfCollection

#: Appends the rows of a resource; the second argument is the mark that ends each of them.
Append = Callable[[dict[str, Any], Any], None]


@dataclass(frozen=True)
class CompiledViews:
    """Views of one resource type that write their rows one after another, all in one walk over a resource.

    `bind(rows)` takes one list a view and gives the function that appends to it, for each row, a value a column and a
    mark: the column at `place` is `rows[view][place :: len(columns) + 1]`. It raises one of EVALUATION_ERRORS, WrongType
    above all; then rows of the resource may have been appended already: the caller takes away those that end with its
    mark. A resource of another type gives no rows. `explains`, one a view, say what fails, None where nothing does; they
    are slow. `source` is the Python.
    """

    columns: tuple[tuple[Column, ...], ...]
    bind: Callable[[Sequence[list[Any]]], Append]
    explains: tuple[Callable[[Any], Problem | None], ...]
    source: str


@dataclass(frozen=True)
class CompiledColumns:
    """One view that writes its rows column by column: `CompiledViews` for who has a few resources."""

    columns: tuple[Column, ...]
    explain: Callable[[Any], Problem | None]
    source: str
    bind: Callable[[Sequence[list[Any]]], Append]

    def new_buffers(self) -> list[list[Any]]:
        return [[] for _ in self.columns]

    def append(self, resource: dict[str, Any], buffers: list[list[Any]]) -> int:
        """Append one value a row to every buffer; the number of rows. Raises as the function of CompiledViews does."""
        rows: list[Any] = []
        self.bind([rows])(resource, None)
        width = len(self.columns) + 1
        for place, buffer in enumerate(buffers):
            buffer.extend(rows[place::width])
        return len(rows) // width


def compile_view(view: dict[str, Any]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """The view as a function from a resource (as orjson gives it) to its rows, in the columns' order.

    Declared types are not checked. A resource of another type gives no rows. Raises MappingError for a bad view;
    the function raises EvaluationError where the data cannot be evaluated, as several values in a column
    without `collection: true`.
    """
    plan = _read_view(view)
    return _load(_DictRenderer(plan).render(), plan, {})  # type: ignore[no-any-return]  # generated above


def compile_columns(
    view: dict[str, Any], converters: Mapping[str, Converter] | None = None, *, is_strict: bool = False
) -> CompiledColumns:
    """One view as the pipeline runs it. Arguments and errors: see compile_together."""
    compiled = compile_together([view], converters, is_strict=is_strict)
    return CompiledColumns(compiled.columns[0], compiled.explains[0], compiled.source, compiled.bind)


def compile_together(
    views: Sequence[dict[str, Any]],
    converters: Mapping[str, Converter] | None = None,
    *,
    is_strict: bool = False,
) -> CompiledViews:
    """Views of one resource type as the pipeline runs them: see CompiledViews.

    Columns that declare a FHIR primitive must carry its JSON type, those that declare a complex type an object.
    `converters` maps declared types to a function of the value (not called for null, called for each item of a
    collection). `is_strict`: an element that FHIR R4 has at most once raises WrongType where it comes in another shape,
    as an array, or a text for an object. Raises MappingError for a bad view or an unknown type.
    """
    plans = [_read_view(view) for view in views]
    for plan in plans:
        for column in plan.columns:
            _check_type(column, plan, converters or {})
    renderer = _BufferRenderer(plans, converters or {}, is_strict=is_strict)
    source = renderer.render()
    bind = _load(source, plans[0], converters or {})
    explains = tuple(_Explainer(plan, converters or {}, is_strict=is_strict) for plan in plans)
    return CompiledViews(tuple(plan.columns for plan in plans), bind, explains, source)


def view_columns(view: dict[str, Any]) -> tuple[Column, ...]:
    """The columns of a view in their order. Raises MappingError for a bad view."""
    return _read_view(view).columns


def is_known_type(type_name: str) -> bool:
    """Whether `type` of a column may be this without a converter: a FHIR primitive, or a complex type."""
    return type_name in _PRIMITIVES or type_name[:1].isupper()


def python_source(view: dict[str, Any]) -> str:
    """The Python that `compile_view` runs. Raises MappingError for a bad view."""
    return _DictRenderer(_read_view(view)).render()


# --- reading a view ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Path:
    """A parsed path and what it belongs to, for messages: `column 'x'`, `where`, `forEach`."""

    text: str
    node: Node
    owner: str


@dataclass(frozen=True)
class _Iteration:
    kind: str
    paths: tuple[_Path, ...]


@dataclass(frozen=True)
class _Select:
    iteration: _Iteration | None
    columns: tuple[tuple[Column, _Path], ...]
    selects: tuple[_Select, ...]
    arms: tuple[_Select, ...]

    @property
    def is_flat(self) -> bool:
        """Exactly one row: neither loops nor unions."""
        return not self.iteration and not self.arms and all(select.is_flat for select in self.selects)

    @property
    def asks_for_row_index(self) -> bool:
        texts = [path.text for _, path in self.columns]
        texts += [
            path.text for select in (*self.selects, *self.arms) if select.iteration for path in select.iteration.paths
        ]
        own = any(_ROW_INDEX in text for text in texts)
        return own or any(select.asks_for_row_index for select in (*self.selects, *self.arms))

    def all_columns(self) -> tuple[Column, ...]:
        own = tuple(column for column, _ in self.columns)
        nested = tuple(column for select in self.selects for column in select.all_columns())
        return own + nested + (self.arms[0].all_columns() if self.arms else ())

    def leaves(self) -> int:
        total = sum(arm.leaves() for arm in self.arms) or 1
        for select in self.selects:
            total *= select.leaves()
        return total


@dataclass(frozen=True)
class _Plan:
    name: str
    resource_type: str
    constants: Mapping[str, Literal]
    where: tuple[_Path, ...]
    root: _Select
    columns: tuple[Column, ...] = field(default=())


def _read_view(view: dict[str, Any]) -> _Plan:
    if not isinstance(view, dict):
        raise MappingError("a ViewDefinition must be an object with resource and select.")
    resource_type = view.get("resource")
    name = str(view.get("name") or resource_type or "without a name")
    reader = _Reader(name)
    if not isinstance(resource_type, str) or not re.fullmatch(r"[A-Z][A-Za-z]+", resource_type):
        raise reader.error("the view has no resource", "Add the resource type, as in resource: Patient.")
    constants = reader.constants(view.get("constant"))
    where = tuple(
        reader.path(reader.mapping(item, "where").get("path"), "where")
        for item in reader.sequence(view.get("where"), "where")
    )
    selects = reader.selects(view.get("select"), "select")
    if not selects:
        raise reader.error("the view has no select", "Add at least one select with a column.")
    root = _Select(None, (), selects, ())
    columns = root.all_columns()
    _check_names(columns, reader)
    if root.leaves() > _MOST_LEAVES:
        raise reader.error("the unionAll of the view multiply to too many combinations", "Split the view.")
    return _Plan(name, resource_type, constants, where, root, columns)


def _check_names(columns: Sequence[Column], reader: _Reader) -> None:
    seen: set[str] = set()
    for column in columns:
        if column.name in seen:
            raise reader.error(f"the column {column.name} is there twice", "Rename one of them.")
        seen.add(column.name)


class _Reader:
    """Turns the parts of one view into the plan; every error names the view."""

    def __init__(self, view_name: str) -> None:
        self._view_name = view_name

    def error(self, message: str, advice: str = "") -> MappingError:
        return MappingError(f"View {self._view_name}: {message}.", advice)

    def path(self, text: Any, owner: str) -> _Path:
        if not isinstance(text, str):
            raise self.error(f"the path of {owner} must be a text, not {type(text).__name__}")
        try:
            return _Path(text, parse(text), owner)
        except FhirPathError as error:
            raise _path_error(self._view_name, owner, error) from error

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{where} must hold objects, not {type(value).__name__}")
        return value

    def sequence(self, value: Any, where: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"{where} must be a list, not {type(value).__name__}")
        return value

    def constants(self, items: Any) -> dict[str, Literal]:
        constants: dict[str, Literal] = {}
        for item in self.sequence(items, "constant"):
            name = self.mapping(item, "constant").get("name")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self.error("a constant needs a name of letters, digits and underscores")
            values = {key[5:]: value for key, value in item.items() if key.startswith("value")}
            if len(values) != 1 or next(iter(values)) not in _CONSTANT_KINDS:
                raise self.error(f"the constant {name} needs one value of a FHIR primitive, as valueString")
            [(type_name, value)] = values.items()
            constants[name] = self._constant(name, _CONSTANT_KINDS[type_name], value)
        return constants

    def _constant(self, name: str, kind: str, value: Any) -> Literal:
        if isinstance(value, date):  # YAML reads an unquoted date as one
            value = value.isoformat()
        allowed = _CONSTANT_CLASSES.get(kind, (str,))
        if type(value) not in allowed:
            raise self.error(f"the constant {name} must be of type {kind}")
        return Literal(0, 0, value, kind)

    def selects(self, value: Any, where: str) -> tuple[_Select, ...]:
        return tuple(self.select(item, where) for item in self.sequence(value, where))

    def select(self, value: Any, where: str) -> _Select:
        select = self.mapping(value, where)
        unknown = sorted(set(select) - _SELECT_KEYS)
        if unknown:
            raise self.error(
                f"a {where} has the unknown key {unknown[0]}", f"Known: {', '.join(sorted(_SELECT_KEYS))}."
            )
        result = _Select(
            self._iteration(select),
            tuple(self._column(item) for item in self.sequence(select.get("column"), "column")),
            self.selects(select.get("select"), "select"),
            self.selects(select.get("unionAll"), "unionAll"),
        )
        if not (result.columns or result.selects or result.arms):
            raise self.error(f"a {where} has neither column nor select nor unionAll")
        self._check_arms(result.arms)
        return result

    def _iteration(self, select: dict[str, Any]) -> _Iteration | None:
        kinds = [kind for kind in _ITERATIONS if select.get(kind) is not None]
        if not kinds:
            return None
        if len(kinds) > 1:
            raise self.error(f"a select has both {kinds[0]} and {kinds[1]}", "Nest one select in another.")
        kind = kinds[0]
        texts = self.sequence(select[kind], kind) if kind == "repeat" else [select[kind]]
        if not texts:
            raise self.error("repeat is an empty list")
        return _Iteration(kind, tuple(self.path(text, kind) for text in texts))

    def _column(self, value: Any) -> tuple[Column, _Path]:
        column = self.mapping(value, "column")
        name = column.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.error("a column needs a name of letters, digits and underscores, beginning with a letter")
        unknown = sorted(set(column) - _COLUMN_KEYS)
        if unknown:
            known = ", ".join(sorted(_COLUMN_KEYS))
            raise self.error(f"the column {name} has the unknown key {unknown[0]}", f"Known: {known}.")
        type_name, collection = column.get("type"), column.get("collection", False)
        if type_name is not None and not isinstance(type_name, str):
            raise self.error(f"the type of the column {name} must be a text")
        if not isinstance(collection, bool):
            raise self.error(f"collection of the column {name} must be true or false")
        path = self.path(column.get("path"), f"column {name}")
        return Column(name, path.text, type_name, collection), path

    def _check_arms(self, arms: Sequence[_Select]) -> None:
        def shape(arm: _Select) -> list[tuple[str, str | None, bool]]:
            return [(column.name, column.type, column.collection) for column in arm.all_columns()]

        for arm in arms[1:]:
            if shape(arm) != shape(arms[0]):
                names = [
                    "(" + ", ".join(f"{name} {kind}" for name, kind, _ in shape(one)) + ")" for one in (arms[0], arm)
                ]
                raise self.error(
                    f"the parts of a unionAll have different columns: {names[0]} and {names[1]}",
                    "Give them the same names, types and collection in the same order.",
                )


def _path_error(view_name: str, owner: str, error: FhirPathError) -> MappingError:
    return MappingError(f"View {view_name}, {owner}: {error}")


def _check_type(column: Column, plan: _Plan, converters: Mapping[str, Any]) -> None:
    if column.type is not None and column.type not in converters and not is_known_type(column.type):
        raise MappingError(
            f"View {plan.name}: the column {column.name} has the unknown type {column.type}.",
            f"FHIR's primitives are {', '.join(sorted(_PRIMITIVES))}; complex types begin with a capital letter.",
        )


# --- rendering ---------------------------------------------------------------------------------------------


class _Renderer(ABC):
    """Writes the rows of plans: navigation and loops. Subclasses say what happens to a finished row."""

    def __init__(self, plan: _Plan, *, is_strict: bool = False) -> None:
        self._plan = plan
        self._is_strict = is_strict
        self._source = Source(is_strict=is_strict)
        self._names: dict[str, str] = {}  # column → the variable or literal that holds it in the open blocks

    @abstractmethod
    def render(self) -> str: ...

    def _check_resource(self, nothing: str) -> None:
        """Leave the function where the resource is of another type."""
        source, resource_type = self._source, self._plan.resource_type
        of_type = f"resource.get('resourceType') != {resource_type!r}"
        with source.block(f"if resource.__class__ is not dict or {of_type}:"):
            source.line(f"other_resource(resource, {resource_type!r})")
            source.line(f"return {nothing}")

    def _rows(self, plan: _Plan) -> None:
        """The statements that make the rows of a plan. What they share with earlier plans is not computed again."""
        self._plan, self._names = plan, {}
        types = frozenset({plan.resource_type})
        root = Value("resource", is_list_free=True, is_object=True, element=plan.resource_type, types=types)
        context = Context(root, root, plan.resource_type, "(0)", plan.constants)
        with ExitStack() as conditions:
            for path in plan.where:
                with self._compiler(path) as compiler:
                    condition = compiler.condition(path.node, context)
                conditions.enter_context(self._source.block(f"if {condition}:"))
            self._selects(plan.root.selects, context, self._row)

    @abstractmethod
    def _row(self) -> None: ...

    @abstractmethod
    def _column_value(self, column: Column, value: Value) -> str: ...

    def _selects(self, selects: Sequence[_Select], context: Context, then: Callable[[], None]) -> None:
        """Every combination of the rows of `selects`; `then` continues within each."""
        if not selects:
            then()
            return
        # What is the same for all rows comes first, outside the loops of the others.
        head, *rest = sorted(selects, key=lambda select: not select.is_flat)
        self._select(head, context, lambda: self._selects(rest, context, then))

    def _select(self, select: _Select, context: Context, then: Callable[[], None]) -> None:
        with self._iterate(select, context) as inner:
            for column, path in select.columns:
                self._column(column, path, inner)
            self._selects(select.selects, inner, lambda: self._arms(select.arms, inner, then))

    def _arms(self, arms: Sequence[_Select], context: Context, then: Callable[[], None]) -> None:
        if not arms:
            then()
        for arm in arms:
            self._select(arm, context, then)

    def _column(self, column: Column, path: _Path, context: Context) -> None:
        with self._compiler(path) as compiler:
            value = compiler.compile(path.node, context)
        expression = self._column_value(column, value)
        if expression == value.code:
            self._names[column.name] = expression
        else:
            self._names[column.name] = self._source.assign(expression).code

    @contextmanager
    def _iterate(self, select: _Select, context: Context) -> Iterator[Context]:
        iteration = select.iteration
        if iteration is None:
            yield context
            return
        value = self._collection(iteration, context)
        found = f"items({value.code})"
        if iteration.kind == "forEachOrNull":
            found = f"items_or_null({value.code})"
        elif value.is_variable:
            found = value.code if value.is_list else f"() if {value.code} is None else {found}"
        index, item = self._source.new_name("i"), self._source.new_name("x")
        this = Value(item, is_list_free=True, element=value.element, types=value.types)
        inner = replace(context, this=this, row_index=index)
        counted = select.asks_for_row_index
        with self._source.block(
            f"for {index}, {item} in enumerate({found}):" if counted else f"for {item} in {found}:"
        ):
            yield inner

    def _collection(self, iteration: _Iteration, context: Context) -> Value:
        if iteration.kind == "repeat":
            steps: list[str] = []
            nodes = [path.node for path in iteration.paths]
            reached = repeated_types(nodes, self._plan.resource_type, context.this.types)
            for path in iteration.paths:
                with self._compiler(path) as compiler:
                    steps.append(compiler.function(path.node, context, any_of((context.this.types, reached))))
            found = Value("", types=reached)
            return self._source.assign(f"repeat({context.this.code}, ({', '.join(steps)},))", found)
        [path] = iteration.paths
        with self._compiler(path) as compiler:
            return compiler.compile(path.node, context)

    @contextmanager
    def _compiler(self, path: _Path) -> Iterator[ExpressionCompiler]:
        """The compiler for `path`; its errors name the column."""
        try:
            yield ExpressionCompiler(self._source, path.text)
        except FhirPathError as error:
            raise _path_error(self._plan.name, path.owner, error) from error


def _one(value: Value) -> str:
    """The only item of a collection, as an expression."""
    if value.is_list_free:
        return value.code
    return f"single({value.code}) if {value.code}.__class__ is list else {value.code}"


class _DictRenderer(_Renderer):
    """resource → list of rows, each a dict."""

    def render(self) -> str:
        with self._source.block("def run(resource):"):
            self._check_resource("[]")
            self._source.line("rows = []")
            self._rows(self._plan)
            self._source.line("return rows")
        return self._source.text()

    def _row(self) -> None:
        cells = ", ".join(f"{column.name!r}: {self._names[column.name]}" for column in self._plan.columns)
        self._source.line(f"rows.append({{{cells}}})")

    def _column_value(self, column: Column, value: Value) -> str:
        return f"list(items({value.code}))" if column.collection else _one(value)


class _BufferRenderer(_Renderer):
    """A list of rows for each view → function (resource, mark), with types checked and converted."""

    def __init__(self, plans: Sequence[_Plan], converters: Mapping[str, Converter], *, is_strict: bool) -> None:
        super().__init__(plans[0], is_strict=is_strict)
        self._plans = plans
        self._view = 0
        self._converters = converters

    def render(self) -> str:
        source = self._source
        with source.block("def run(views):"):
            for number in range(len(self._plans)):
                source.line(f"rows{number} = views[{number}].extend")
            with source.block("def append(resource, mark):"):
                self._check_resource("None")
                for number, plan in enumerate(self._plans):
                    self._view = number
                    self._rows(plan)
            source.line("return append")
        return source.text()

    def _row(self) -> None:
        cells = ", ".join([*(self._names[column.name] for column in self._plan.columns), "mark"])
        self._source.line(f"rows{self._view}(({cells}))")  # one call a row, not one a cell

    def _column_value(self, column: Column, value: Value) -> str:
        if not column.collection:
            if isinstance(self._converters.get(column.type or ""), OfCollection):
                return self._converted(column, value.code)
            return self._converted(column, self._checked(column, value))
        item = Value("item", is_list_free=True, kind=value.kind)
        each = self._converted(column, self._checked(column, item), is_null_free=True)
        return f"[{each} for item in items({value.code})]"

    def _checked(self, column: Column, value: Value) -> str:
        """The value if it has the declared type; the rare rest (arrays, errors) is a function's."""
        code = value.code if value.is_variable else self._source.assign(value.code).code
        # An array within an array is not valid FHIR: as the item of a list, it is not taken for a collection.
        rest = f"[{code}]" if column.collection else code
        if column.type is None or (value.is_list_free and value.kind == column.type == "boolean"):
            return _one(value)
        if column.type in _PRIMITIVES:
            test, function = _PRIMITIVES[column.type]
            return f"{code} if {code} is None or {test.format(code)} else {function}({rest})"
        if value.is_object or not column.type[0].isupper():  # the resource, or a type that a converter made up
            return _one(value)
        return f"{code} if {code} is None or {code}.__class__ is dict else as_object({rest})"

    def _converted(self, column: Column, expression: str, *, is_null_free: bool = False) -> str:
        if column.type is None or column.type not in self._converters:
            return expression
        converter = _converter_name(self._converters, column.type)
        if is_null_free:
            return f"{converter}({expression})"
        checked = self._source.assign(expression).code
        return f"None if {checked} is None else {converter}({checked})"


def _converter_name(converters: Mapping[str, object], type_name: str) -> str:
    return f"convert_{list(converters).index(type_name)}"


def _load(source: str, plan: _Plan, converters: Mapping[str, Converter]) -> Any:
    """The function `run` of generated source."""
    namespace: dict[str, Any] = {**FUNCTIONS, "COMPOUND": COMPOUND}
    namespace |= {
        _converter_name(converters, name): converter.function if isinstance(converter, OfCollection) else converter
        for name, converter in converters.items()
    }
    # The source comes from _Renderer alone: texts of the view enter it only through repr().
    exec(compile(source, f"<view {plan.name!r}>", "exec"), namespace)  # noqa: S102
    return namespace["run"]


# --- explaining --------------------------------------------------------------------------------------------


class _Explainer:
    """Finds the shortest path that fails on a resource, by running the view's paths one at a time."""

    def __init__(self, plan: _Plan, converters: Mapping[str, Converter], *, is_strict: bool) -> None:
        self._plan = plan
        self._converters = converters
        self._is_strict = is_strict
        self._probes: list[tuple[str, str, Any]] | None = None

    def __call__(self, resource: Any) -> Problem | None:
        if self._probes is None:
            self._probes = list(self._make_probes())
        for label, reason, probe in self._probes:
            try:
                probe([[]])(resource, None)
            except NotAResource as error:
                return Problem(RejectionCode.NOT_A_RESOURCE, self._plan.resource_type, str(error))
            except WrongType as error:
                return Problem(RejectionCode.WRONG_TYPE, label, str(error))
            except EvaluationError as error:
                return Problem(RejectionCode.EVALUATION_FAILED, label, str(error))
            except EVALUATION_ERRORS as error:
                return Problem(RejectionCode.EVALUATION_FAILED, label, f"{reason} ({type(error).__name__})")
        return None

    def _make_probes(self) -> Iterator[tuple[str, str, Any]]:
        for path in self._plan.where:
            yield from self._path_probes(path, ())
            yield self._label(path.text, ()), "the condition cannot be evaluated", self._where_probe(path)
        yield from self._select_probes(self._plan.root, ())

    def _select_probes(self, select: _Select, outer: tuple[_Iteration, ...]) -> Iterator[tuple[str, str, Any]]:
        inner = outer
        if select.iteration:
            for path in select.iteration.paths:
                yield from self._path_probes(path, outer)
            inner = (*outer, select.iteration)
        for column, path in select.columns:
            yield from self._path_probes(path, inner)
            reason = f"converting the value to {column.type} failed"
            yield self._label(path.text, inner), reason, self._probe(column, path, inner)
        for part in (*select.selects, *select.arms):
            yield from self._select_probes(part, inner)

    def _path_probes(self, path: _Path, outer: tuple[_Iteration, ...]) -> Iterator[tuple[str, str, Any]]:
        for node in _parts(path.node):
            text = path.text[node.start : node.end]
            part = replace(path, node=node)
            probe = self._probe(Column("value", text, None, collection=True), part, outer)
            yield self._label(text, outer), "the path cannot be evaluated", probe

    def _probe(self, column: Column, path: _Path, outer: tuple[_Iteration, ...]) -> Any:
        column = replace(column, name="value")
        select = _Select(None, ((column, path),), (), ())
        for iteration in reversed(outer):
            select = _Select(iteration, (), (select,), ())
        plan = replace(self._plan, where=(), root=_Select(None, (), (select,), ()), columns=(column,))
        source = _BufferRenderer([plan], self._converters, is_strict=self._is_strict).render()
        return _load(source, plan, self._converters)

    def _where_probe(self, path: _Path) -> Any:
        nothing = Column("value", "{}", None, collection=False)
        select = _Select(None, ((nothing, _Path("{}", parse("{}"), "")),), (), ())
        plan = replace(self._plan, where=(path,), root=_Select(None, (), (select,), ()), columns=(nothing,))
        return _load(_BufferRenderer([plan], {}, is_strict=self._is_strict).render(), plan, {})

    def _label(self, text: str, outer: tuple[_Iteration, ...]) -> str:
        steps = [self._plan.resource_type]
        for iteration in outer:
            inner = " | ".join(path.text for path in iteration.paths)
            steps.append(f"repeat({inner})" if iteration.kind == "repeat" else inner)
        if text != "$this":
            steps.append(text.removeprefix(f"{self._plan.resource_type}."))
        return ".".join(steps)


def _parts(node: Node) -> Iterator[Node]:
    """`node` and what it is made of, inner parts first, without the arguments of functions (they are
    evaluated against other elements)."""
    match node:
        case Member() | OfType() | Call() | Index():
            # A choice element means something only together with its ofType().
            target = node.target.target if isinstance(node, OfType) and isinstance(node.target, Member) else node.target
            if target is not None:
                yield from _parts(target)
        case Binary():
            yield from _parts(node.left)
            yield from _parts(node.right)
        case Negative():
            yield from _parts(node.operand)
        case _:
            pass
    yield node
