"""White space within arrays: what is left of them, and in which places."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.fhir.white_space import without_white_space


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ([{"text": " "}, {"text": " b "}], [{"text": "b"}]),  # an object of white space only is not there
        ([{"coding": [{"code": " "}]}, {"coding": [{"code": "x "}]}], [{"coding": [{"code": "x"}]}]),
        ([" ", "b "], [None, "b"]),  # of texts the places stay: `_given` may say something about them
        ([None, {"text": " b"}], [None, {"text": "b"}]),
        ([{"text": " "}], None),
        ([" "], None),
        ([{}, {"text": "b "}], [{}, {"text": "b"}]),
    ],
)
def test_an_array(given: Any, left: Any) -> None:
    expected = {} if left is None else {"item": left}
    assert without_white_space({"item": given}) == expected
