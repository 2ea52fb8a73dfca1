"""Names of columns by which rules say more of a row than its values: what each prefix and suffix means.

Rules and look-ups add such columns with the functions here, and the transform reads them with the others. Nothing else
knows how the names are put together. `EXPLAINED` is the table in docs/writing-a-mapping.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core.line_codes import IssueCode

__all__ = [
    "EXACT",
    "EXPLAINED",
    "IMPLAUSIBLE",
    "MADE_UP",
    "NOT_MADE",
    "exact",
    "fact_of",
    "is_issue",
    "is_precision",
    "issue",
    "issue_parts",
    "lacks",
    "of_precision",
    "precision",
    "unmapped",
    "unmapped_element",
    "used_names",
    "uses",
]

_USES, _LACKS, _ISSUE, _UNMAPPED = "uses_", "lacks_", "issue_", "unmapped_"
_PRECISION = "_precision"
#: Before what a name is about: the column of an issue, or for what a fact is used a second time.
_ABOUT = "__"
#: `<column>_exact`: texts of the numbers in `<column>` that a double cannot hold. There only where there are any.
EXACT = "_exact"
#: Boolean column, there only where a row has it: the date that counts is a sentinel, or out of range.
IMPLAUSIBLE = "is_implausible"
#: Boolean column: the row is not made, and nothing is wrong. Its issues, and what it depends on, are kept.
NOT_MADE = "not_made"

#: Boolean column: the row's date says nothing about when anything was; no observation period is made of it.
MADE_UP = "is_made_up"

#: Form of the name → type and meaning, for people.
EXPLAINED: Mapping[str, str] = {
    f"{_USES}<fact>": "Int64: the resource whose fact the row depends on; when it changes, the row is made again",
    f"{_LACKS}<fact>": "Boolean: that resource has not come yet",
    f"{_USES}<fact>{_ABOUT}<purpose>, {_LACKS}<fact>{_ABOUT}<purpose>": "the same, where a row uses one fact twice",
    f"{_ISSUE}<code>": "Boolean: the row has an issue (`etl.row_issue`) of this code",
    f"{_ISSUE}<code>{_ABOUT}<column>": "the same, about the element that the column is taken from",
    f"{_UNMAPPED}<element>": "code set, or list of them: present, but unknown; counted in `etl.unmapped_code`",
    f"<date>{_PRECISION}": "Int8: characters of the date that the source gives (4, 7, 10, more); below 10 an issue "
    "`date_imputed`; 0: unusable",
    f"<number>{EXACT}": "String: the number as written, where a double cannot hold its digits",
    NOT_MADE: "Boolean: the row is not made, and that is no issue; it is made again when what it depends on changes",
    MADE_UP: "Boolean: the date says nothing about when anything was, and the row makes no observation period",
    IMPLAUSIBLE: "Boolean: the date that counts cannot be meant (option `implausible_dates`)",
}


def uses(fact: str) -> str:
    """`uses_<fact>`. A fact that is used twice is `<fact>__<purpose>`: see `fact_of`."""
    return f"{_USES}{fact}"


def lacks(fact: str) -> str:
    return f"{_LACKS}{fact}"


def used_names(columns: list[str]) -> list[str]:
    """What `uses` and `lacks` were called with to make these columns, in their order."""
    return [name.removeprefix(_USES) for name in columns if name.startswith(_USES)]


def fact_of(used_name: str) -> str:
    """The fact's own name: of `birth_date__onset` birth_date."""
    return used_name.partition(_ABOUT)[0]


def issue(code: IssueCode, column: str | None = None) -> str:
    """`issue_<code>`, or `issue_<code>__<column>` of an issue about an element."""
    return f"{_ISSUE}{code}{_ABOUT}{column}" if column else f"{_ISSUE}{code}"


def is_issue(name: str) -> bool:
    return name.startswith(_ISSUE)


def issue_parts(name: str) -> tuple[str, str]:
    """Code and column of an issue's column; '' without one."""
    code, _, column = name.removeprefix(_ISSUE).partition(_ABOUT)
    return code, column


def unmapped(element: str) -> str:
    """`unmapped_<element>`: the code set, or list of code sets, of an element that is present and unknown."""
    return f"{_UNMAPPED}{element}"


def unmapped_element(name: str) -> str | None:
    """The element of a column that `unmapped` names; None of another column."""
    return name.removeprefix(_UNMAPPED) if name.startswith(_UNMAPPED) else None


def precision(date: str) -> str:
    return f"{date}{_PRECISION}"


def is_precision(name: str) -> bool:
    return name.endswith(_PRECISION)


def of_precision(name: str) -> str:
    """The date that a column `<date>_precision` is about."""
    return name.removesuffix(_PRECISION)


def exact(number: str) -> str:
    return f"{number}{EXACT}"
