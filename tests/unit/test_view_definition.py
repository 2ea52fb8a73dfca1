"""Views as the pipeline runs them: types, converters, errors at compile time, explanations, whole rows only.

What paths and selects mean is in tests/conformance.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import MappingError
from pipeline.sql_on_fhir.r4 import elements_of, has_choice, known_types
from pipeline.sql_on_fhir.view_definition import (
    EVALUATION_ERRORS,
    Column,
    NotAResource,
    Problem,
    WrongType,
    compile_columns,
    compile_together,
    compile_view,
    python_source,
    view_columns,
)

OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "category": [{"coding": [{"code": "laboratory"}]}],
    "code": {"coding": [{"system": "http://loinc.org", "code": "1-8"}], "text": "Test"},
    "subject": {"reference": "Patient/p1"},
    "valueQuantity": {"value": 4, "unit": "mg"},
    "component": [{"valueQuantity": {"value": 1.5}}, {"valueString": "x"}],
}


def column(name: str, path: str, type_name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "path": path, **({"type": type_name} if type_name else {}), **more}


def view(*columns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "test", "resource": "Observation", "select": [{"column": list(columns)}], **more}


VALUE = column("value", "value.ofType(Quantity).value", "decimal")
COMPONENTS: dict[str, Any] = {
    "resource": "Observation",
    "where": [{"path": "status = 'final'"}],
    "select": [
        {"column": [column("id", "id", "id"), column("subject", "subject", "Reference")]},
        {"unionAll": [{"column": [VALUE]}, {"forEach": "component", "column": [VALUE]}]},
    ],
}


def append(definition: dict[str, Any], resource: Any, **converters: Any) -> list[list[Any]]:
    compiled = compile_columns(definition, converters)
    buffers = compiled.new_buffers()
    assert compiled.append(resource, buffers) == len(buffers[0])
    return buffers


# --- columns -----------------------------------------------------------------------------------------------


def test_rows_go_into_buffers_column_by_column() -> None:
    buffers = append(COMPONENTS, OBSERVATION, Reference=lambda reference: reference["reference"])
    assert buffers == [["o1"] * 3, ["Patient/p1"] * 3, [4, 1.5, None]]


def test_views_together_give_what_each_gives_alone() -> None:
    """One of them under a condition that does not hold, one with the same name for something else."""
    final = "category.coding.where(code = %wanted).exists()"
    views = [
        COMPONENTS,
        view(VALUE, where=[{"path": "status = 'cancelled'"}]),
        view(column("is", final, "boolean"), constant=[{"name": "wanted", "valueString": "laboratory"}]),
        view(column("is", final, "boolean"), constant=[{"name": "wanted", "valueString": "imaging"}]),
    ]
    resource = OBSERVATION | {"category": [{"coding": [{"code": "laboratory"}]}]}
    rows: list[list[Any]] = [[] for _ in views]
    compile_together(views).bind(rows)(resource, 7)
    for one, found in zip(views, rows, strict=True):
        width = len(view_columns(one)) + 1
        *buffers, marks = [found[place::width] for place in range(width)]
        assert buffers == append(one, resource)
        assert marks == [7] * len(buffers[0])
    assert rows[1:] == [[], [True, 7], [False, 7]]


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, False),
        ({"valueQuantity": {"value": 1}}, True),
        ({"valueQuantity": [], "valueset": 1}, False),
        ({"valueQuantity": [None], "valueString": "x"}, True),
        ({"valueQuantity": None, "valueOfTheFuture": 0}, True),
        ({"code": {"valueQuantity": 1}}, False),
    ],
)
def test_a_choice_element_is_there_whatever_its_type(elements: dict[str, Any], expected: bool) -> None:
    definition = view(column("is", "value.exists()", "boolean"), column("is_not", "value.empty()", "boolean"))
    assert append(definition, {"resourceType": "Observation"} | elements) == [[expected], [not expected]]


@pytest.mark.parametrize(
    ("left", "right", "either", "both"),
    [
        (True, None, True, None),
        (None, True, True, None),
        (False, None, None, False),
        (None, False, None, False),
        (None, None, None, None),
        (False, False, False, False),
        (True, False, True, False),
        (True, True, True, True),
    ],
)
def test_and_and_or_have_three_values(
    left: bool | None, right: bool | None, either: bool | None, both: bool | None
) -> None:
    definition = view(column("either", "a or b", "boolean"), column("both", "a and b", "boolean"))
    assert append(definition, {"resourceType": "Observation", "a": left, "b": right}) == [[either], [both]]


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        (None, False),
        ({"code": "a"}, True),
        ([{"code": "b"}, None, {"code": ["a"]}], True),
        ([{"code": ["a", "b"]}, [{"code": "b"}], {"code": [["a"]]}, {"code": True}], False),
        ([{"code": "a"}, "no coding"], True),  # the search ends where it is found
        ([{"code": "b"}, "no coding"], "wrong_type"),
        ([{"code": "b"}, ["no coding"]], "wrong_type"),
    ],
)
def test_a_search_for_a_code_ends_at_the_first_hit(coding: Any, expected: bool | str) -> None:
    definition = view(column("is", "code.coding.where(code = 'a').exists()", "boolean"))
    resource = {"resourceType": "Observation", "code": {"coding": coding}}
    if expected == "wrong_type":
        with pytest.raises(WrongType):
            append(definition, resource)
    else:
        assert append(definition, resource) == [[expected]]


def test_columns_are_declared_in_order() -> None:
    assert compile_columns(COMPONENTS, {}).columns == view_columns(COMPONENTS)
    assert view_columns(COMPONENTS) == (
        Column("id", "id", "id", collection=False),
        Column("subject", "subject", "Reference", collection=False),
        Column("value", "value.ofType(Quantity).value", "decimal", collection=False),
    )


def test_converters_get_what_is_there_and_never_null() -> None:
    seen: list[Any] = []

    def convert(value: Any) -> int:
        seen.append(value)
        return len(seen)

    definition = view(
        column("code", "code", "CodeableConcept"),
        column("absent", "value.ofType(CodeableConcept)", "CodeableConcept"),
        column("codings", "code.coding", "Coding", collection=True),
        column("whole", "$this", "made_up"),
        column("status", "status", "code"),
    )
    converters = dict.fromkeys(("CodeableConcept", "Coding", "made_up", "code"), convert)
    buffers = append(definition, OBSERVATION, **converters)
    assert buffers == [[1], [None], [[2]], [3], [4]]
    assert seen == [OBSERVATION["code"], OBSERVATION["code"]["coding"][0], OBSERVATION, "final"]


def test_without_a_converter_a_complex_value_stays_as_it_is() -> None:
    assert append(view(column("code", "code", "CodeableConcept")), OBSERVATION) == [[OBSERVATION["code"]]]


def test_another_resource_type_gives_no_rows() -> None:
    assert append(COMPONENTS, {"resourceType": "Patient"}) == [[], [], []]
    assert compile_view(COMPONENTS)({"resourceType": "Patient"}) == []


@pytest.mark.parametrize("resource", [[], "Observation", 1, None, {}, {"resourceType": None}, {"resourceType": ["x"]}])
def test_what_is_no_resource_is_an_error(resource: Any) -> None:
    compiled = compile_columns(COMPONENTS, {})
    with pytest.raises(NotAResource):
        compiled.append(resource, compiled.new_buffers())
    problem = compiled.explain(resource)
    assert problem is not None
    assert (problem.code, problem.path) == ("not_a_resource", "Observation")


# --- types -------------------------------------------------------------------------------------------------

RIGHT = [
    ("string", "a"),
    ("dateTime", "2024"),
    ("decimal", 1),
    ("decimal", 1.5),
    ("integer", 0),
    ("positiveInt", 3),
    ("boolean", False),
    ("Coding", {}),
]
WRONG = [
    ("string", 1, "expected a string, found a whole number"),
    ("instant", True, "expected a string, found a boolean"),
    ("code", {}, "expected a string, found an object"),
    ("decimal", "12", "expected a number, found a string"),
    ("decimal", True, "expected a number, found a boolean"),
    ("integer", 1.5, "expected a whole number, found a number with a decimal point"),
    ("unsignedInt", False, "expected a whole number, found a boolean"),
    ("boolean", 1, "expected a boolean, found a whole number"),
    ("boolean", "true", "expected a boolean, found a string"),
    ("Coding", "secret", "expected an object, found a string"),
    ("string", [["nested"]], "expected a string, found an array"),
]


@pytest.mark.parametrize(("type_name", "value"), RIGHT)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: [None, value]])
def test_the_right_type_passes(type_name: str, value: Any, wrap: Any) -> None:
    resource = {"resourceType": "Observation", "x": wrap(value)}
    assert append(view(column("x", "x", type_name)), resource) == [[value]]
    assert append(view(column("x", "x", type_name, collection=True)), resource) == [[[value]]]


@pytest.mark.parametrize(("type_name", "value", "reason"), WRONG)
@pytest.mark.parametrize("collection", [False, True])
def test_the_wrong_type_is_an_error_and_explained(type_name: str, value: Any, reason: str, *, collection: bool) -> None:
    compiled = compile_columns(view(column("x", "y.x", type_name, collection=collection)), {})
    resource = {"resourceType": "Observation", "y": {"x": value}}
    with pytest.raises(WrongType, match=reason):
        compiled.append(resource, compiled.new_buffers())
    assert compiled.explain(resource) == Problem("wrong_type", "Observation.y.x", reason)


def test_compile_view_does_not_check_types() -> None:
    assert compile_view(view(column("x", "x", "integer")))({"resourceType": "Observation", "x": "a"}) == [{"x": "a"}]


def test_null_is_no_value() -> None:
    resource = {"resourceType": "Observation", "x": None, "y": [None]}
    assert append(view(column("x", "x", "string"), column("y", "y", "decimal")), resource) == [[None], [None]]


# --- explaining --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        (
            "value.ofType(Quantity).value",
            {"valueQuantity": {"value": "12"}},
            Problem("wrong_type", "Observation.value.ofType(Quantity).value", "expected a number, found a string"),
        ),
        (
            "value.ofType(Quantity).value",
            {"valueQuantity": 12},
            Problem(
                "wrong_type",
                "Observation.value.ofType(Quantity).value",
                "expected an object with the element 'value', found a whole number",
            ),
        ),
        (
            "category.coding.where(code = 'a').extension.value.ofType(decimal)",
            {"category": [{"coding": "laboratory"}]},
            Problem(
                "wrong_type",
                "Observation.category.coding.where(code = 'a')",
                "expected an object with the element 'code', found a string",
            ),
        ),
        (
            "referenceRange.low.value",
            {"referenceRange": [{"low": {"value": 1}}, {"low": {"value": 2}}]},
            Problem(
                "evaluation_failed",
                "Observation.referenceRange.low.value",
                "expected at most one value, found 2; use first(), a where(), or collection: true",
            ),
        ),
        (
            "1 + status.x",
            {},
            Problem("wrong_type", "Observation.status.x", "expected an object with the element 'x', found a string"),
        ),
    ],
)
def test_explain_names_the_shortest_path_that_fails(path: str, change: dict[str, Any], expected: Problem) -> None:
    compiled = compile_columns(view(column("x", path, "decimal")), {})
    resource = OBSERVATION | change
    with pytest.raises(EVALUATION_ERRORS):
        compiled.append(resource, compiled.new_buffers())
    assert compiled.explain(resource) == expected


def test_explain_goes_into_loops() -> None:
    resource = OBSERVATION | {"component": [{"valueQuantity": {"value": 1}}, {"valueQuantity": {"value": "?"}}]}
    assert compile_columns(COMPONENTS, {}).explain(resource) == Problem(
        "wrong_type", "Observation.component.value.ofType(Quantity).value", "expected a number, found a string"
    )


def test_explain_a_condition() -> None:
    compiled = compile_columns(view(VALUE, where=[{"path": "status"}]), {})
    with pytest.raises(WrongType):
        compiled.append(OBSERVATION, compiled.new_buffers())
    expected = Problem("wrong_type", "Observation.status", "expected a boolean, found a string")
    assert compiled.explain(OBSERVATION) == expected


def test_explain_a_converter_without_its_message() -> None:
    def refuse(value: Any) -> None:
        raise ValueError(f"cannot take {value}")

    compiled = compile_columns(view(column("code", "code", "CodeableConcept")), {"CodeableConcept": refuse})
    expected = Problem(
        "evaluation_failed", "Observation.code", "converting the value to CodeableConcept failed (ValueError)"
    )
    assert compiled.explain(OBSERVATION) == expected


def test_nothing_to_explain() -> None:
    assert compile_columns(COMPONENTS, {}).explain(OBSERVATION) is None


# --- bad views ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        (view(column("x", "code.coding.frist()")), "the function frist() is not supported; did you mean first()?"),
        (view(column("x", "code.trace('a')")), "the function trace() is not supported; supported: all, contains"),
        (view(column("x", "Patient.name")), "'Patient' is neither an element nor the view's resource"),
        (view(column("x", "(1).code")), "a number has no elements"),
        (view(column("x", "code.where()")), "where() takes 1 argument, not 0"),
        (view(column("x", "$this.ofType(Quantity)")), "ofType() must follow the name of a choice element"),
        (view(column("x", "extension(status)")), "extension() needs the url as a literal or a constant"),
        (view(column("x", "subject.getReferenceKey('Patient')")), "takes the name of a resource type"),
        (view(column("x", "%missing")), "the constant %missing is not defined in the view (defined: none)"),
        (view(column("x y", "id")), "a column needs a name"),
        (view(column("x", "id", widht=3)), "the column x has the unknown key widht"),
        (view({"name": "x"}), "the path of column x must be a text, not NoneType"),
        (view(column("x", "id", collection="yes")), "collection of the column x must be true or false"),
        (view(column("x", "id", "strng")), "the column x has the unknown type strng"),
        (view(), "a select has neither column nor select nor unionAll"),
        (view(column("x", "id"), where={"path": "id"}), "where must be a list, not dict"),
        (view(column("x", "id"), where=["id"]), "where must hold objects, not str"),
        (view(column("x", "id"), constant=[{"name": "c", "valueInteger": "1"}]), "constant c must be of type integer"),
        (view(column("x", "id"), constant=[{"name": "c", "valueQuantity": {}}]), "needs one value of a FHIR primitive"),
        ({"resource": "Observation", "select": [{"forEach": "component", "forEachOrNull": "x"}]}, "both forEach"),
        ({"resource": "Observation", "select": [{"repeat": [], "column": [VALUE]}]}, "repeat is an empty list"),
        ({"resource": "Observation"}, "the view has no select"),
        ({"resource": "observation", "select": []}, "the view has no resource"),
        ([], "a ViewDefinition must be an object"),
    ],
)  # fmt: skip
def test_bad_views_are_refused_before_data(definition: Any, part: str) -> None:
    with pytest.raises(MappingError) as caught:
        compile_columns(definition, {})
    assert part in str(caught.value)


def test_the_message_shows_the_position_in_the_path() -> None:
    with pytest.raises(MappingError) as caught:
        compile_columns(view(column("x", "code.coding.frist().code")), {})
    *_, path, caret = str(caught.value).splitlines()
    assert path[caret.index("^") :].startswith("frist()")
    assert "View test, column x" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "place", "reason"),
    [
        ("status.exists().code = 'x'", "code = 'x'", "a boolean has no elements"),
        ("1 = Patient.id", "Patient.id", "'Patient' is neither an element nor the view's resource (Observation)"),
        ("status.startsWith()", "startsWith()", "startsWith() takes 1 argument, not 0"),
        ("status.startsWith('a', 'b')", "startsWith(", "startsWith() takes 1 argument, not 2"),
        ("component.select()", "select()", "select() takes 1 argument, not 0"),
        ("component.select(code, value)", "select(", "select() takes 1 argument, not 2"),
        ("status.empty(1)", "empty(1)", "empty() takes 0 arguments, not 1"),
        ("status.join('a', 'b')", "join(", "join() takes 0 to 1 argument, not 2"),
    ],
)
def test_what_does_not_fit_is_shown_where_it_stands(path: str, place: str, reason: str) -> None:
    with pytest.raises(MappingError) as caught:
        compile_columns(view(column("x", path)), {})
    *_, shown, caret = str(caught.value).splitlines()
    assert shown[caret.index("^") :].startswith(place)
    assert reason in str(caught.value)


@pytest.mark.parametrize("condition", ["status.first()", "category.first()", "1 + 2", "'x'", "status.first() and true"])
def test_a_condition_that_is_not_a_boolean_is_refused(condition: str) -> None:
    compiled = compile_columns(view(VALUE, where=[{"path": condition}]), {})
    with pytest.raises(WrongType, match="expected a boolean"):
        compiled.append(OBSERVATION, compiled.new_buffers())


#: Paths of every operator and function that is compiled in a way of its own, on DATED.
DATED = OBSERVATION | {"effectiveDateTime": "2024", "extension": [{"url": "u", "valueString": "v"}]}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("status = 'final'", True),
        ("status != 'final'", False),
        ("'final' = status", True),
        ("value.ofType(Quantity).value = 4", True),
        ("value.ofType(Quantity).value != 4", False),
        ("4 = value.ofType(Quantity).value", True),
        ("category.coding.code = 'laboratory'", True),
        ("category.coding.code.first() != 'laboratory'", False),
        ("id != status", True),
        ("id = id", True),
        ("effective.ofType(dateTime).lowBoundary()", "2024-01-01T00:00:00.000+14:00"),
        ("effective.ofType(dateTime).highBoundary()", "2024-12-31T23:59:59.999-12:00"),
        ("component.where(value.ofType(string) = 'x').exists()", True),
        ("component.where(value.ofType(string) = 'y').exists()", False),
        ("extension.where(url = 'u').value.ofType(string)", "v"),
        ("component.where(value = 'x').exists()", True),
        ("component.where(value = 'y').exists()", False),
        ("extension.where(value = 'v').exists()", True),
        ("category.coding.where(code = 'laboratory').exists()", True),
        ("category.coding.where(code = 'exam').exists()", False),
        ("component.empty()", False),
        ("note.empty()", True),
        ("status.startsWith('fi')", True),
        ("status.startsWith('nal')", False),
        ("component.select(value.ofType(string))", "x"),
    ],
)
def test_what_compiled_paths_give(path: str, expected: Any) -> None:
    assert append(view(column("x", path)), DATED) == [[expected]]


def test_unions_that_multiply_beyond_reason_are_refused() -> None:
    selects = [{"unionAll": [{"column": [column(f"c{number}", "id")]} for _ in range(8)]} for number in range(4)]
    with pytest.raises(MappingError, match="too many combinations"):
        compile_view({"resource": "Observation", "select": selects})


def test_dates_that_yaml_has_read_are_taken_as_constants() -> None:
    import yaml

    constants = yaml.safe_load("[{name: day, valueDate: 2024-05-01}, {name: text, valueString: 'x''\"\\n'}]")
    function = compile_view(view(column("x", "%day"), column("y", "%text"), constant=constants))
    assert function(OBSERVATION) == [{"x": "2024-05-01", "y": "x'\"\\n"}]


@pytest.mark.parametrize("path", ["category.select(coding.code)", "category.where(coding.exists()).coding.code"])
def test_null_in_an_array_is_not_an_item(path: str) -> None:
    category = [None, *OBSERVATION["category"]]
    assert append(view(column("x", path)), OBSERVATION | {"category": category}) == [["laboratory"]]


# --- generated code ----------------------------------------------------------------------------------------


def test_common_prefixes_are_navigated_once() -> None:
    source = python_source(
        view(
            column("a", "value.ofType(Quantity).value"),
            column("b", "value.ofType(Quantity).unit"),
            column("c", "code.coding.where(system = 's').code.first()"),
            column("d", "code.coding.where(system = 's').display.first()"),
        )
    )
    assert source.count("'valueQuantity'") == 1
    assert source.count("for ") == 1


@pytest.mark.parametrize("text", ["'); raise SystemExit #", '"""', "\\", "\x00", "{x}", "é\n"])
def test_texts_of_a_view_stay_texts_in_the_generated_code(text: str) -> None:
    definition = view(column("x", "%c"), column("y", f"code.`{text.replace(chr(92), chr(92) * 2)}`"))
    definition |= {"constant": [{"name": "c", "valueString": text}], "name": text}
    assert compile_view(definition)(OBSERVATION | {"code": {text: 1}}) == [{"x": text, "y": 1}]


# Resources whose elements have any shape: what real servers send, and worse.
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=2))
NAMES = st.sampled_from(["code", "coding", "value", "valueQuantity", "component", "system"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
WILD = compile_columns(
    {
        "resource": "Observation",
        "where": [{"path": "value.exists() or code.empty() or component.coding.exists(system = 'a')"}],
        "select": [
            {"column": [column("code", "code.coding.code.first()", "code"), VALUE]},
            {"column": [column("is", "code.coding.where(code = 'a' and system = 'b').exists()", "boolean")]},
            {
                "unionAll": [
                    {"column": [column("v", "component.value.ofType(Quantity).value.first()", "decimal")]},
                    {"forEachOrNull": "component", "column": [column("v", "value.ofType(Quantity).value", "decimal")]},
                ]
            },
        ],
    },
    {},
)


@given(st.dictionaries(NAMES, ANYTHING, max_size=5))
def test_any_resource_gives_whole_rows_or_an_error_that_is_explained(elements: dict[str, Any]) -> None:
    resource = elements | {"resourceType": "Observation"}
    before = copy.deepcopy(resource)
    buffers = WILD.new_buffers()
    try:
        count = WILD.append(resource, buffers)
    except EVALUATION_ERRORS:
        assert WILD.explain(resource) is not None
    else:
        assert {len(buffer) for buffer in buffers} == {count}
        assert WILD.explain(resource) is None or count == 0  # explain looks at columns of excluded resources too
    assert len({len(buffer) for buffer in buffers}) == 1
    assert resource == before


def flattened(value: Any, names: list[str]) -> list[Any] | None:
    """A plain reading of `a.b.c`: None where it meets what it cannot enter."""
    current = [value]
    for name in names:
        found: list[Any] = []
        for item in current:
            if not isinstance(item, dict):
                return None
            child = item.get(name)
            found.extend(child if isinstance(child, list) else [child])
        current = [item for item in found if item is not None]
    return current


@given(
    st.dictionaries(NAMES, ANYTHING, max_size=5), st.lists(NAMES.filter(lambda n: n != "value"), min_size=1, max_size=4)
)
def test_paths_agree_with_a_plain_reading(elements: dict[str, Any], names: list[str]) -> None:
    resource = elements | {"resourceType": "Observation"}
    function = compile_view(view(column("x", ".".join(names), collection=True)))
    expected = flattened(resource, names)
    if expected is None:
        with pytest.raises(WrongType):
            function(resource)
    else:
        assert function(resource) == [{"x": expected}]


def exists(resource: dict[str, Any], path: str) -> Any:
    definition = {
        "resource": resource["resourceType"],
        "select": [{"column": [{"name": "found", "path": f"{path}.exists()"}]}],
    }
    return append(definition, resource)[0][0]


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        ({"resourceType": "ChargeItem", "occurrenceDateTime": "2020"}, "occurrence"),
        ({"resourceType": "FamilyMemberHistory", "condition": [{"onsetAge": {"value": 3}}]}, "condition.onset"),
        (
            {"resourceType": "FamilyMemberHistory", "condition": [{"onsetAge": {"value": 3}}]},
            "condition.where(onset.exists())",
        ),
        ({"resourceType": "Procedure", "performedString": "in spring"}, "performed"),
        (
            {"resourceType": "Patient", "contained": [{"resourceType": "Device", "extension": [{"valueString": "a"}]}]},
            "contained.extension.value",
        ),
        (
            {
                "resourceType": "Basic",
                "contained": [{"resourceType": "Medication", "ingredient": [{"itemReference": {}}]}],
            },
            "contained.ofType(Medication).ingredient.item",
        ),
        ({"resourceType": "Parameters", "parameter": [{"valueString": "x"}]}, "parameter.value"),
        ({"resourceType": "Library", "subjectReference": {"reference": "Group/1"}}, "subject"),
        ({"resourceType": "DeviceDefinition", "manufacturerString": "x"}, "manufacturer"),
        (
            {"resourceType": "Patient", "contained": [{"resourceType": "Condition", "onsetString": "x"}]},
            "contained.onset",
        ),
        (
            {
                "resourceType": "Patient",
                "contained": [{"resourceType": "Condition", "_onsetString": {"extension": [{}]}}],
            },
            "contained.where(onset.exists())",
        ),
        (
            {"resourceType": "Patient", "contained": [{"resourceType": "Flag", "identifier": [{"value": "x"}]}]},
            "contained.identifier.where(value = 'x')",
        ),
        ({"resourceType": "ImmunizationOfTheFuture", "occurrenceDateTime": "2030"}, "occurrence"),
        (
            {"resourceType": "Questionnaire", "item": [{"item": [{"initial": [{"valueString": "x"}]}]}]},
            "repeat(item).initial.value",
        ),
        (
            {
                "resourceType": "QuestionnaireResponse",
                "item": [{"answer": [{"item": [{"answer": [{"valueBoolean": True}]}]}]}],
            },
            "repeat(item | answer.item).answer.value",
        ),
        ({"resourceType": "Condition", "onsetAge": {"value": 3}}, "(onset | abatement).value"),
    ],
)
def test_choice_elements_are_those_of_the_types_on_the_way(resource: dict[str, Any], path: str) -> None:
    assert exists(resource, path) is True


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        ({"resourceType": "Patient", "contained": [{"valueset": "x", "valueSet": "x"}]}, "contained.value"),
        ({"resourceType": "Patient", "contained": [{"onset": None}]}, "contained.onset"),
        (
            {"resourceType": "SubstanceSpecification", "relationship": [{"amountType": {"text": "x"}}]},
            "relationship.amount",
        ),
    ],
)
def test_elements_that_only_begin_like_a_choice_are_not_of_it(resource: dict[str, Any], path: str) -> None:
    assert exists(resource, path) is False
    first, _, last = path.partition(".")
    assert exists(resource, f"{first}.select({last})") is False


def test_every_choice_element_of_r4_is_one_to_the_compiler() -> None:
    """Walks the table: each `name[x]` of each resource type exists whatever type it comes as."""
    walked = 0
    for resource_type in sorted(known_types()):
        for name, types in (elements_of(resource_type) or {}).items():
            if has_choice(frozenset({resource_type}), name):
                for kind in types or ():
                    key = name + (kind or "String")[:1].upper() + (kind or "String")[1:]
                    resource = {
                        "resourceType": resource_type,
                        key: "x" if not kind or kind[0].islower() else {"a": "b"},
                    }
                    assert exists(resource, name) is True, (resource_type, key)
                    walked += 1
    assert walked > 700
