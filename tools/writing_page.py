"""docs/writing-a-mapping.md: every key of a mapping, every column type, every rule; from the models and declarations."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from types import ModuleType

from pydantic import BaseModel

from omop_schema.cdm_fields import TABLES, polars_schema
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.column_names import EXPLAINED, is_issue, is_precision, unmapped_element, used_names
from pipeline.transform.column_types import CONVERTED_TYPES, PRIMITIVE_TYPES
from pipeline.transform.mapping.mappings import (
    ConceptRule,
    Exclusion,
    ResourceMapping,
    StatusFilter,
    StatusVariant,
    TableRule,
    ViewMapping,
)
from pipeline.transform.routing import EVENT_COLUMNS
from pipeline.transform.rules import RULE_MODULES, RULES, Rule
from pipeline.transform.rules.declaration import ISSUES_OF_DATES

__all__ = ["writing_page"]

_EXAMPLE = "Procedure"
_WIDTH = 120
_MODELS = (
    ("A mapping", ResourceMapping, "The keys of a file `mappings/<Resource>.yaml`."),
    ("status", StatusFilter, "A value that is in neither list rejects the resource."),
    ("status.variants", StatusVariant, "A list."),
    ("exclude", Exclusion, "A list; the first that holds is the reason."),
    ("views", ViewMapping, "A list. Beside these keys a view has those of a ViewDefinition: see [Views](#views)."),
    ("home_table", TableRule, "A list; the first that holds counts, and the last must hold for all other rows."),
    (
        "concept_id, type_concept_id and result_concept_id",
        ConceptRule,
        "A list; the first that holds counts, and the last must hold for all.",
    ),
)

_HEAD = """\
# Writing a mapping

Made by `make documents` from the models and the declarations of the rules; do not edit.

A mapping says what the resources of one FHIR type become. It is one YAML file, `mappings/<Resource>.yaml`; a site's own part of
it is laid over the shared one ([a site's own mapping](mapping.md#a-sites-own-mapping)). Why the mappings are as they are is in
[mapping.md](mapping.md); what they filter and which fixed maps they use is in [mapping-tables.md](mapping-tables.md).

## How a resource becomes rows

1. `status` and `exclude` decide whether it is loaded. What they exclude is counted with its reason.
2. Each view gives rows of columns: the first view one row a resource, every other view one or many. The columns of the first
   view are there in the rows of all.
3. The rules under `derive` add columns that a path cannot give, in their order: which of several dates counts, a look-up in a
   value map, what another resource says.
4. An `event` gets its concept from its code (or a fixed one), and goes to the table of the concept's domain. An `entity` is
   written to its table as it is. A `fact` is kept for the rules of other resources.
5. A column that has the name of a column of the table, or of its [event column](#event-columns), fills it. Any other column is
   there for rules and conditions only.

## An example

"""

_TRY = """
Try a mapping:

```sh
epic-omop mappings check                                      # everything that is wrong, with file and line
epic-omop mappings show Procedure                             # what holds, with the concepts' names
epic-omop view run mappings/Procedure.yaml Procedure.ndjson   # the rows of its views, from your own NDJSON
```

Then add a golden case, `tests/golden/<Resource>/<topic>.yaml`: FHIR in, rows out. Three tables of tests name every date, coded
element and row of every mapping: [CONTRIBUTING.md](../CONTRIBUTING.md#a-new-resource) says which.
"""

_VIEWS = """\
## Views

A view is a [SQL on FHIR ViewDefinition](https://sql-on-fhir.org): `select` (with `column`, nested `select`, `unionAll`,
`forEach`, `forEachOrNull`, `repeat`), `where` and `constant`. A column has a `name`, a `path` (FHIRPath, from the resource on, or
from what the `forEach` gives) and a `type`. A view of parts that may be there repeatedly gives the column `item_number`
(`path: "%rowIndex"`), so that an issue can say which item it is about.

A path may give several values only where the column says `collection: true`. Paths are checked against FHIR R4's elements.
`exists()` is true, and `empty()` false, also for a primitive of which only an extension is there (`_birthDate`), as FHIRPath has
it: SQL on FHIR's own tests leave that open. Such an element has no value.
"""

_RULES = """\
## Rules

A rule reads columns of the row and makes others. It can be named under `derive` in any mapping whose view, with the rules before
it, has what it reads: `epic-omop mappings check` says which columns are missing.

- *Dates*: a rule that chooses among dates makes `<name>` (the text), `<name>_date`, `_datetime`, `_moment`, `_precision` and
  `_from` (the column that it is taken from, where something is wrong); below, `<name>…` stands for them. A date that cannot be
  used is an issue: """

_PREFIXES = """\
### Columns that say more of a row

Rules and look-ups make these beside a row's values; nothing has to be declared for them.

"""


def writing_page() -> str:
    """The page as text."""
    return "\n".join(_filled("\n".join(_lines()))).rstrip("\n") + "\n"


_ITEM = re.compile(r"(- |\d+\. )")


def _filled(text: str) -> Iterator[str]:
    """Paragraphs and items of lists filled to the width of documents; tables, headings and code stay."""
    paragraph: list[str] = []
    in_code = False
    for line in (*text.split("\n"), ""):
        item = _ITEM.match(line)
        is_text = line.strip() and not in_code and not line.startswith(("|", "#", "```"))
        if paragraph and (not is_text or item):
            mark = _ITEM.match(paragraph[0])
            indent = " " * len(mark[0]) if mark else ""
            yield from textwrap.wrap(
                " ".join(map(str.strip, paragraph)),
                _WIDTH,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            paragraph = []
        if is_text:
            paragraph.append(line)
        else:
            yield line
        in_code ^= line.startswith("```")


def _lines() -> Iterator[str]:
    yield _HEAD + "```yaml"
    yield (MAPPINGS_FOLDER / f"{_EXAMPLE}.yaml").read_text(encoding="utf-8").rstrip("\n")
    yield "```"
    yield _TRY
    yield from ["## Keys", ""]
    for title, model, note in _MODELS:
        yield from _keys(title, model, note)
    yield _VIEWS
    yield from _types()
    yield from _event_columns()
    yield _RULES + ", ".join(f"`{code}`" for code in ISSUES_OF_DATES) + "."
    yield "- *Concepts*: a look-up makes `<name>_concept_id`, `_source_code` and others; below, `<name>_…` stands for them.\n"
    yield _PREFIXES + _row("column", "holds") + "\n" + _row("---", "---")
    yield from (_row(f"`{name}`", meaning) for name, meaning in EXPLAINED.items())
    yield ""
    for module in RULE_MODULES:
        yield from _module(module)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _keys(title: str, model: type[BaseModel], note: str) -> Iterator[str]:
    summary = " ".join((model.__doc__ or "").split())
    yield from [
        f"### {title}",
        "",
        f"{summary} {note}",
        "",
        _row("key", "default", "meaning"),
        _row("---", "---", "---"),
    ]
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] == "option"):
        if name == "definition":
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        shown = "required" if field.is_required() else f"`{default}`" if default not in (None, (), {}) else "none"
        yield _row(f"`{name}`", shown, field.description or "")
    yield ""


def _types() -> Iterator[str]:
    numbers = ", ".join(f"`{name}`" for name in PRIMITIVE_TYPES)
    yield "## Column types"
    yield ""
    yield f"FHIR's primitive types hold what they are: {numbers} as numbers and truth values, every other as text."
    yield "These types convert:"
    yield ""
    yield from [_row("type", "of", "holds", "what"), _row(*["---"] * 4)]
    for name, kind in CONVERTED_TYPES.items():
        yield _row(f"`{name}`", kind.takes, str(kind.dtype), kind.meaning)
    yield ""


def _event_columns() -> Iterator[str]:
    yield from [
        "## Event columns",
        "",
        "An event does not know its table yet, so its columns have names of their own. What the database's version of the CDM",
        "does not have is left out when rows are written ([versions](cdm-versions.md)).",
        "",
    ]
    yield from [_row("table", "event columns"), _row("---", "---")]
    for table, columns in EVENT_COLUMNS.items():
        yield _row(table, ", ".join(f"`{name}`" for name in dict.fromkeys(columns.values())))
    yield from [
        "",
        "When the concept and the table of a row are known, `value_as_number` is compared with the rules of",
        "`plausibility/*.csv` and `units/*.csv` ([numbers](mapping.md#numbers-what-they-may-be-and-in-which-unit)), whatever",
        "mapping the row comes from. Their columns:",
        "",
        _row("file", "columns"),
        _row("---", "---"),
        _row(
            "`plausibility/*.csv`",
            "`concept` or `domain`, `unit`, `low`, `high`, `negative_allowed` (yes, no), `action`",
        ),
        _row("`units/*.csv`", "`concept`, `from`, `to`, `factor`, `offset` (may be empty: 0)"),
        _row(
            "`duplicates/*.csv`",
            "`name`, `table`, `same` (columns joined by |), `types` (ids joined by |, or empty)",
        ),
        "",
        "A concept is an id or `VOCABULARY:code`, a unit a UCUM code or a spelling of `unit_aliases.csv`; a column `name` is for",
        "those who read the file. A concept has one standard unit (`to`): where a site names another one, the shared",
        "conversions of that concept do not hold there.",
    ]
    yield ""


def _module(module: ModuleType) -> Iterator[str]:
    rules = [rule for rule in RULES.values() if rule.apply.__module__ == module.__name__]
    title = " ".join((module.__doc__ or "").split("\n\n")[0].split()).partition(":")[0].rstrip(".")
    yield from [f"### {title}", ""]
    for rule in rules:
        yield from _rule(rule)


def _rule(rule: Rule) -> Iterator[str]:
    yield from [f"#### {rule.name}", "", rule.summary, ""]
    for title, names in (
        ("Reads", rule.reads),
        ("Reads where it is there", rule.optional),
        ("Makes for the table", _for_tables(rule)),
        ("Makes for other rules", _for_rules(rule)),
        ("Says of the row", [name for name in rule.writes if _says_more(name)]),
        ("Chooses among the dates", rule.dates),
        ("Facts of other resources", rule.facts),
        ("Value maps", rule.value_maps),
        ("Vocabulary priorities", rule.priorities),
        ("Constants", rule.constants),
        ("Options", rule.options),
    ):
        if names:
            yield f"- {title}: {_listed(names)}"
    if not rule.writes:
        yield "- Makes no column: it leaves out rows."
    yield ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_DATE_PARTS = ("_date", "_datetime", "_moment", "_from")
_CONCEPT_PARTS = re.compile(r"(.+)_(concept_id|source_code|source_concept_id|source_system|meaning|excludes)")
_TABLE_COLUMNS = frozenset(
    {"value", "about", "code", "exclude_reason"}
    | {role for columns in EVENT_COLUMNS.values() for role in columns.values()}
    | {name for table in TABLES for name in polars_schema(table)}
)


def _for_tables(rule: Rule) -> list[str]:
    return [name for name in rule.writes if name in _TABLE_COLUMNS]


def _for_rules(rule: Rule) -> list[str]:
    """What is left of `writes`, the parts of a date and of a look-up put together."""
    left = [name for name in rule.writes if name not in _TABLE_COLUMNS and not _says_more(name)]
    dates = {name.removesuffix("_from") for name in left if name.endswith("_from")}
    found: dict[str, None] = {}
    for name in left:
        match = _CONCEPT_PARTS.fullmatch(name)
        date = next((date for date in dates if name in {date, *(f"{date}{part}" for part in _DATE_PARTS)}), None)
        found[f"{date}…" if date else f"{match[1]}_…" if match else name] = None
    return list(found)


def _says_more(name: str) -> bool:
    is_lack = name.startswith("lacks_")
    return (
        bool(used_names([name]))
        or is_lack
        or is_issue(name)
        or is_precision(name)
        or unmapped_element(name) is not None
    )
