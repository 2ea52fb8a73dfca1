"""A settings file in YAML as it is written: keys and values with their lines, so that what is wrong is reported with its line.

What the keys mean and which values they take is not known here. `sites.yaml` is read by it (`pipeline.core.sites_file`), and
`operations.yaml` (`pipeline.core.operations_settings`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import ConfigurationError
from pipeline.core.file_errors import remedy

__all__ = ["SettingsEntry", "SettingsFile", "is_null", "nearest"]

#: The keys that begin so hold what several entries share, by YAML's anchors and `<<`.
_SHARED = "x-"
#: Deeper than any setting: a value that holds itself by an anchor.
_DEEPEST = 20
_SHAPES = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value", yaml.MappingNode: "keys and values"}


@dataclass(frozen=True)
class SettingsEntry:
    """One entry: its keys and values, and where they stand. `lines`: path of keys and positions → line (1-based)."""

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


@dataclass(frozen=True)
class SettingsFile:
    """One file; `advice` ends every error."""

    file: Path
    advice: str

    def top(self, known: Sequence[str]) -> dict[str, tuple[int, yaml.Node]]:
        """Key → (its line, value) of the file itself; an empty file has none, nor has a key without a value.

        Raises ConfigurationError with the line: what is not valid YAML, unknown or repeated keys.
        """
        root = self._root()
        if root is None or is_null(root):
            return {}
        top = dict(self.pairs(root, "the file"))
        for name, (line, _) in top.items():
            if name not in known and not name.startswith(_SHARED):
                raise ConfigurationError(
                    f"{self.file}:{line}: the file has no key {name!r}.{nearest(name, known)}", self.advice
                )
        return {name: (line, node) for name, (line, node) in top.items() if name in known and not is_null(node)}

    def entry(self, name: str, line: int, node: yaml.Node, owner: str) -> SettingsEntry:
        """The keys and values of one entry, which errors call `owner`: `site 'one'`."""
        lines: dict[tuple[str, ...], int] = {(): line}
        if is_null(node):
            return SettingsEntry(name, {}, self.file, lines)
        values: dict[str, Any] = {}
        for key, (key_line, value) in self.pairs(node, owner):
            lines[(key,)] = key_line
            lines.update(self._lines_below(value, (key,), owner))
            values[key] = self._value(value, key)
        return SettingsEntry(name, values, self.file, lines)

    def pairs(self, node: yaml.Node, owner: str) -> Iterator[tuple[str, tuple[int, yaml.Node]]]:
        """Key → (its line, value) of keys and values."""
        file = self.file
        if not isinstance(node, yaml.MappingNode):
            shape = _SHAPES.get(type(node), "something else")
            raise ConfigurationError(
                f"{file}:{node.start_mark.line + 1}: {owner} is {shape}; it must be keys and values.", self.advice
            )
        self._refuse_repeated_keys(node, owner)
        try:
            yaml.SafeLoader("").flatten_mapping(node)  # `<<`: what is shared stands before the own keys, which count
            node.value = [*{key.value: (key, value) for key, value in node.value}.values()]
        except (yaml.YAMLError, RecursionError, TypeError):
            line = node.start_mark.line + 1
            raise ConfigurationError(f"{file}:{line}: `<<` of {owner} cannot be read.", self.advice) from None
        for key, value in node.value:
            yield key.value, (key.start_mark.line + 1, value)

    def _root(self) -> yaml.Node | None:
        file, see = self.file, self.advice
        try:
            text = file.read_text(encoding="utf-8-sig")
            root: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}.", remedy(error) or see) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{file} cannot be read: it is not text in UTF-8.", see) from None
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}" if mark else ""
            raise ConfigurationError(f"{file} is not valid YAML{where}.", see) from None
        return root

    def _refuse_repeated_keys(self, node: yaml.MappingNode, owner: str) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigurationError(f"{self.file}:{line}: a key of {owner} is not a single word.", self.advice)
            if key.value in seen:
                raise ConfigurationError(
                    f"{self.file}:{line}: {owner} has the key {key.value!r} twice, first in line {seen[key.value]}.",
                    "Only one of them can count: take the other out.",
                )
            seen[key.value] = line

    def _lines_below(self, node: yaml.Node, path: tuple[str, ...], owner: str) -> Iterator[tuple[tuple[str, ...], int]]:
        if len(path) > _DEEPEST:
            raise ConfigurationError(f"{self.file}: {path[0]!r} of {owner} is nested too deeply.", self.advice)
        if isinstance(node, yaml.MappingNode):
            for key, (line, value) in self.pairs(node, f"{'.'.join(path)} of {owner}"):
                yield (*path, key), line
                yield from self._lines_below(value, (*path, key), owner)
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                yield (*path, str(position)), item.start_mark.line + 1
                yield from self._lines_below(item, (*path, str(position)), owner)

    def _value(self, node: yaml.Node, key: str) -> Any:
        try:
            return yaml.SafeLoader("").construct_document(node)
        except (yaml.YAMLError, ValueError, TypeError):
            line = node.start_mark.line + 1
            raise ConfigurationError(f"{self.file}:{line}: the value of {key!r} cannot be read.", self.advice) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name that is most like it; nothing where none is."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
