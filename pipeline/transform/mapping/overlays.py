"""A site's part of a mapping laid over the shared one, as YAML nodes: every node keeps its own file and line.

- `status`: `keep` and `exclude` entries move a value to where the site wants it, `variants` are added, `column` and
  `missing` replace. `exclude`, `known_modifiers`: added. `order` replaces.
- `views`, by name: `remove: true` drops one, a new name is a new view. In one that exists, a key that is given
  replaces; only `columns` goes further: each of its columns replaces the one of that name, wherever the select has it,
  is dropped by `remove: true`, or is added to the first select.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import yaml

__all__ = ["OverlayError", "entries", "overlaid"]

_MAP, _LIST, _TEXT = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:str"

_Entries = dict[str, tuple[yaml.Node, yaml.Node]]


class OverlayError(ValueError):
    """Why a site's part does not fit: (node of the site's file, message) of everything that is wrong."""

    def __init__(self, problems: list[tuple[yaml.Node, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


def entries(node: yaml.Node) -> _Entries:
    """Key → (key node, value node) of a mapping; nothing for another node."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def overlaid(base: yaml.MappingNode, own: yaml.MappingNode) -> yaml.MappingNode:
    """The document `base` with `own` laid over it; neither is changed. Raises OverlayError."""
    overlay = _Overlay()
    merged = overlay.resource(base, own)
    if overlay.problems:
        raise OverlayError(overlay.problems)
    return merged


class _Overlay:
    def __init__(self) -> None:
        self.problems: list[tuple[yaml.Node, str]] = []

    def resource(self, base: yaml.MappingNode, own: yaml.MappingNode) -> yaml.MappingNode:
        rules: dict[str, Callable[[yaml.Node, yaml.Node], yaml.Node]] = {
            "status": self._status,
            "exclude": self._added,
            "known_modifiers": self._added,
            "views": self._views,
        }
        merged = entries(base)
        for name, (key, value) in entries(own).items():
            rule = rules.get(name)
            merged[name] = (key, rule(merged[name][1], value) if rule and name in merged else value)
        return _mapping(merged, base)

    def _added(self, base: yaml.Node, own: yaml.Node) -> yaml.Node:
        if not isinstance(own, yaml.SequenceNode) or not isinstance(base, yaml.SequenceNode):
            self.problems.append((own, "must be a list; its entries are added"))
            return base
        return _sequence([*base.value, *own.value], own)

    def _status(self, base: yaml.Node, own: yaml.Node) -> yaml.Node:
        """The filter with the site's values moved to where it says; what it does not name stays."""
        if not isinstance(own, yaml.MappingNode):
            self.problems.append((own, "status must be a mapping: column, keep, exclude, missing, variants"))
            return base
        merged, given = entries(base), entries(own)
        values = self._status_values(own, given)
        if values is None:
            return base
        keep, exclude = values
        kept = {str(node.value) for node in keep}
        old_keep = [node for node in merged["keep"][1].value if node.value not in exclude and node.value not in kept]
        old_exclude = entries(merged["exclude"][1]) if "exclude" in merged else {}
        left = {name: pair for name, pair in old_exclude.items() if name not in kept}
        keys = {name: (given.get(name) or merged.get(name) or (_text(name, own),))[0] for name in ("keep", "exclude")}
        merged |= {name: given[name] for name in given if name not in {"keep", "exclude", "variants"}}
        if "variants" in given:
            key, value = given["variants"]
            merged["variants"] = (key, self._added(merged["variants"][1], value) if "variants" in merged else value)
        merged["keep"] = (keys["keep"], _sequence([*old_keep, *keep], own))
        merged["exclude"] = (keys["exclude"], _mapping({**left, **exclude}, own))
        return _mapping(merged, own)

    def _status_values(self, own: yaml.Node, given: _Entries) -> tuple[list[yaml.Node], _Entries] | None:
        """What a site's filter keeps and excludes; None, and a problem, where it is not written as that."""
        keep = given["keep"][1].value if "keep" in given else []
        excluded = given["exclude"][1] if "exclude" in given else None
        if not isinstance(keep, list) or not (excluded is None or isinstance(excluded, yaml.MappingNode)):
            self.problems.append((own, "status: keep is a list of values, exclude maps values to reasons"))
            return None
        exclude = entries(excluded) if excluded is not None else {}
        for name in sorted({str(node.value) for node in keep} & set(exclude)):
            self.problems.append((exclude[name][0], f"status: {name} is both kept and excluded"))
        return keep, exclude

    # --- views ---

    def _views(self, base: yaml.Node, own: yaml.Node) -> yaml.Node:
        if not isinstance(own, yaml.SequenceNode):
            self.problems.append((own, "views must be a list"))
            return base
        names = [_name(view) for view in base.value]
        views: dict[str, list[yaml.Node]] = {}
        for name, view in zip(names, base.value, strict=True):  # several where options choose between forms of a view
            views.setdefault(name, []).append(view)
        given: set[str] = set()
        for view in own.value:
            name = _name(view)
            if not name:
                self.problems.append((view, "a view of a site needs the name of the view that it changes or adds"))
            elif name in given:
                self.problems.append((view, f"the view {name} is there twice"))
            elif "remove" in entries(view):
                self._remove_view(view, name, names, views)
            elif name in views:
                views[name] = [self._view(form, view) for form in views[name]]
            else:
                views[name] = [view]
            given.add(name)
        return _sequence([form for forms in views.values() for form in forms], own)

    def _remove_view(self, view: yaml.Node, name: str, names: list[str], views: dict[str, list[yaml.Node]]) -> None:
        keys = entries(view)
        if keys["remove"][1].value != "true" or set(keys) != {"name", "remove"}:
            self.problems.append((keys["remove"][0], "a view is dropped by its name and `remove: true` alone"))
        elif name not in views:
            self.problems.append((view, f"there is no view {name} to remove; there are {', '.join(names)}"))
        elif name == names[0]:
            self.problems.append((view, f"the view {name} cannot be removed: the others are joined to its rows"))
        else:
            del views[name]

    def _view(self, base: yaml.Node, own: yaml.Node) -> yaml.Node:
        merged, given = entries(base), entries(own)
        columns = given.pop("columns", None)
        if columns and "select" in given:
            self.problems.append((columns[0], "give either columns, which changes the select, or the whole select"))
            return base
        for name, pair in given.items():
            merged[name] = pair
        for one, other in (("code", "concept_id"), ("concept_id", "code")):
            if one in given and other not in given:
                merged.pop(other, None)  # a view has codes or a fixed concept: the site's choice replaces the other
        if columns:
            merged["select"] = (merged["select"][0], self._columns(merged["select"][1], columns[1]))
        return _mapping(merged, own)

    def _columns(self, select: yaml.Node, own: yaml.Node) -> yaml.Node:
        if not isinstance(own, yaml.SequenceNode):
            self.problems.append((own, "columns must be a list"))
            return select
        for column in own.value:
            name = _name(column)
            if not name:
                self.problems.append((column, "a column needs a name"))
                continue
            is_removal = "remove" in entries(column)
            count = _count(select, name)
            if count > 1:
                self.problems.append(
                    (column, f"the column {name} is there {count} times (unionAll): give the view's whole select")
                )
            elif count == 1:
                select = _replaced(select, name, None if is_removal else column)
            elif is_removal:
                self.problems.append((column, f"there is no column {name} to remove"))
            else:
                select = _with_column(select, column)
        return select


def _name(node: yaml.Node) -> str:
    pair = entries(node).get("name")
    return str(pair[1].value) if pair and isinstance(pair[1], yaml.ScalarNode) else ""


def _count(select: yaml.Node, name: str) -> int:
    """How many columns of that name a list of selects has, nested ones included."""
    found = 0
    for part in select.value if isinstance(select, yaml.SequenceNode) else ():
        pairs = entries(part)
        found += sum(_name(column) == name for column in pairs["column"][1].value) if "column" in pairs else 0
        found += sum(_count(pairs[key][1], name) for key in ("select", "unionAll") if key in pairs)
    return found


def _replaced(select: yaml.Node, name: str, column: yaml.Node | None) -> yaml.Node:
    """The selects with `column` in place of the one of that name; None drops it."""
    parts = []
    for part in select.value:
        pairs = entries(part)
        if "column" in pairs:
            key, old = pairs["column"]
            new = [column if _name(item) == name else item for item in old.value]
            pairs["column"] = (key, _sequence([item for item in new if item is not None], old))
        for nested in ("select", "unionAll"):
            if nested in pairs:
                pairs[nested] = (pairs[nested][0], _replaced(pairs[nested][1], name, column))
        parts.append(_mapping(pairs, part))
    return _sequence(parts, select)


def _with_column(select: yaml.Node, column: yaml.Node) -> yaml.Node:
    """The selects with the column at the end of the first select's own."""
    first = select.value[0]
    pairs = entries(first)
    key, old = pairs.get("column", (_text("column", first), _sequence([], first)))
    pairs["column"] = (key, _sequence([*old.value, column], old))
    return _sequence([_mapping(pairs, first), *select.value[1:]], select)


def _mapping(pairs: _Entries, like: yaml.Node) -> yaml.MappingNode:
    return yaml.MappingNode(_MAP, list(pairs.values()), like.start_mark, like.end_mark)


def _sequence(items: Sequence[yaml.Node], like: yaml.Node) -> yaml.SequenceNode:
    return yaml.SequenceNode(_LIST, list(items), like.start_mark, like.end_mark)


def _text(value: str, like: yaml.Node) -> yaml.ScalarNode:
    return yaml.ScalarNode(_TEXT, value, like.start_mark, like.end_mark)
