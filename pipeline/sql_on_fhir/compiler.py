"""FHIRPath syntax trees → Python statements.

`Source` collects the lines of one generated function and remembers which navigation has already been done
in the current block, so that common prefixes (`code.coding`, `valueQuantity`) are navigated once.
`ExpressionCompiler` adds the statements that evaluate one path and says in which local variable the result
is. Generated code calls `functions` for everything but the common cases, which are written out.

Whether an element is an array is seen in the data, at the price of one class check per step. Where FHIR R4's types are
given for what a path starts at, an element that R4 has at most once must have its shape: another one raises WrongType.
Where a path can only be wrong (an unknown function, `value` without `ofType`), it is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.sql_on_fhir.fhirpath import (
    Binary,
    Call,
    Constant,
    Empty,
    FhirPathError,
    Index,
    Literal,
    Member,
    Negative,
    Node,
    OfType,
    This,
)
from pipeline.sql_on_fhir.r4 import (
    SingleElement,
    Types,
    any_of,
    are_known,
    choice_keys,
    has_choice,
    other_names,
    repeated_types,
    single_element,
)

__all__ = ["Context", "ExpressionCompiler", "Source", "Value"]


@dataclass(frozen=True)
class Value:
    """Where generated code keeps a collection: `code` is a local variable or a literal.

    `is_list_free`: never a list, so at most one item. `kind` is a type known at compile time: `boolean`,
    `string`, `number`, `date`, `dateTime`, `time`, or empty. `is_object`: certainly a dict.
    `is_list`: certainly a list without null.
    `element` is the name of the element or, for a resource, of its type; empty where neither is known.
    `types`: FHIR R4's types that it can have, None where they are not known. `may_be_object`: a dict or None.
    """

    code: str
    is_list_free: bool = False
    kind: str = ""
    is_object: bool = False
    element: str = ""
    is_list: bool = False
    types: Types = None
    may_be_object: bool = False

    @property
    def is_variable(self) -> bool:
        return self.code.isidentifier() and self.code not in {"None", "True", "False"}


@dataclass(frozen=True)
class Context:
    """What a path is evaluated against."""

    this: Value
    resource: Value
    resource_type: str
    row_index: str
    constants: Mapping[str, Literal] = field(default_factory=dict)


class Source:
    """Lines of Python in the making. `is_strict`: what R4 says is there at most once must have its shape."""

    def __init__(self, *, is_strict: bool = False) -> None:
        self.is_strict = is_strict
        self._lines: list[str] = []
        self._depth = 0
        self._variables = 0
        # One dictionary a block that is open: what was computed there is known further in, not further out.
        self._known: list[dict[tuple[object, ...], Value]] = [{}]

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def line(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    def new_name(self, prefix: str) -> str:
        self._variables += 1
        return f"{prefix}{self._variables}"

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """An indented block, which must get at least one line."""
        self.line(header)
        self._depth += 1
        self._known.append({})
        yield
        self._known.pop()
        self._depth -= 1

    def assign(self, expression: str, result: Value | None = None, key: tuple[object, ...] = ()) -> Value:
        """A new variable with the value of `expression`; with a `key`, the one that already has it."""
        if key:
            known = self.known(key)
            if known is not None:
                return known
        value = replace(result or Value(""), code=self.new_name("v"))
        self.line(f"{value.code} = {expression}")
        if key:
            self.remember(key, value)
        return value

    def known(self, key: tuple[object, ...]) -> Value | None:
        return next((scope[key] for scope in self._known if key in scope), None)

    def remember(self, key: tuple[object, ...], value: Value) -> None:
        self._known[-1][key] = value


@dataclass(frozen=True)
class _Helper:
    """A FHIRPath function that is one call: helper(collection, *arguments)."""

    name: str
    least: int = 0
    most: int = 0
    kind: str = ""
    is_list_free: bool = True


_HELPERS: Final[Mapping[str, _Helper]] = {
    "contains": _Helper("contains_text", 1, 1, "boolean"),
    "count": _Helper("count", kind="number"),
    "endsWith": _Helper("ends_with", 1, 1, "boolean"),
    "first": _Helper("first"),
    "getResourceKey": _Helper("resource_key"),
    "join": _Helper("join", 0, 1, "string"),
    "last": _Helper("last"),
    "lower": _Helper("lower", kind="string"),
    "not": _Helper("negate", kind="boolean"),
    "single": _Helper("single"),
    "startsWith": _Helper("starts_with", 1, 1, "boolean"),
    "upper": _Helper("upper", kind="string"),
}
# Operators that are one call: helper(left, right).
_OPERATORS: Final[Mapping[str, _Helper]] = {
    "<": _Helper("less", kind="boolean"),
    "<=": _Helper("less_or_equal", kind="boolean"),
    ">": _Helper("greater", kind="boolean"),
    ">=": _Helper("greater_or_equal", kind="boolean"),
    "+": _Helper("add"),
    "-": _Helper("subtract", kind="number"),
    "*": _Helper("multiply", kind="number"),
    "/": _Helper("divide", kind="number"),
    "&": _Helper("concatenate", kind="string"),
    "|": _Helper("union", is_list_free=False),
    "in": _Helper("contained_in", kind="boolean"),
    "contains": _Helper("contained_in", kind="boolean"),
}
# Functions with a literal argument that are written out for the usual text: Python's form, the helper.
_OF_TEXT: Final[Mapping[str, tuple[str, str]]] = {
    "contains": ("{1} in {0}", "contains_text"),
    "startsWith": ("{0}.startswith({1})", "starts_with"),
}
_TIMES: Final = frozenset({"date", "dateTime", "instant", "time"})
# FHIR R4 elements of type date; every other date-like element is a dateTime or an instant.
_DATE_ELEMENTS: Final = frozenset(
    {"birthDate", "expirationDate", "bornDate", "startDate", "dueDate", "statusDate", "approvalDate", "lastReviewDate"}
)
# Elements that hold any resource; there ofType() compares resourceType.
_RESOURCE_ELEMENTS: Final = frozenset({"contained", "resource"})
_NO_PRIMITIVES: Final = _RESOURCE_ELEMENTS | {"extension", "modifierExtension"}
# The usual type of a choice element: whether there is any is asked of it first.
_USUAL_TYPES: Final[Mapping[str, str]] = {"value": "Quantity"}


class ExpressionCompiler:
    """Adds the evaluation of paths to a Source. One instance a path: `path` is its text, for messages."""

    def __init__(self, source: Source, path: str) -> None:
        self._source = source
        self._path = path
        self._special: Mapping[str, Callable[[Call, Context], Value]] = {
            "all": self._all,
            "empty": self._empty,
            "exists": self._exists,
            "extension": self._extension,
            "getReferenceKey": self._reference_key,
            "highBoundary": self._boundary,
            "iif": self._iif,
            "lowBoundary": self._boundary,
            "repeat": self._repeat,
            "select": self._select,
            "where": self._where,
        }

    def compile(self, node: Node, context: Context) -> Value:
        """Add what evaluates `node`. Raises FhirPathError where the path is outside the supported subset."""
        match node:
            case Literal():
                value = _literal(node)
            case Empty():
                value = Value("None", is_list_free=True)
            case This():
                value = context.this
            case Constant():
                value = self._constant(node, context)
            case Member():
                value = self._member(node, context)
            case OfType():
                value = self._of_type(node, context)
            case Index():
                value = self._index(node, context)
            case Call():
                value = self._call(node, context)
            case Negative():
                value = self._assign_one(f"minus({self.compile(node.operand, context).code})", "number")
            case Binary() if node.operator in {"and", "or"}:
                value = self._logic(node, context)
            case Binary():
                value = self._binary(node, context)
            case _:
                raise self._error("this expression is not supported in views", node.start)
        return value

    def condition(self, node: Node, context: Context) -> str:
        """A Python expression that is true exactly where `node` is true (not false, not empty).

        Raises as `compile` does; at run time a value that is not a boolean raises WrongType.
        """
        if isinstance(node, Binary) and node.operator in {"and", "or"}:
            left, right = self.condition(node.left, context), self.condition(node.right, context)
            return f"({left} {node.operator} {right})"
        if isinstance(node, Binary) and node.operator == "=":
            return self._equality_condition(node, context)
        value = self.compile(node, context)
        if value.kind == "boolean" and value.is_list_free:
            return value.code
        return f"({value.code} if {value.code}.__class__ is bool else truth({value.code}))"

    # --- paths ---------------------------------------------------------------------------------------------

    def _member(self, node: Member, context: Context) -> Value:
        if node.target is None and node.name[0].isupper():
            return self._resource_itself(node, context)
        base = self._target(node, context)
        if isinstance(node.target, Member) and node.name == "extension":
            return self._extensions_of(node.target, None, context)
        if _is_choice(base, node.name):
            return self._choice(base, node.name)
        if keys := _possible_keys(base, node.name):
            expression = f"element_or_choice({base.code}, {node.name!r}, {keys!r})"
            return self._source.assign(expression, Value("", element=node.name), ("call", expression))
        return self._step(base, node.name, node)

    def _choice(self, base: Value, name: str) -> Value:
        """The choice elements `name[x]` of `base`, whatever their type."""
        expression = f"choice({base.code}, {name!r}{_others(base, name)})"
        return self._source.assign(expression, Value("", element=name, is_list=True), ("call", expression))

    def _resource_itself(self, node: Member, context: Context) -> Value:
        if node.name != context.resource_type:
            reason = f"'{node.name}' is neither an element nor the view's resource ({context.resource_type})"
            raise self._error(reason, node.start)
        if context.this != context.resource:
            raise self._error(f"paths here start at the element of forEach, not at {node.name}", node.start)
        return context.this

    def _step(self, base: Value, name: str, node: Node) -> Value:
        """The elements `name` of `base`."""
        if base.kind:
            start = node.end - (len(name) if isinstance(node, Member) else 1)
            raise self._error(f"a {base.kind} has no elements", start)
        code = base.code
        expression = f"{code}.get({name!r})"
        if base.may_be_object:
            expression = f"None if {code} is None else {expression}"
        elif not base.is_object:
            # Most elements of most resources are absent: that is asked first.
            rest = f"children({code}, {name!r})"
            if base.is_variable and not base.is_list_free:  # most arrays in FHIR have one item
                rest = f"{code}[0].get({name!r}) if {_has_one_object(code)} else {rest}"
            rest = f"{expression} if {code}.__class__ is dict else {rest}"
            expression = f"None if {code} is None else {rest}"
        key = ("step", code, name)
        known = self._source.known(key)
        if known is not None:
            return known
        found = self._single(base, name)
        value = self._source.assign(expression, Value("", element=name, types=found.types), key)
        if found.is_single and not base.is_list_free and not base.is_object:
            self._source.line(f"if {value.code}.__class__ is list: refuse_arrays({code}, {name!r})")
        return self._held_to_shape(value, found, key) if found.is_single and base.is_list_free else value

    def _single(self, base: Value, name: str) -> SingleElement:
        """What R4 says about an element; only its types, where views are not strict."""
        found = single_element(base.types, name)
        return found if self._source.is_strict else SingleElement(found.types)

    def _held_to_shape(self, value: Value, found: SingleElement, key: tuple[object, ...]) -> Value:
        """What is there at most once is not an array; a complex type is an object, a primitive is not."""
        code = value.code
        if found.is_complex:
            self._source.line(
                f"if {code}.__class__ is not dict and {code} is not None: refuse_shape({code}, 'an object')"
            )
        else:
            self._source.line(f"if {code}.__class__ in COMPOUND: refuse_shape({code}, 'a single value')")
        value = replace(value, is_list_free=True, may_be_object=found.is_complex)
        self._source.remember(key, value)
        return value

    def _of_type(self, node: OfType, context: Context) -> Value:
        target, name = node.target, node.type_name
        if not isinstance(target, Member):
            reason = "ofType() must follow the name of a choice element, as in value.ofType(Quantity)"
            raise self._error(reason, node.start)
        if target.name in _RESOURCE_ELEMENTS:
            base = self.compile(target, context)
            found = Value("", element=name, types=frozenset({name}))
            return self._source.assign(f"of_resource_type({base.code}, {name!r})", found)
        base = self._target(target, context)
        return self._step(base, target.name + name[0].upper() + name[1:], node)

    def _index(self, node: Index, context: Context) -> Value:
        base = self.compile(node.target, context)
        position = self.compile(node.position, context)
        result = Value("", is_list_free=True, element=base.element, types=base.types)
        if position.code == "(0)":
            return self._first(base)
        return self._source.assign(
            f"item_at({base.code}, {position.code})", result, ("index", base.code, position.code)
        )

    def _first(self, base: Value) -> Value:
        if base.is_list_free:
            return base
        code = base.code
        result = replace(base, is_list_free=True, is_list=False)
        if base.is_list:
            return self._source.assign(f"{code}[0] if {code} else None", result, ("first", code))
        if not base.is_variable:
            return self._source.assign(f"first({code})", result, ("first", code))
        usual = f"{code}[0] if {code} and {code}[0] is not None else first({code})"
        return self._source.assign(f"({usual}) if {code}.__class__ is list else {code}", result, ("first", code))

    def _target(self, node: Member | Call, context: Context) -> Value:
        return context.this if node.target is None else self.compile(node.target, context)

    def _constant(self, node: Constant, context: Context) -> Value:
        if node.name == "rowIndex":
            return Value(context.row_index, is_list_free=True, kind="number")
        if node.name in {"resource", "rootResource"}:
            return context.resource
        if node.name not in context.constants:
            known = ", ".join(f"%{name}" for name in context.constants) or "none"
            reason = f"the constant %{node.name} is not defined in the view (defined: {known})"
            raise self._error(reason, node.start)
        return _literal(context.constants[node.name])

    # --- functions -----------------------------------------------------------------------------------------

    def _call(self, node: Call, context: Context) -> Value:
        if node.name in self._special:
            return self._special[node.name](node, context)
        helper = _HELPERS.get(node.name)
        if helper is None:
            known = sorted({*self._special, *_HELPERS, "ofType"})
            close = difflib.get_close_matches(node.name, known, 1)
            advice = f"did you mean {close[0]}()?" if close else f"supported: {', '.join(known)}"
            raise self._error(f"the function {node.name}() is not supported; {advice}", self._name_start(node))
        self._check_arguments(node, helper.least, helper.most)
        base = self._target(node, context)
        if node.name == "first":
            return self._first(base)
        arguments = [self.compile(argument, context).code for argument in node.arguments]
        if node.name in _OF_TEXT and isinstance(node.arguments[0], Literal) and node.arguments[0].kind == "string":
            return self._assign_one(_of_text(node.name, base.code, arguments[0]), "boolean")
        element, types = (base.element, base.types) if node.name in {"last", "single"} else ("", None)
        expression = f"{helper.name}({', '.join([base.code, *arguments])})"
        return self._source.assign(
            expression, Value("", helper.is_list_free, helper.kind, element=element, types=types), ("call", expression)
        )

    def _where(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 1, 1)
        base = self._target(node, context)
        key = ("where", base.code, *self._criterion(node.arguments[0], context))
        known = self._source.known(key)
        if known is not None:
            return known
        found = self._source.assign("[]", Value("", element=base.element, is_list=True, types=base.types))
        with self._each(base, context) as inner:
            condition = self.condition(node.arguments[0], inner)
            self._source.line(f"if {condition}: {found.code}.append({inner.this.code})")
        self._source.remember(key, found)
        return found

    def _exists(self, node: Call, context: Context) -> Value:
        """exists(), exists(criteria); the loop of a where() before it stops at the first hit.

        A primitive of which only an extension is there (`_birthDate`) exists: FHIRPath, "Using FHIR types in expressions".
        """
        self._check_arguments(node, 0, 1)
        target = node.target
        if node.arguments:
            return self._any(self._target(node, context), node.arguments[0], context)
        if isinstance(target, Call) and target.name == "where" and len(target.arguments) == 1:
            return self._any(self._target(target, context), target.arguments[0], context)
        if isinstance(target, Member) and (found := self._any_choice(target, context)):
            return found
        if isinstance(target, Member | OfType) and (found := self._any_primitive(target, context)):
            return found
        return self._assign_one(_is_there(self._target(node, context)), "boolean")

    def _any_choice(self, node: Member, context: Context) -> Value | None:
        """exists() of a choice element; None where `node` is none."""
        if node.target is None and node.name[0].isupper():
            return None
        base = self._target(node, context)
        if keys := _possible_keys(base, node.name):
            return self._assign_one(f"any_exists({base.code}, {(node.name, *keys)!r})", "boolean")
        if not _is_choice(base, node.name):
            return None
        any_type = f"choice_exists({base.code}, {node.name!r}{_others(base, node.name)})"
        if node.name not in _USUAL_TYPES or not base.is_object:
            return self._assign_one(any_type, "boolean")
        usual = self._step(base, node.name + _USUAL_TYPES[node.name], node).code
        return self._assign_one(f"{usual} is not None and {usual}.__class__ is not list or {any_type}", "boolean")

    def _any_primitive(self, node: Member | OfType, context: Context) -> Value | None:
        """exists() of an element that is, or may be, a primitive: its extensions stand in `_name`. None of any other."""
        member = node.target if isinstance(node, OfType) else node
        if not isinstance(member, Member) or (member.target is None and member.name[0].isupper()):
            return None
        if member.name in _NO_PRIMITIVES:
            return None
        name = member.name + (node.type_name[0].upper() + node.type_name[1:] if isinstance(node, OfType) else "")
        value = self.compile(node, context)
        if value.types is not None and all(kind[:1].isupper() for kind in value.types):
            return None
        base = self._target(member, context)
        beside = f"{base.code}.get({'_' + name!r}) is not None"
        if base.may_be_object:
            beside = f"{base.code} is not None and {beside}"
        elif not base.is_object:
            beside = f"exists(children({base.code}, {'_' + name!r}))"
        return self._assign_one(f"({_is_there(value)}) or {beside}", "boolean")

    def _any(self, base: Value, criterion: Node, context: Context) -> Value:
        key = ("any", base.code, *self._criterion(criterion, context))
        known = self._source.known(key)
        if known is not None:
            return known
        test = _element_and_text(criterion)
        if test and base.is_variable and not base.kind and not _may_be_choice(base, test[0]):
            # Often one of several tests of the same elements (the codes of a category): they are looked for once.
            name, text = test
            code, only = base.code, f"{base.code}[0].get({name!r})"
            usual = f"{_has_one_object(code)} and {only}.__class__ is not list"
            strict = ", True" if self._single(base, name).is_single else ""
            expression = f"() if {code} is None else ({only},) if {usual} else compared({code}, {name!r}{strict})"
            elements = self._source.assign(expression, key=("compared", base.code, name))
            return self._source.assign(f"{text!r} in {elements.code}", Value("", True, "boolean"), key)
        found = self._assign_one("False", "boolean")
        with self._each(base, context) as inner:
            condition = self.condition(criterion, inner)
            with self._source.block(f"if {condition}:"):
                self._source.line(f"{found.code} = True")
                self._source.line("break")
        self._source.remember(key, found)
        return found

    def _all(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 1, 1)
        base = self._target(node, context)
        result = self._assign_one("True", "boolean")
        with self._each(base, context) as inner:
            condition = self.condition(node.arguments[0], inner)
            with self._source.block(f"if not {condition}:"):
                self._source.line(f"{result.code} = False")
                self._source.line("break")
        return result

    def _empty(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 0, 0)
        found = self._exists(replace(node, name="exists"), context)
        return self._assign_one(f"not {found.code}", "boolean")

    def _select(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 1, 1)
        base = self._target(node, context)
        found = self._source.assign("[]")
        with self._each(base, context) as inner:
            value = self.compile(node.arguments[0], inner)
            self._source.line(f"{found.code}.extend(items({value.code}))")
        return found

    def _repeat(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 1, 1)
        base = self._target(node, context)
        reached = repeated_types(node.arguments, context.resource_type, base.types)
        step = self.function(node.arguments[0], context, any_of((base.types, reached)))
        return self._source.assign(f"repeat({base.code}, ({step},))", Value("", types=reached))

    def function(self, node: Node, context: Context, types: Types) -> str:
        """The name of a local function that evaluates `node` on its only parameter, which has one of `types`."""
        name, parameter = self._source.new_name("step"), self._source.new_name("node")
        with self._source.block(f"def {name}({parameter}):"):
            value = self.compile(node, replace(context, this=Value(parameter, types=types)))
            self._source.line(f"return {value.code}")
        return name

    def _iif(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 2, 3)
        inner = context if node.target is None else replace(context, this=self.compile(node.target, context))
        condition = self.condition(node.arguments[0], inner)
        result = self._source.new_name("v")
        for header, branch in zip((f"if {condition}:", "else:"), node.arguments[1:], strict=False):
            with self._source.block(header):
                self._source.line(f"{result} = {self.compile(branch, inner).code}")
        if len(node.arguments) == 2:
            self._source.line(f"else: {result} = None")
        return Value(result)

    def _extension(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 1, 1)
        url = node.arguments[0]
        if isinstance(url, Constant):
            url = context.constants.get(url.name, url)
        if not (isinstance(url, Literal) and isinstance(url.value, str)):
            raise self._error("extension() needs the url as a literal or a constant", node.arguments[0].start)
        if isinstance(node.target, Member) and node.target.name != "extension":
            return self._extensions_of(node.target, url.value, context)
        base = self._target(node, context)
        expression = f"extensions({base.code}, {url.value!r})"
        return self._source.assign(expression, _extensions(base), ("call", expression))

    def _extensions_of(self, target: Member, url: str | None, context: Context) -> Value:
        """Extensions of an element that may be a primitive, whose extensions stand in `_name`."""
        if target.target is None and target.name == context.resource_type:
            base, function = context.this, f"extensions({context.this.code}, {url!r})"
        else:
            base = self._target(target, context)
            function = f"primitive_extensions({base.code}, {target.name!r}, {url!r})"
        return self._source.assign(function, _extensions(base), ("call", function))

    def _reference_key(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 0, 1)
        type_name = None
        if node.arguments:
            argument = node.arguments[0]
            if not (isinstance(argument, Member) and argument.target is None):
                raise self._error("getReferenceKey() takes the name of a resource type", argument.start)
            type_name = argument.name
        base = self._target(node, context)
        return self._source.assign(f"reference_keys({base.code}, {type_name!r})")

    def _boundary(self, node: Call, context: Context) -> Value:
        self._check_arguments(node, 0, 0)
        base = self._target(node, context)
        is_date = (
            base.kind == "date"
            or (isinstance(node.target, Member) and node.target.name in _DATE_ELEMENTS)
            or (isinstance(node.target, OfType) and node.target.type_name == "date")
        )
        function = "low_boundary" if node.name == "lowBoundary" else "high_boundary"
        kind = "date" if is_date else ""
        return self._source.assign(f"{function}({base.code}, {kind!r})", Value("", is_list_free=True))

    @contextmanager
    def _each(self, base: Value, context: Context) -> Iterator[Context]:
        """A loop over the items of `base`; gives the context inside."""
        item = Value(
            self._source.new_name("x"), is_list_free=True, kind=base.kind, element=base.element, types=base.types
        )
        code = base.code
        if base.is_variable and not base.is_list:
            code = f"() if {code} is None else {code} if {code}.__class__ is list else items({code})"
        with self._source.block(f"for {item.code} in {code if base.is_variable else f'items({code})'}:"):
            if not base.is_list:
                self._source.line(f"if {item.code} is None: continue")
            yield replace(context, this=item)

    # --- operators -----------------------------------------------------------------------------------------

    def _logic(self, node: Binary, context: Context) -> Value:
        left = self._truth(self.compile(node.left, context))
        right = self._truth(self.compile(node.right, context))
        absent = f"None if {left} is None or {right} is None"
        if node.operator == "and":
            expression = f"False if {left} is False or {right} is False else {absent} else True"
        else:
            expression = f"{left} or {right} or ({absent} else False)"
        return self._assign_one(expression, "boolean")  # three-valued

    def _binary(self, node: Binary, context: Context) -> Value:
        left, right = self.compile(node.left, context), self.compile(node.right, context)
        if node.operator in {"=", "!="}:
            return self._assign_one(self._equality(node.operator, node, left, right), "boolean")
        if node.operator == "contains":
            left, right = right, left
        operator = _OPERATORS[node.operator]
        expression = f"{operator.name}({left.code}, {right.code})"
        return self._source.assign(expression, Value("", operator.is_list_free, operator.kind))

    def _equality(self, operator: str, node: Binary, left: Value, right: Value) -> str:
        pair = f"({left.code}, {right.code})"
        name = "equal" if operator == "=" else "unequal"
        if self._is_time_comparison(node, left, right):
            return f"{name}_time{pair}"
        for value, other in ((left, right), (right, left)):
            if value.kind == "string" and not other.kind:
                sign = "==" if operator == "=" else "!="
                rest = f"None if {other.code} is None else {name}{pair}"
                return f"{other.code} {sign} {value.code} if {other.code}.__class__ is str else {rest}"
            if value.code in {"True", "False"} and not other.kind and operator == "=":
                rest = f"{other.code} is {value.code} if {other.code}.__class__ is bool else {name}{pair}"
                return f"None if {other.code} is None else {rest}"
        return f"{name}{pair}"

    def _equality_condition(self, node: Binary, context: Context) -> str:
        left, right = self.compile(node.left, context), self.compile(node.right, context)
        for value, other in ((left, right), (right, left)):
            if value.kind == "string" and not other.kind:
                slow = f"{other.code}.__class__ is list and equal({other.code}, {value.code})"
                return f"({other.code} == {value.code}" + (")" if other.is_list_free else f" or {slow})")
        return f"({self._equality('=', node, left, right)})"

    @staticmethod
    def _is_time_comparison(node: Binary, left: Value, right: Value) -> bool:
        """Whether either side is known to be a date or time, and the other isn't a plain string."""
        types = [side.type_name for side in (node.left, node.right) if isinstance(side, OfType)]
        kinds = {left.kind, right.kind, *types}
        return bool(kinds & _TIMES) and "string" not in kinds

    def _truth(self, value: Value) -> str:
        if value.kind == "boolean" and value.is_list_free:
            return value.code
        return self._assign_one(f"truth({value.code})", "boolean").code

    # --- small things --------------------------------------------------------------------------------------

    def _assign_one(self, expression: str, kind: str) -> Value:
        return self._source.assign(expression, Value("", is_list_free=True, kind=kind))

    def _check_arguments(self, node: Call, least: int, most: int) -> None:
        found = len(node.arguments)
        if not least <= found <= most:
            needed = str(least) if least == most else f"{least} to {most}"
            reason = f"{node.name}() takes {needed} argument{'' if most == 1 else 's'}, not {found}"
            raise self._error(reason, self._name_start(node))

    def _name_start(self, node: Call) -> int:
        """Where the function's name stands: after its target, before its arguments."""
        return self._path.index(node.name, node.target.end if node.target else node.start)

    def _criterion(self, node: Node, context: Context) -> tuple[object, ...]:
        """What distinguishes a criterion from others: its text, and what its variables mean."""
        return self._text(node), context.row_index, str(context.constants)

    def _text(self, node: Node) -> str:
        return self._path[node.start : node.end]

    def _error(self, reason: str, position: int) -> FhirPathError:
        return FhirPathError(reason, self._path, position)


def _extensions(owner: Value) -> Value:
    return Value("", element="extension", types=None if owner.types is None else frozenset({"Extension"}))


def _is_choice(owner: Value, name: str) -> bool:
    """Whether `name` is a choice element of R4 (`value` for `value[x]`): in JSON the type is part of its name."""
    return has_choice(frozenset({"Extension"}) if owner.element == "extension" else owner.types, name)


def _possible_keys(owner: Value, name: str) -> tuple[str, ...]:
    """How JSON writes the choice element `name`, for an owner whose type is not known; () where it cannot be one."""
    if owner.kind or owner.element == "extension" or are_known(owner.types):
        return ()
    return choice_keys(name)


def _may_be_choice(owner: Value, name: str) -> bool:
    return _is_choice(owner, name) or bool(_possible_keys(owner, name))


def _others(owner: Value, name: str) -> str:
    """A further argument: elements that are not of this choice although their names begin like it."""
    others = other_names(owner.types, name)
    return f", {others!r}" if others else ""


def _has_one_object(code: str) -> str:
    """Whether a collection is an array of one object, as an expression."""
    return f"{code}.__class__ is list and len({code}) == 1 and {code}[0].__class__ is dict"


def _is_there(value: Value) -> str:
    """Whether a collection has an item, as an expression."""
    code = value.code
    if value.is_list_free and value.is_variable:
        return f"{code} is not None"
    if value.is_list:
        return f"bool({code})"
    if not value.is_variable:
        return f"exists({code})"
    return f"exists({code}) if {code}.__class__ is list else {code} is not None"


def _of_text(name: str, text: str, argument: str) -> str:
    written, helper = _OF_TEXT[name]
    rest = f"None if {text} is None else {helper}({text}, {argument})"
    return f"{written.format(text, argument)} if {text}.__class__ is str else {rest}"


def _element_and_text(criterion: Node) -> tuple[str, str] | None:
    """('code', 'x') of the criterion `code = 'x'`; None for every other."""
    match criterion:
        case Binary(operator="=", left=Member(target=None, name=name), right=Literal(kind="string", value=str(text))):
            return (name, text) if not name[0].isupper() else None
    return None


def _literal(literal: Literal) -> Value:
    kind = "number" if literal.kind in {"integer", "decimal"} else literal.kind
    # Without parentheses Python would read the dot of 5.__class__ as a decimal point.
    code = f"({literal.value!r})" if kind == "number" else repr(literal.value)
    return Value(code, is_list_free=True, kind=kind)
