"""The files of a mapping as they are written: YAML nodes and CSV rows that know their file and line.

A site's own folders are laid over the shared one here, entry by entry, so that everything which is made of the result
can still be reported with file and line. What the entries mean is `pipeline.transform.mapping.mappings`'s business.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import MappingError
from pipeline.fhir.content_hash import EXCLUDED_META
from pipeline.transform.mapping.overlays import OverlayError, entries, overlaid

__all__ = [
    "MappingProblem",
    "Row",
    "Sources",
    "column_nodes",
    "content_digest",
    "line_of",
    "node_at",
    "plain",
    "read_sources",
    "stamp_problems",
]

_log = logging.getLogger(__name__)

_PRIORITY = "vocabulary_priority.yaml"
_FORMS = "code_forms.yaml"
#: Table file → its columns; the first is the key (of a value map: the first two).
_TABLES = {
    "code_systems.csv": ("system", "vocabulary_id"),
    "constants.csv": ("name", "concept_id"),
    "unmapped_types.csv": ("resource_type", "reason"),
    "unit_aliases.csv": ("unit", "ucum"),
}
#: Columns of a table that a row may leave empty, and those that there may be beside: `None` for any.
_MAY_BE_EMPTY = {"code_systems.csv": ("vocabulary_id",)}
#: A site's table of other names by the name and columns that it had until 0.2: rows of code_systems.csv now.
_FORMER_ALIASES = "system_aliases.csv"
_FORMER_ALIAS_COLUMNS = ("alias", "system")
#: Folder of rules about rows → the columns that a row of its files must fill, and those that it may.
_RULES = {
    "plausibility": ((), ("concept", "domain", "unit", "low", "high", "negative_allowed", "action")),
    "units": (("concept", "from", "to", "factor"), ("offset",)),
    "duplicates": (("name", "table", "same"), ("types",)),
}
#: What distinguishes the rows of each; the files of a folder are one table.
_RULE_KEYS = {
    "plausibility": ("concept", "domain", "unit"),
    "units": ("concept", "from"),
    "duplicates": ("name",),
}
#: May be there for those who read the file.
_RULE_NAME = "name"
#: Keys of a view whose values are FHIRPaths.
_PATHS = frozenset({"path", "forEach", "forEachOrNull", "repeat"})
#: `meta` as a whole, or a member that servers stamp anew on every line.
_STAMP = re.compile(
    rf"\bmeta$|\bmeta\b.*\b(?:{'|'.join(sorted(EXCLUDED_META))})\b|^(?:{'|'.join(sorted(EXCLUDED_META))})\b"
)
_VALUE_COLUMNS = ("system", "code", "concept_id")
#: What distinguishes the rows of a value map; a map may do without the last.
_VALUE_KEYS = ("system", "code", "within")


@dataclass(frozen=True, order=True)
class MappingProblem:
    """One thing that is wrong in a mapping file. `line` is 1-based, 0 where the whole file is meant."""

    file: str
    line: int
    message: str

    def error(self, advice: str = "") -> MappingError:
        return MappingError(self.message, advice, file=self.file, line=self.line or None)


@dataclass(frozen=True)
class Row:
    """One line of a CSV file."""

    #: Column → text, without surrounding blanks; what is empty is left out.
    values: dict[str, str]
    file: str
    line: int

    def problem(self, message: str) -> MappingProblem:
        return MappingProblem(self.file, self.line, message)


@dataclass
class Sources:
    """Everything that a mapping is made of, a site's own entries already in their places."""

    #: resource type → the document of its mapping
    resources: dict[str, yaml.MappingNode] = field(default_factory=dict)
    #: value map → key → row
    values: dict[str, dict[tuple[str, ...], Row]] = field(default_factory=dict)
    #: file name of a table → key → row
    tables: dict[str, dict[tuple[str, ...], Row]] = field(default_factory=lambda: {name: {} for name in _TABLES})
    #: folder of rules about rows → key → row
    rules: dict[str, dict[tuple[str, ...], Row]] = field(default_factory=lambda: {name: {} for name in _RULES})
    #: key → node of the list of vocabularies
    priority: dict[str, yaml.Node] = field(default_factory=dict)
    #: vocabulary → node of the forms of its codes
    forms: dict[str, yaml.Node] = field(default_factory=dict)
    problems: list[MappingProblem] = field(default_factory=list)
    #: Names of the value maps of the shared folder: a site cannot add one, because no rule would read it.
    shared_values: frozenset[str] = frozenset()


def read_sources(folder: Path, layers: Sequence[Path]) -> Sources:
    """Read the shared folder, then lay the folders of a site over it, in order; what does not exist is left out.

    Nothing is raised: what is wrong is in `problems`, and left out of the rest.
    """
    found = Sources()
    maps = folder / "concept_maps"
    for file in sorted(folder.glob("*.yaml")):
        _read_resource(found, file)
    if not found.resources and not found.problems:
        found.problems.append(MappingProblem(str(folder), 0, "there are no mappings (*.yaml) in this folder"))
    for file in sorted((maps / "values").glob("*.csv")):
        _read_values(found, file)
    found.shared_values = frozenset(found.values)
    for name in _TABLES:
        _read_table(found, maps / name)
    _read_entries(found, maps / _PRIORITY, found.priority)
    _read_entries(found, maps / _FORMS, found.forms)
    for name in _RULES:
        found.rules[name] = _read_rules(found, name, sorted((folder / name).glob("*.csv")))
    for layer in layers:
        if layer.is_dir():
            _read_layer(found, layer)
    return found


def content_digest(folder: Path, layers: Sequence[Path]) -> bytes:
    """SHA-256 over names and content of all that `read_sources` reads: of equal ones it gives the same."""
    digest = hashlib.sha256()
    below = [folder / "concept_maps", *(folder / name for name in _RULES), *layers]
    for file in sorted([*folder.glob("*.yaml"), *(file for place in below for file in place.rglob("*"))]):
        try:
            content = b"a folder" if file.is_dir() else hashlib.sha256(file.read_bytes()).digest()
        except OSError as error:
            content = type(error).__name__.encode()
        digest.update(b"%b\0%d\0%b" % (os.fsencode(file), len(content), content))
    return digest.digest()


# --- nodes ---------------------------------------------------------------------------------------------------------


def plain(node: yaml.Node) -> Any:
    """What a node says, as Python's own types. Raises yaml.YAMLError."""
    return yaml.SafeLoader("").construct_document(node)


def line_of(node: yaml.Node) -> tuple[str, int]:
    """File and line (1-based) of a node."""
    return str(node.start_mark.name), node.start_mark.line + 1


def node_at(node: yaml.Node, location: Iterable[Any]) -> yaml.Node:
    """The innermost node that a path of keys and positions leads to; for a key's plain value, the key."""
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = entries(node).get(str(part))
            if pair is None:
                return node
            key, value = pair
            # A value of several lines is located by its key, an entry of a list by itself.
            node = value if isinstance(value, yaml.CollectionNode) and value.value else key
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return node
    return node


def column_nodes(selects: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """Name and node of every column of a view's selects, nested ones included."""
    for select in selects.value if isinstance(selects, yaml.SequenceNode) else ():
        pairs = entries(select)
        for column in pairs["column"][1].value if "column" in pairs else ():
            name = entries(column).get("name")
            if name:
                yield str(name[1].value), column
        for key in ("select", "unionAll"):
            if key in pairs:
                yield from column_nodes(pairs[key][1])


class _Text(io.StringIO):
    """A text that marks call by the name of its file."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def _composed(file: Path) -> yaml.Node | None:
    """The nodes of a file, which know it by name. Raises OSError, UnicodeDecodeError, yaml.YAMLError."""
    text = file.read_text(encoding="utf-8-sig")
    if yaml.__with_libyaml__:  # eight times as fast; the other reports better what is wrong
        with suppress(yaml.YAMLError):
            return yaml.CSafeLoader(_Text(text, str(file))).get_single_node()
    loader = yaml.SafeLoader(text)
    loader.name = str(file)
    return loader.get_single_node()


def stamp_problems(node: yaml.Node) -> Iterator[MappingProblem]:
    """Paths of a mapping into what does not count as a resource's content: a change of it is not seen."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from stamp_problems(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            for text in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if key.value in _PATHS and isinstance(text, yaml.ScalarNode) and _STAMP.search(text.value.strip()):
                    yield MappingProblem(
                        *line_of(text),
                        f"{text.value}: servers stamp {' and '.join(f'meta.{name}' for name in sorted(EXCLUDED_META))}"
                        " anew, they do not count as content, and no mapping may read them",
                    )
            yield from stamp_problems(value)


def _document(file: Path, problems: list[MappingProblem]) -> yaml.MappingNode | None:
    """The document of a YAML file; None, and a problem, where there is none."""
    try:
        node = _composed(file)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(MappingProblem(str(file), 0, f"cannot be read ({type(error).__name__})"))
        return None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None)
        message = f"is not valid YAML ({reason})" if reason else "is not valid YAML"
        problems.append(MappingProblem(str(file), mark.line + 1 if mark else 0, message))
        return None
    if not isinstance(node, yaml.MappingNode):
        problems.append(MappingProblem(str(file), 1, "must hold a mapping of keys"))
        return None
    _use_new_names(node)  # first: an old name beside the new one is the same key twice
    twice = [MappingProblem(*line_of(key), f"the key {key.value!r} is there twice") for key in _repeated(node, set())]
    problems += twice
    return None if twice else node


def _repeated(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    """Keys of which YAML would silently take the last."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[Any] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                yield key
            names.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            yield from _repeated(value, seen)


# --- files ---------------------------------------------------------------------------------------------------------


def _read_resource(found: Sources, file: Path) -> None:
    node = _document(file, found.problems)
    if node is None:
        return
    pair = entries(node).get("resource")
    named = pair[1].value if pair else None
    if pair and named != file.stem:
        found.problems.append(MappingProblem(*line_of(pair[0]), f"resource must be {file.stem}, as the file is named"))
        return
    found.resources[file.stem] = node


#: Keys of a mapping, and kinds of view, by the names that they had until 0.2: accepted for one version.
_RENAMED_KEYS = {"alone": "excluded_unless_row"}
_RENAMED_KINDS = {"reference_value": "fact"}


def _use_new_names(node: yaml.MappingNode) -> None:
    """Give a document today's names; an old one is a warning in the log."""
    for key, value in node.value:
        _rename(key, _RENAMED_KEYS)
        for view in value.value if key.value == "views" and isinstance(value, yaml.SequenceNode) else ():
            kind = entries(view).get("kind")
            if kind:
                _rename(kind[1], _RENAMED_KINDS)


def _rename(node: yaml.Node, names: Mapping[str, str]) -> None:
    if isinstance(node, yaml.ScalarNode) and node.value in names:
        new = names[node.value]
        _warn_of_old_name(*line_of(node), node.value, new)
        node.value = new


@cache
def _warn_of_old_name(file: str, line: int, old: str, new: str) -> None:
    """Once a process, however often the file is read."""
    _log.warning("%s:%d: %s is now called %s; the old name will go.", file, line, old, new)


def _read_rows(
    file: Path,
    columns: tuple[str, ...],
    problems: list[MappingProblem],
    *,
    optional: tuple[str, ...] | None = None,
    may_be_empty: tuple[str, ...] = (),
) -> list[Row]:
    """The rows, each with a value in all of `columns` but `may_be_empty`. `optional`: the other columns that there may be;
    None: any."""
    rows: list[Row] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets write a byte order mark
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                problems.append(MappingProblem(str(file), 1, f"needs the columns {', '.join(columns)}"))
                return []
            unknown = [] if optional is None else sorted({*(reader.fieldnames or ())} - {*columns, *optional})
            if unknown:
                known = ", ".join((*columns, *(optional or ())))
                problems.append(
                    MappingProblem(str(file), 1, f"has no use for the column {unknown[0]!r}; there are {known}")
                )
                return []
            for values in reader:
                is_whole = None not in values and None not in values.values()
                row = Row(
                    {name: value.strip() for name, value in values.items() if name and value},
                    str(file),
                    reader.line_num,
                )
                if not is_whole:
                    names = ", ".join(reader.fieldnames or ())
                    problems.append(row.problem(f"needs one value for each of the columns {names}"))
                    continue
                empty = [name for name in columns if name not in row.values and name not in may_be_empty]
                problems += [row.problem(f"{name} is empty") for name in empty]
                if not empty:
                    rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(MappingProblem(str(file), 0, f"cannot be read ({type(error).__name__})"))
    except csv.Error as error:
        problems.append(MappingProblem(str(file), reader.line_num, f"is not CSV ({error})"))
    return rows


def _keyed(rows: list[Row], keys: tuple[str, ...], problems: list[MappingProblem]) -> dict[tuple[str, ...], Row]:
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row.values.get(name, "") for name in keys)
        if key in found:
            first = found[key]
            place = f"line {first.line}" if first.file == row.file else f"{Path(first.file).name}, line {first.line}"
            problems.append(row.problem(f"{' '.join(filter(None, key))} is there twice, first in {place}"))
        else:
            found[key] = row
    return found


def _read_values(found: Sources, file: Path) -> None:
    rows = _keyed(_read_rows(file, _VALUE_COLUMNS, found.problems), _VALUE_KEYS, found.problems)
    found.values.setdefault(file.stem, {}).update(rows)


def _read_table(found: Sources, file: Path) -> None:
    columns = _TABLES[file.name]
    rows = _read_rows(file, columns, found.problems, may_be_empty=_MAY_BE_EMPTY.get(file.name, ()))
    found.tables[file.name].update(_keyed(rows, columns[:1], found.problems))


def _read_rules(found: Sources, folder: str, files: list[Path]) -> dict[tuple[str, ...], Row]:
    """The rows of the files of a folder of rules about rows, which are one table."""
    filled, optional = _RULES[folder]
    rows = [row for file in files for row in _read_rows(file, filled, found.problems, optional=(*optional, _RULE_NAME))]
    return _keyed(rows, _RULE_KEYS[folder], found.problems)


def _read_entries(found: Sources, file: Path, into: dict[str, yaml.Node]) -> None:
    """The entries of a YAML file, each in the place of one that was there."""
    node = _document(file, found.problems)
    if node is not None:
        into.update({name: value for name, (_, value) in entries(node).items()})


def _read_former_aliases(found: Sources, file: Path) -> None:
    """Rows of a site's system_aliases.csv, as rows of code_systems.csv."""
    for row in _read_rows(file, _FORMER_ALIAS_COLUMNS, found.problems):
        values = {"system": row.values["alias"], "alias_of": row.values["system"]}
        found.tables["code_systems.csv"][values["system"],] = Row(values, row.file, row.line)


# --- a site's own --------------------------------------------------------------------------------------------------


def _read_layer(found: Sources, layer: Path) -> None:
    """Lay one folder of a site over what was read so far. A file that nobody would read is a problem."""
    own = Sources()
    by_entry = {_PRIORITY: found.priority, _FORMS: found.forms}
    for file in sorted(layer.iterdir()):
        if file.name.startswith(".") or file.suffix == ".md":
            continue
        if file.name in {"values", *_RULES} and file.is_dir():
            _read_own_folder(found, file)
        elif file.name in _TABLES:
            _read_table(own, file)
        elif file.name == _FORMER_ALIASES:
            _read_former_aliases(own, file)
        elif file.name in by_entry:
            _read_entries(found, file, by_entry[file.name])
        elif file.suffix == ".yaml":
            _read_resource(own, file)
        else:
            known = ", ".join(
                ["<Resource>.yaml", *(f"{name}/*.csv" for name in ("values", *_RULES)), _PRIORITY, _FORMS, *_TABLES]
            )
            found.problems.append(MappingProblem(str(file), 0, f"is nothing that a site can have: {known}"))
    found.problems += own.problems
    for resource, node in own.resources.items():
        _lay_over(found, resource, node)
        found.tables["unmapped_types.csv"].pop((resource,), None)  # it is mapped here
    for key, row in own.tables["unmapped_types.csv"].items():
        if key[0] in own.resources:
            found.problems.append(row.problem(f"{key[0]} is mapped by a file of this folder"))
        found.resources.pop(key[0], None)  # the site leaves it out
    for name, rows in own.tables.items():
        found.tables[name].update(rows)


def _read_own_folder(found: Sources, folder: Path) -> None:
    """A site's entries of value maps, or of rules about rows."""
    if folder.name in _RULES:
        own = _read_rules(found, folder.name, _csv_files(found, folder))
        if folder.name == "units":
            _leave_out_other_standards(found.rules["units"], own)
        found.rules[folder.name].update(own)
        return
    for values in sorted(folder.iterdir()):
        _read_own_values(found, values)


def _leave_out_other_standards(shared: dict[tuple[str, ...], Row], own: Mapping[tuple[str, ...], Row]) -> None:
    """A concept has one standard unit: where a site names another one, the shared conversions of the concept go."""
    standards = {row.values["concept"]: row.values["to"] for row in own.values()}
    for key, row in [*shared.items()]:
        if standards.get(row.values["concept"], row.values["to"]) != row.values["to"]:
            del shared[key]


def _csv_files(found: Sources, folder: Path) -> list[Path]:
    """The CSV files of a site's folder of rules; another file is a problem."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.suffix != ".md")
    others = [file for file in files if file.suffix != ".csv"]
    found.problems += [MappingProblem(str(file), 0, "is not a file of rules (*.csv)") for file in others]
    return [file for file in files if file.suffix == ".csv"]


def _lay_over(found: Sources, resource: str, node: yaml.MappingNode) -> None:
    base = found.resources.get(resource)
    if base is None:
        found.resources[resource] = node
        return
    try:
        found.resources[resource] = overlaid(base, node)
    except OverlayError as error:
        found.problems += [MappingProblem(*line_of(place), message) for place, message in error.problems]


def _read_own_values(found: Sources, file: Path) -> None:
    if file.suffix != ".csv":
        found.problems.append(MappingProblem(str(file), 0, "is not a value map (*.csv)"))
    elif file.stem not in found.shared_values:
        known = ", ".join(sorted(found.shared_values))
        message = f"no rule reads a value map of this name; there are {known}"
        found.problems.append(MappingProblem(str(file), 0, message))
    else:
        _read_values(found, file)
