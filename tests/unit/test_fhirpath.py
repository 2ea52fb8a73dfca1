"""The FHIRPath parser and the functions that generated code calls."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.sql_on_fhir.fhirpath import (
    Binary,
    Call,
    Constant,
    FhirPathError,
    Index,
    Literal,
    Member,
    Negative,
    Node,
    OfType,
    This,
    parse,
)
from pipeline.sql_on_fhir.functions import (
    EvaluationError,
    WrongType,
    children,
    choice,
    equal,
    equal_time,
    greater,
    high_boundary,
    items,
    less,
    low_boundary,
    primitive_extensions,
    reference_keys,
    repeat,
    single,
    unequal,
)


def shape(node: Node | None) -> Any:
    """The tree without positions, short enough to compare by eye."""
    match node:
        case Member(target=target, name=name):
            return f"{shape(target)}.{name}" if target else name
        case OfType(target=target, type_name=type_name):
            return f"{shape(target)}:{type_name}"
        case Literal(value=value):
            return value
        case Constant(name=name):
            return f"%{name}"
        case This():
            return "$this"
        case Index(target=target, position=position):
            return ("[]", shape(target), shape(position))
        case Negative(operand=operand):
            return ("-", shape(operand))
        case Call(target=target, name=name, arguments=arguments):
            return (name, shape(target), *map(shape, arguments))
        case Binary(operator=operator, left=left, right=right):
            return (operator, shape(left), shape(right))
    return type(node).__name__ if node else None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("name.family", "name.family"),
        ("value.ofType(Quantity).unit", "value:Quantity.unit"),
        ("value.ofType(FHIR.Quantity)", "value:Quantity"),
        ("name[0]", ("[]", "name", 0)),
        ("a or b and c", ("or", "a", ("and", "b", "c"))),
        ("a and b or c", ("or", ("and", "a", "b"), "c")),
        ("a = b and c != d", ("and", ("=", "a", "b"), ("!=", "c", "d"))),
        ("a < 1 + 2 * -3", ("<", "a", ("+", 1, ("*", 2, ("-", 3))))),
        ("1 - 2 - 3", ("-", ("-", 1, 2), 3)),
        ("(a or b) and c", ("and", ("or", "a", "b"), "c")),
        ("a in b | c", ("in", "a", ("|", "b", "c"))),
        ("where(use = %u).first()", ("first", ("where", None, ("=", "use", "%u")))),
        ("iif(a, 'x', {})", ("iif", None, "a", "x", "Empty")),
        ("$this.startsWith('a')", ("startsWith", "$this", "a")),
        ("`div`.`a b`", "div.a b"),
        ("%`a b` & %'c'", ("&", "%a b", "%c")),
        ("contains.contains('x')", ("contains", "contains", "x")),
        (r"'a\'b\\\u0041\t'", "a'b\\A\t"),
        ("@2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("@T08:30", "08:30"),
        ("1.50", 1.5),
        ("true", True),
    ],
)
def test_parse(path: str, expected: Any) -> None:
    assert shape(parse(path)) == expected


def test_a_node_knows_its_place() -> None:
    path = "name . where(use = 'x') . family"
    node = parse(path)
    assert isinstance(node, Member)
    assert isinstance(node.target, Call)
    assert path[node.start : node.end] == path
    assert path[node.target.start : node.target.end] == "name . where(use = 'x')"


@pytest.mark.parametrize(
    ("path", "position", "part"),
    [
        ("", 0, "ends where an expression is expected"),
        ("name.", 5, "expected the name"),
        ("name..given", 5, "expected the name"),
        ("name given", 5, "unexpected 'given'"),
        ("name.where(use = 'x'", 20, "expected ')', found the end of the path"),
        ("name['0'", 8, "expected ']'"),
        ("name = 'x", 7, "no closing quote"),
        ("a # b", 2, "'#' is not FHIRPath"),
        ("a implies b", 2, "operator 'implies' is not supported"),
        ("5 mod 2", 2, "operator 'mod' is not supported"),
        ("$index", 0, "only $this"),
        ("value.ofType('x')", 13, "name of a FHIR type"),
        ("a and", 5, "ends where"),
        (")", 0, "expected the name"),
    ],
)
def test_what_is_not_fhirpath_is_refused_with_its_position(path: str, position: int, part: str) -> None:
    with pytest.raises(FhirPathError) as caught:
        parse(path)
    assert part in caught.value.reason
    assert caught.value.position == position


def test_the_caret_stands_under_the_position() -> None:
    with pytest.raises(FhirPathError) as caught:
        parse("name.\n  where(use ! 1)")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("'!' is not FHIRPath (position ")
    assert lines[1][lines[2].index("^")] == "!"


@given(st.text(max_size=40))
@example("((((")
@example("a.b(c[")
@example("%")
@example("'\\")
def test_any_text_parses_or_is_refused(path: str) -> None:
    try:
        node = parse(path)
    except FhirPathError as error:
        assert 0 <= error.position <= len(path)  # noqa: PT017 - both outcomes are right
    else:
        assert 0 <= node.start < node.end <= len(path)


@given(st.text())
def test_any_string_can_be_written_as_a_literal(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    node = parse(f"'{escaped}'")
    assert isinstance(node, Literal)
    assert node.value == text


# --- functions ---------------------------------------------------------------------------------------------

JSON_ITEMS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.just({"a": 1}))


@given(st.lists(JSON_ITEMS))
def test_items_leave_nulls_out(values: list[Any]) -> None:
    assert list(items(values)) == [value for value in values if value is not None]


@given(st.one_of(JSON_ITEMS, st.lists(JSON_ITEMS)))
def test_a_collection_equals_itself_or_is_empty(value: Any) -> None:
    assert equal(value, value) is (True if len(items(value)) else None)
    assert unequal(value, value) is (False if len(items(value)) else None)


def test_equality_knows_booleans_from_numbers() -> None:
    assert equal(True, 1) is False
    assert equal([1, 2], [1, 2]) is True
    assert equal([1, 2], [2, 1]) is False
    assert equal(1, 1.0) is True


@pytest.mark.parametrize("value", ["text", 5, True, ["text"], [{"a": 1}, "text"]])
def test_navigating_into_something_else_than_an_object_is_an_error(value: Any) -> None:
    for navigate in (children, choice):
        with pytest.raises(WrongType, match="expected an object with the element 'a") as caught:
            navigate(value, "a")
        assert "text" not in str(caught.value)


def test_single_refuses_several_values() -> None:
    assert single([None, "a"]) == "a"
    assert single([]) is None
    with pytest.raises(EvaluationError, match="at most one value, found 2"):
        single(["a", "b"])


@pytest.mark.parametrize(
    ("reference", "resource_type", "key"),
    [
        ("Patient/a.b-1", None, "a.b-1"),
        ("Patient/1/_history/2", "Patient", "1"),
        ("https://ehr.example/api/FHIR/R4/Patient/1", "Patient", "1"),
        ("Patient/1", "Group", None),
        ("urn:uuid:0c3b", None, "0c3b"),
        ("urn:uuid:0c3b", "Patient", None),
        ("#contained", None, None),
        ("nonsense", None, None),
    ],
)
def test_reference_keys(reference: str, resource_type: str | None, key: str | None) -> None:
    assert reference_keys({"reference": reference}, resource_type) == ([] if key is None else [key])


def test_a_urn_with_a_declared_type_has_a_key_of_that_type() -> None:
    assert reference_keys({"reference": "urn:uuid:0c3b", "type": "Patient"}, "Patient") == ["0c3b"]
    assert reference_keys({"identifier": {"value": "1"}}) == []


@pytest.mark.parametrize(
    ("value", "kind", "low", "high"),
    [
        (1.0, "", 0.95, 1.05),
        (120, "", 119.5, 120.5),
        (-2.25, "", -2.255, -2.245),
        ("2024", "date", "2024-01-01", "2024-12-31"),
        ("2024-02", "date", "2024-02-01", "2024-02-29"),
        ("2024-02", "", "2024-02-01T00:00:00.000+14:00", "2024-02-29T23:59:59.999-12:00"),
        ("2024-02-01T10:30Z", "", "2024-02-01T10:30:00.000Z", "2024-02-01T10:30:59.999Z"),
        ("2024-02-01T10:30:15.2-05:00", "", "2024-02-01T10:30:15.200-05:00", "2024-02-01T10:30:15.299-05:00"),
        ("10:30", "", "10:30:00.000", "10:30:59.999"),
        (None, "", None, None),
    ],
)
def test_boundaries(value: Any, kind: str, low: Any, high: Any) -> None:
    assert (low_boundary(value, kind), high_boundary(value, kind)) == (low, high)


@pytest.mark.parametrize("value", ["soon", True, {"a": 1}])
def test_boundaries_of_something_else_are_an_error(value: Any) -> None:
    with pytest.raises(WrongType, match="expected a number, date"):
        low_boundary(value)


def test_a_month_that_does_not_exist_has_no_last_day() -> None:
    with pytest.raises(EvaluationError, match="outside the calendar"):
        high_boundary("2024-13", "date")


@pytest.mark.parametrize(
    ("left", "right", "is_less", "is_equal"),
    [
        ("2024-01-01T00:30:00+02:00", "2023-12-31T22:30:00Z", False, True),
        ("2024-01-01", "2024-01-02", True, False),
        ("2024", "2024-05", None, None),
        ("2023", "2024-05", True, False),
        ("2024-05-01T10:00:00.5Z", "2024-05-01T10:00:00.500Z", False, True),
        ("2024-05-01T10:00:00", "2024-05-01T10:00:00Z", None, None),
        ("08:30", "09:00", True, False),
        (1, 1.5, True, False),
        (None, 1, None, None),
    ],
)
def test_order(left: Any, right: Any, is_less: bool | None, is_equal: bool | None) -> None:
    assert less(left, right) is is_less
    assert greater(right, left) is is_less
    assert equal_time(left, right) is is_equal


def test_what_has_no_order_is_an_error() -> None:
    with pytest.raises(WrongType, match="cannot compare a string with a whole number"):
        less("1", 1)
    with pytest.raises(EvaluationError, match="outside the calendar"):
        less("2024-02-31T00:00:00Z", "2024-02-01T00:00:00Z")


def test_extensions_of_a_list_of_primitives() -> None:
    name = {"given": ["A", "B"], "_given": [None, {"extension": [{"url": "u", "valueCode": "IN"}]}]}
    assert primitive_extensions(name, "given", "u") == [{"url": "u", "valueCode": "IN"}]
    assert primitive_extensions(name, "given", "v") == []


def test_repeat_is_not_recursive() -> None:
    deep: dict[str, Any] = {"n": 0}
    for number in range(1, 5000):
        deep = {"n": number, "item": [deep]}
    assert len(repeat({"item": deep}, [lambda node: children(node, "item")])) == 5000
