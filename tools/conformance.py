"""docs/conformance.md: how the project stands to each statement of the FHIR-to-OMOP guide and of Themis, with evidence.

`python -m tools.conformance --results FILE…` makes the page from `requirements.yaml`, `themis.yaml`, the golden cases
and the files that `pytest --requirements-json FILE` wrote (`make conformance` does both). The page names no times and
no numbers of runs, so that it changes only with what it says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import ConfigurationError, EpicOmopError
from tools.golden_cases import GoldenCase, case_name, golden_cases
from tools.words_of_tests import statement_of

__all__ = ["LISTS", "Requirement", "RequirementList", "Results", "load_requirements", "merged", "render", "test_name"]

#: Requirement id → test → outcome as pytest calls it.
Results = Mapping[str, Mapping[str, str]]

_FOLDER = Path(__file__).parent
_PAGE = Path("docs/conformance.md")
#: Characters of a line of text.
_LINE = 120
#: About how many characters of a case's input, and of its rows, the page shows.
_SHOWN = 320
_PARAMETERS = re.compile(r"\[.*\]$", re.DOTALL)
#: Outcomes from the best to the worst: of a test with several runs the worst counts.
_OUTCOMES = ("passed", "skipped", "failed")
_STATUS_WORDS = {"met": "met", "departed": "**departed**", "not_applicable": "not applicable", "open": "**open**"}


class Requirement(BaseModel):
    """One statement of the guide, or of Themis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    #: Themis' page, in docs/pages of its repository, and issue there.
    page: str | None = None
    issue_number: int | None = Field(default=None, alias="issue")
    #: What it is about in the CDM; a field may be several, by commas.
    table: str | None = None
    field: str | None = None
    #: Its words of obligation; of Themis required, recommended or optional.
    level: str
    #: What it asks, in a few words.
    asks: str
    status: Literal["met", "departed", "not_applicable", "open"]
    #: How it is met, or why not.
    why: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that it is about."""
        return tuple(self.field.split(", ")) if self.field else ()


@dataclass(frozen=True)
class RequirementList:
    """A file of statements, and how the page calls it."""

    file: Path
    title: str
    source: str


#: In the order of the page.
LISTS = (
    RequirementList(
        _FOLDER / "requirements.yaml",
        "The guide",
        "The numbered statements of the HL7 guide *FHIR to OMOP*, 2.0.0-ballot.",
    ),
    RequirementList(
        _FOLDER / "themis.yaml",
        "Themis",
        "The conventions of OHDSI's Themis group as statements that can be tested one by one, by the pages of its"
        " repository (`OHDSI/Themis`, docs/pages) and its issues there.",
    ),
)


def load_requirements(file: Path) -> tuple[Requirement, ...]:
    """The statements in the file's order. Raises ConfigurationError."""
    try:
        return tuple(Requirement.model_validate(item) for item in yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file} cannot be used: {error}") from error


def test_name(node_id: str) -> str:
    """A pytest node id as the page names it: golden cases by their name, other tests without their parameters."""
    golden = re.search(r"test_golden\.py::test_golden\[(.*)\]$", node_id)
    if golden:
        return f"golden case {golden[1]}"
    return _PARAMETERS.sub("", node_id).removeprefix("tests/")


test_name.__test__ = False  # type: ignore[attr-defined]  # pytest collects what tests import under such a name


def merged(found: Iterable[Results]) -> dict[str, dict[str, str]]:
    """Results of several runs as one, tests by the names that the page uses."""
    together: dict[str, dict[str, str]] = {}
    for results in found:
        for requirement, tests in results.items():
            of_requirement = together.setdefault(requirement, {})
            for node_id, outcome in tests.items():
                name = test_name(node_id)
                of_requirement[name] = max(of_requirement.get(name, "passed"), outcome, key=_OUTCOMES.index)
    return together


def render(lists: Sequence[tuple[RequirementList, Sequence[Requirement]]], results: Results) -> str:
    """The page."""
    lines = [
        "# Conformance",
        "",
        "How epic-omop stands to the statements of the guide and of Themis. They are described in a few words here; their",
        "full text is where they come from. Made by `make conformance` from `tools/requirements.yaml`,",
        "`tools/themis.yaml` and the results of the tests that carry a statement's id.",
        "",
        "Evidence of a golden case is what was given and the rows that came out, both shortened: the case has all of it.",
        "Each begins with its name, `Resource/topic/case`, which is in `tests/golden/Resource/topic.yaml`. Other tests",
        "load, or ask, a whole warehouse; beneath them is what they say of themselves.",
        "",
        "| | statements | met | met without evidence | departed from, in whole or in part | open | not applicable |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one, requirements in lists:
        counts = Counter(requirement.status for requirement in requirements)
        bare = sum(_is_bare(requirement, results) for requirement in requirements)
        numbers = [len(requirements), counts["met"], bare, counts["departed"], counts["open"], counts["not_applicable"]]
        lines.append(f"| [{one.title}](#{one.title.lower().replace(' ', '-')}) | {' | '.join(map(str, numbers))} |")
    for one, requirements in lists:
        lines += ["", f"## {one.title}", "", *_wrapped(one.source)]
        for requirement in requirements:
            lines += _statement(requirement, results)
    return "\n".join(lines).rstrip("\n") + "\n"


def _is_bare(requirement: Requirement, results: Results) -> bool:
    """Called met, and no test that carries its id has passed."""
    return requirement.status == "met" and "passed" not in results.get(requirement.id, {}).values()


def _statement(requirement: Requirement, results: Results) -> Iterator[str]:
    yield from ["", f"### {requirement.id}: {_STATUS_WORDS[requirement.status]}", ""]
    yield from _wrapped(f"*{requirement.level}.* {requirement.asks}")
    yield from ["", *_wrapped(requirement.why), ""]
    place = (
        [f"`{requirement.table}{'.' + requirement.field if requirement.field else ''}`"] if requirement.table else []
    )
    place += [f"page `{requirement.page}`"] if requirement.page else []
    place += [f"issue {requirement.issue_number}"] if requirement.issue_number else []
    if place:
        yield from [*_wrapped(f"About {', '.join(place)}."), ""]
    if _is_bare(requirement, results):
        yield from ["**No evidence**: no test that passed carries its id.", ""]
    for test, outcome in sorted(results.get(requirement.id, {}).items()):
        yield f"- `{test}`: {outcome}"
        case = golden_cases().get(case_name(test) or "")
        words = statement_of(test)
        if case:
            yield from _evidence(case, requirement)
        elif words:
            yield from wrap(words, _LINE, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)


def _evidence(case: GoldenCase, requirement: Requirement) -> Iterator[str]:
    given, rows = case.input_text(_SHOWN), case.output_text(_SHOWN, requirement.fields)
    for text in (case.title, f"given: {_code(given)}", f"rows: {_code(rows)}"):
        yield from wrap(text, _LINE, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)


def _code(text: str) -> str:
    """As a code span, in which Markdown reads nothing but its end."""
    return "`" + text.replace("`", "'") + "`"


def _wrapped(text: str) -> list[str]:
    return wrap(text, _LINE, break_on_hyphens=False, break_long_words=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page. Exit code 1 where a test of a statement did not pass."""
    parser = argparse.ArgumentParser(prog="python -m tools.conformance", description=__doc__)
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="files of pytest --requirements-json")
    parser.add_argument("--out", type=Path, default=_PAGE, help=f"the page to write ({_PAGE})")
    options = parser.parse_args(arguments)
    try:
        lists = [(one, load_requirements(one.file)) for one in LISTS]
        results = merged(json.loads(file.read_text(encoding="utf-8")) for file in options.results)
    except (EpicOmopError, OSError, json.JSONDecodeError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    options.out.write_text(render(lists, results), encoding="utf-8")
    missed = sorted({name for tests in results.values() for name, outcome in tests.items() if outcome != "passed"})
    sys.stdout.write(f"{options.out} is written; {len(missed)} tests of it did not pass.\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
