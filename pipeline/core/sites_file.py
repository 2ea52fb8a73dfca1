"""`sites.yaml` as it is written: every entry with the lines of its keys, so that what is wrong is reported with its line.

What the keys mean and which values they take is not known here (`pipeline.core.settings`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from pipeline.core.errors import ConfigurationError
from pipeline.core.file_errors import remedy
from pipeline.core.files import replace_file

__all__ = ["SiteEntry", "nearest", "read_site_entries", "write_site_entry"]

_SEE = "See README, 'sites.yaml'."
#: The file's own key; those that begin so hold what several sites share, by YAML's anchors and `<<`.
_TOP = ("sites",)
_SHARED = "x-"
#: Deeper than any setting: a value that holds itself by an anchor.
_DEEPEST = 20
_SHAPES = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value", yaml.MappingNode: "keys and values"}


@dataclass(frozen=True)
class SiteEntry:
    """One site: its keys and values, and where they stand. `lines`: path of keys and positions → line (1-based)."""

    name: str
    values: dict[str, Any]
    file: Path
    lines: Mapping[tuple[str, ...], int]

    def place(self, path: Sequence[object]) -> str:
        """`file:line` of the innermost part of a path that is written in the file."""
        keys = tuple(str(part) for part in path)
        while keys not in self.lines:
            keys = keys[:-1]
        return f"{self.file}:{self.lines[keys]}"


def read_site_entries(file: Path) -> list[SiteEntry]:
    """All sites of the file, in its order; an empty file has none.

    Raises ConfigurationError with the line: what is not valid YAML, unknown or repeated keys, an entry without keys and values.
    """
    root = _root(file)
    if root is None or _is_null(root):
        return []
    top = dict(_pairs(root, file, "the file"))
    for name, (line, _) in top.items():
        if name not in _TOP and not name.startswith(_SHARED):
            raise ConfigurationError(f"{file}:{line}: the file has no key {name!r}.{nearest(name, _TOP)}", _SEE)
    if "sites" not in top or _is_null(top["sites"][1]):
        return []
    return [_entry(name, line, node, file) for name, (line, node) in _pairs(top["sites"][1], file, "`sites`")]


def write_site_entry(file: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write or replace one site's entry; the others stay. Raises ConfigurationError for a file that cannot be read."""
    with FileLock(f"{file}.lock"):
        kept = {entry.name: entry.values for entry in read_site_entries(file)} if file.exists() else {}
        kept[name] = _plain(values)
        replace_file(file, yaml.safe_dump({"sites": kept}, sort_keys=False).encode())


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name that is most like it; nothing where none is."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _root(file: Path) -> yaml.Node | None:
    try:
        text = file.read_text(encoding="utf-8-sig")
        root: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.", remedy(error) or _SEE) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} cannot be read: it is not text in UTF-8.", _SEE) from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{file} is not valid YAML{where}.", _SEE) from None
    return root


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _pairs(node: yaml.Node, file: Path, owner: str) -> Iterator[tuple[str, tuple[int, yaml.Node]]]:
    """Key → (its line, value) of keys and values."""
    if not isinstance(node, yaml.MappingNode):
        shape = _SHAPES.get(type(node), "something else")
        raise ConfigurationError(
            f"{file}:{node.start_mark.line + 1}: {owner} is {shape}; it must be keys and values.", _SEE
        )
    _refuse_repeated_keys(node, file, owner)
    try:
        yaml.SafeLoader("").flatten_mapping(node)  # `<<`: what is shared stands before the own keys, which count
        node.value = [*{key.value: (key, value) for key, value in node.value}.values()]
    except (yaml.YAMLError, RecursionError, TypeError):
        raise ConfigurationError(f"{file}:{node.start_mark.line + 1}: `<<` of {owner} cannot be read.", _SEE) from None
    for key, value in node.value:
        yield key.value, (key.start_mark.line + 1, value)


def _refuse_repeated_keys(node: yaml.MappingNode, file: Path, owner: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigurationError(f"{file}:{line}: a key of {owner} is not a single word.", _SEE)
        if key.value in seen:
            raise ConfigurationError(
                f"{file}:{line}: {owner} has the key {key.value!r} twice, first in line {seen[key.value]}.",
                "Only one of them can count: take the other out.",
            )
        seen[key.value] = line


def _entry(name: str, line: int, node: yaml.Node, file: Path) -> SiteEntry:
    lines: dict[tuple[str, ...], int] = {(): line}
    if _is_null(node):
        return SiteEntry(name, {}, file, lines)
    values: dict[str, Any] = {}
    for key, (key_line, value) in _pairs(node, file, f"site {name!r}"):
        lines[(key,)] = key_line
        lines.update(_lines_below(value, (key,), file, name))
        values[key] = _value(value, file, key)
    return SiteEntry(name, values, file, lines)


def _lines_below(
    node: yaml.Node, path: tuple[str, ...], file: Path, site: str
) -> Iterator[tuple[tuple[str, ...], int]]:
    if len(path) > _DEEPEST:
        raise ConfigurationError(f"{file}: {path[0]!r} of site {site!r} is nested too deeply.", _SEE)
    if isinstance(node, yaml.MappingNode):
        for key, (line, value) in _pairs(node, file, f"{'.'.join(path)} of site {site!r}"):
            yield (*path, key), line
            yield from _lines_below(value, (*path, key), file, site)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield (*path, str(position)), item.start_mark.line + 1
            yield from _lines_below(item, (*path, str(position)), file, site)


def _value(node: yaml.Node, file: Path, key: str) -> Any:
    try:
        return yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError):
        line = node.start_mark.line + 1
        raise ConfigurationError(f"{file}:{line}: the value of {key!r} cannot be read.", _SEE) from None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as texts, tuples as lists: what YAML writes."""
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple | list) else value
        for key, value in values.items()
    }
