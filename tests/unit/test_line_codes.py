"""Each code of a dead letter and of an issue has an entry, and no code is given that is not in the table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.line_codes import IssueCode, RejectionCode
from pipeline.fhir.lines import PERSON_ERASED
from pipeline.load.landed_lines import MISSING_LINE
from pipeline.publication.steps.accounts import _REASONS
from pipeline.quality.line_code_texts import ISSUES, REJECTIONS, rejection_text
from pipeline.transform.mapping.duplicate_rules import COUNTED_ELSEWHERE
from pipeline.transform.references import ReferenceProblem
from pipeline.transform.rules import RULES
from pipeline.transform.rules.declaration import ISSUES_OF_DATES
from pipeline.transform.value_checks import IMPLAUSIBLE_VALUE, NEGATIVE_VALUE
from tools.dead_letters_page import dead_letters_page

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "pipeline"
#: Where rejections and issues are made. Elsewhere `code` is that of a coding, an OperationOutcome, a report.
STAGES = ("sql_on_fhir", "transform", "load", "publication")
#: Calls whose argument at this place is a code: a name of the function → position.
MAKERS = {"Problem": 0, "Rejected": 2, "_reject": 2, "issue": 0, "_with_issues": 1}
#: Functions of the same name whose argument is no code.
OTHERS = {("load/processes.py", "_reject")}


def test_each_code_has_an_entry_and_a_place_on_the_page() -> None:
    assert list(REJECTIONS) == list(RejectionCode)
    assert list(ISSUES) == list(IssueCode)
    headings = re.findall(r"^### (\w+)$", dead_letters_page(), re.MULTILINE)
    assert headings == [*RejectionCode, *IssueCode]
    for text in (*REJECTIONS.values(), *ISSUES.values()):
        assert len(text.summary) <= 70, text.summary
        assert not text.summary.endswith("."), text.summary
        assert text.meaning.endswith("."), text.meaning
        assert text.what_to_do.endswith("."), text.what_to_do
    assert all(text.stages for text in REJECTIONS.values())
    assert rejection_text("a code of before") is None


def _calls() -> Iterator[tuple[str, int, ast.expr]]:
    for stage in STAGES:
        for file in sorted((PIPELINE / stage).rglob("*.py")):
            name = file.relative_to(PIPELINE).as_posix()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    place = MAKERS.get(called)
                    if place is not None and (name, called) not in OTHERS and len(node.args) > place:
                        yield f"{name}:{node.lineno}", place, node.args[place]


def test_no_code_is_a_text_where_one_is_given() -> None:
    calls = list(_calls())
    assert len(calls) > 40
    assert [place for place, _, given in calls if isinstance(given, ast.Constant | ast.JoinedStr)] == []


def _literal_codes(source: str) -> Iterator[str]:
    """Texts that an expression puts into a column of codes: within what is called `.alias("code")` or `.alias("code_")`."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "alias"):
            continue
        if not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value in {"code", "code_"}):
            continue
        for inner in ast.walk(node.func.value):
            is_literal = isinstance(inner, ast.Call) and ast.unparse(inner.func) == "pl.lit"
            if is_literal and isinstance(inner.args[0], ast.Constant) and isinstance(inner.args[0].value, str):
                yield inner.args[0].value


def test_no_column_of_codes_is_filled_with_a_text() -> None:
    files = [file for stage in STAGES for file in sorted((PIPELINE / stage).rglob("*.py"))]
    found = {file.name: list(_literal_codes(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: codes for name, codes in found.items() if codes} == {}
    chain = 'pl.when(a).then(pl.lit("code_invalid")).otherwise(pl.lit(Code.X)).alias("code_")'
    assert list(_literal_codes(chain)) == ["code_invalid"]


def test_codes_that_golden_cases_meet_are_in_the_table() -> None:
    """The golden tests themselves refuse a code that is not; here all cases are read, and none is run."""
    text = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests" / "golden").rglob("*.yaml")))
    rejected = set(re.findall(r"rejected:(\w+)", text))
    assert len(rejected) > 5
    assert rejected <= set(RejectionCode)


def test_codes_that_are_texts_elsewhere_are_in_the_table() -> None:
    """SQL scripts, enums of references, names of rules' columns: what has no name of the table in its place."""
    scripts = [file.read_text(encoding="utf-8") for file in sorted((PIPELINE / "publication" / "sql").glob("*.sql"))]
    issues = [script for script in scripts if re.search(r"INSERT INTO (\{etl\}\.)?row_issue", script)]
    assert issues
    for script in issues:
        inserted = re.search(r"INSERT INTO [^;]*?SELECT ([^;]*?)FROM", script, re.DOTALL)
        assert inserted is not None
        assert set(re.findall(r"'(\w+)'", inserted[1])) <= set(IssueCode)
    written = {name for rule in RULES.values() for name in rule.all_writes if name.startswith("issue_")}
    assert {name.removeprefix("issue_").partition("__")[0] for name in written} <= set(IssueCode)
    assert {problem.name for problem in ReferenceProblem} <= set(IssueCode)
    assert {*ISSUES_OF_DATES, NEGATIVE_VALUE, IMPLAUSIBLE_VALUE, COUNTED_ELSEWHERE, MISSING_LINE} <= set(IssueCode)
    assert PERSON_ERASED == RejectionCode.PERSON_ERASED
    assert set(_REASONS) <= set(RejectionCode)


@pytest.mark.parametrize("code", [*RejectionCode, *IssueCode])
def test_no_code_is_unused(code: RejectionCode | IssueCode) -> None:
    name, members = code.value, f"{type(code).__name__}.{code.name}"
    own = {"core/line_codes.py", "quality/line_code_texts.py"}
    assert any(
        members in text or name in text
        for file in [*PIPELINE.rglob("*.py"), *PIPELINE.rglob("*.sql")]
        if file.relative_to(PIPELINE).as_posix() not in own
        for text in [file.read_text(encoding="utf-8")]
    ), f"nothing gives {name}"
