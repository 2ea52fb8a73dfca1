"""`epic-omop view`: try a SQL on FHIR view on NDJSON, for people who write mappings.

Reads a ViewDefinition or a mapping file, compiles its views as the pipeline does (declared types are checked),
prints the rows, and says for each line that cannot be read or evaluated where and why. Needs no warehouse.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import typer

from pipeline.commands.output import Column, Kind, Listing, print_listing
from pipeline.commands.terminal import Terminal, document, echo
from pipeline.core.errors import MappingError, UsageError
from pipeline.core.spreadsheet_cells import guarded

if TYPE_CHECKING:
    from pipeline.sql_on_fhir.view_definition import CompiledColumns

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Try the views of a mapping on FHIR resources.\n\n"
    "A view is a SQL on FHIR v2 ViewDefinition: columns with FHIRPath, see https://sql-on-fhir.org.",
)

# Enough to see what is wrong with a file; the count below them is complete.
_MOST_BROKEN_LINES_SHOWN: Final = 20
_TABLE_ROWS: Final = 50
_GZIP_MAGIC: Final = b"\x1f\x8b"


class Format(StrEnum):
    table = "table"
    csv = "csv"
    ndjson = "ndjson"


@dataclass(frozen=True)
class NamedView:
    name: str
    compiled: CompiledColumns


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own while it is the only one."""


@app.command()
def run(
    view: Annotated[Path, typer.Argument(help="ViewDefinition or mapping file, YAML or JSON.", show_default=False)],
    file: Annotated[
        str, typer.Argument(help="NDJSON of resources, also .gz; - reads standard input.", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option(help="The view to run, where the file holds several; default: all.")] = "",
    output: Annotated[
        Format | None,
        typer.Option("--format", help="Default: table in a terminal, ndjson in a pipe.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Rows to show of each view, 0 for all; default: 50 in a table, else all.", min=0),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the Python that the view becomes, and stop.")
    ] = False,
) -> None:
    """Show the rows that a view makes of the resources in FILE.

    Resources of other types than the view's are passed over. Lines that cannot be read or evaluated are named on
    standard error, with the FHIRPath that fails; the exit code is then 1. It is 2 when the view itself is wrong.

    Examples:

      epic-omop view run mappings/Patient.yaml Patient.ndjson.gz --name patient --limit 10

      zcat Observation.ndjson.gz | epic-omop view run my_view.json - --format csv > rows.csv
    """
    views = [_compile(definition, view) for definition in _definitions(view, name)]
    if explain:
        for one in views:
            document(f"# View {one.name}\n{one.compiled.source}\n")
        return
    if not file:
        raise UsageError("There is no file to run the view on.", "Name an NDJSON file, or - for standard input.")
    shape = output or (Format.table if sys.stdout.isatty() else Format.ndjson)
    if shape is Format.csv and len(views) > 1:
        names = ", ".join(one.name for one in views)
        raise UsageError("CSV has one set of columns, the file several views.", f"Pick one with --name: {names}.")
    most = limit if limit is not None else _TABLE_ROWS if shape is Format.table else 0
    with ExitStack() as stack:
        broken = _evaluate(views, file, _lines(file, stack), _PRINTERS[shape](views, most))
    if broken:
        raise typer.Exit(1)


# --- the view ----------------------------------------------------------------------------------------------


def _definitions(path: Path, name: str) -> list[dict[str, Any]]:
    """The ViewDefinitions of a file, each with its resource and a name."""
    content = _load(path)
    parts = content.get("views")
    if parts is None:
        return [content]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise MappingError("views must be a list of views.", file=str(path))
    shared = {key: content[key] for key in ("resource", "constant") if key in content}
    found = [shared | part for part in parts if not name or part.get("name") == name]
    if not found:
        names = ", ".join(str(part.get("name")) for part in parts)
        raise MappingError(f"there is no view named {name}.", f"The file has: {names}.", file=str(path))
    return found


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"The view {path} cannot be read: {reason}.", _advice_on(path)) from error
    try:
        # JSON first: YAML would do, but reports a JSON file's errors in YAML's words.
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise MappingError(f"not JSON: {error.msg}.", file=str(path), line=error.lineno) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise MappingError(f"not YAML: {error.problem}.", file=str(path), line=line) from error
    except yaml.YAMLError as error:
        raise MappingError("not YAML: it holds a character that YAML forbids.", file=str(path)) from error
    if not isinstance(content, dict):
        raise MappingError("a view must be an object with resource and select.", file=str(path))
    return content


def _compile(definition: dict[str, Any], path: Path) -> NamedView:
    from pipeline.sql_on_fhir.view_definition import compile_columns, is_known_type, view_columns

    try:
        # Types that only the pipeline knows (`patient_location`) are shown as the JSON that it gets.
        own = {column.type for column in view_columns(definition) if column.type and not is_known_type(column.type)}
        compiled = compile_columns(definition, dict.fromkeys(own, _unchanged))
    except MappingError as error:
        raise MappingError(error.message, error.advice, file=str(path)) from error
    return NamedView(str(definition.get("name") or definition.get("resource")), compiled)


def _unchanged(value: Any) -> Any:
    return value


# --- the resources -----------------------------------------------------------------------------------------


def _lines(file: str, stack: ExitStack) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every line that is not blank."""
    stream = _open(file, stack)
    try:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line
    except (OSError, EOFError) as error:  # a damaged or cut-off .gz
        raise UsageError(f"{file} cannot be read to its end: {error}.") from error


def _advice_on(path: Path) -> str:
    """Whoever names the resource alone means its mapping."""
    from pipeline.core.settings import MAPPINGS_FOLDER

    mapping = MAPPINGS_FOLDER / f"{path}.yaml"
    return f"Name the file of the mapping: {mapping}." if mapping.is_file() else "Name a YAML or JSON file of a view."


def _open(file: str, stack: ExitStack) -> Iterable[bytes]:
    if file == "-":
        return sys.stdin.buffer
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 - the stack closes it
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    stack.enter_context(stream)
    return stack.enter_context(gzip.open(stream)) if stream.peek(2).startswith(_GZIP_MAGIC) else stream


def _evaluate(views: list[NamedView], file: str, lines: Iterator[tuple[int, bytes]], printer: _Printer) -> int:
    """Give every row to the printer, name the broken lines on standard error; returns their number."""
    import orjson

    read = broken = 0
    for number, line in lines:
        read += 1
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            problems = [f"not JSON: {error.msg} (column {error.colno})"]
        else:
            problems = list(filter(None, (_evaluate_resource(one, resource, printer) for one in views)))
        broken += bool(problems)
        if broken <= _MOST_BROKEN_LINES_SHOWN:
            # Views that share columns fail alike: each reason once.
            for problem in dict.fromkeys(problems):
                echo(f"{file}:{number}: {problem}", err=True)
    printer.finish()
    if broken:
        echo(f"{broken:,} of {read:,} lines are broken.", err=True)
    return broken


def _evaluate_resource(view: NamedView, resource: Any, printer: _Printer) -> str:
    """Print the rows of one resource; what is wrong with it, or an empty text."""
    from pipeline.sql_on_fhir.view_definition import EVALUATION_ERRORS

    buffers = view.compiled.new_buffers()
    try:
        view.compiled.append(resource, buffers)
    except EVALUATION_ERRORS as error:
        problem = view.compiled.explain(resource)
        return f"{problem.path}: {problem.reason}" if problem else f"evaluation failed ({type(error).__name__})"
    for row in zip(*buffers, strict=True):
        printer.row(view, row)
    return ""


# --- the rows ----------------------------------------------------------------------------------------------


class _Printer(Protocol):
    def row(self, view: NamedView, values: tuple[Any, ...]) -> None: ...

    def finish(self) -> None: ...


class _TablePrinter:
    """One table a view, with at most `limit` rows (0: all); the widths need all rows, so it prints at the end."""

    def __init__(self, views: list[NamedView], limit: int) -> None:
        self._limit = limit
        self._views = views
        self._rows: dict[int, list[tuple[Any, ...]]] = {id(view): [] for view in views}  # names need not differ
        self._counts = dict.fromkeys(self._rows, 0)

    def row(self, view: NamedView, values: tuple[Any, ...]) -> None:
        self._counts[id(view)] += 1
        if not self._limit or self._counts[id(view)] <= self._limit:
            self._rows[id(view)].append(values)

    def finish(self) -> None:
        console = Terminal(file=sys.stdout)
        for view in self._views:
            columns = [Column(column.name, column.name, _kind(column.type)) for column in view.compiled.columns]
            rows = [[_cell(value) for value in values] for values in self._rows[id(view)]]
            print_listing(console, Listing(view.name, columns, rows))
            shown, total = len(self._rows[id(view)]), self._counts[id(view)]
            more = f", {shown:,} shown; see --limit" if shown < total else ""
            console.print(f"{total:,} row{'' if total == 1 else 's'}{more}", highlight=False)


def _kind(declared: str | None) -> Kind:
    """Only what FHIR calls a string may go on in the next line."""
    if declared in {"decimal", "integer", "positiveInt", "unsignedInt"}:
        return "number"
    return "text" if declared in {"string", "markdown"} else "code"


class _Documents:
    """Standard output as csv's writer needs it."""

    def write(self, text: str) -> None:
        document(text)


class _CsvPrinter:
    """One view as CSV with a header, as rows come, for a spreadsheet: no cell is a formula. Programs take ndjson."""

    def __init__(self, views: list[NamedView], limit: int) -> None:
        self._left = limit or sys.maxsize
        self._writer = csv.writer(_Documents(), lineterminator="\n")
        self._writer.writerow([column.name for column in views[0].compiled.columns])

    def row(self, view: NamedView, values: tuple[Any, ...]) -> None:  # noqa: ARG002 - it is the only view
        if self._left:
            self._left -= 1
            self._writer.writerow([guarded(_cell(value)) for value in values])

    def finish(self) -> None:
        sys.stdout.flush()


class _NdjsonPrinter:
    """One JSON object a row, as rows come; with several views, each row says in `view` whose it is."""

    def __init__(self, views: list[NamedView], limit: int) -> None:
        self._left = {view.name: limit or sys.maxsize for view in views}

    def row(self, view: NamedView, values: tuple[Any, ...]) -> None:
        if not self._left[view.name]:
            return
        self._left[view.name] -= 1
        names = (column.name for column in view.compiled.columns)
        row = dict(zip(names, values, strict=True))
        document(_json({"view": view.name, **row} if len(self._left) > 1 else row) + "\n")

    def finish(self) -> None:
        sys.stdout.flush()


_PRINTERS: Final[dict[Format, Callable[[list[NamedView], int], _Printer]]] = {
    Format.table: _TablePrinter,
    Format.csv: _CsvPrinter,
    Format.ndjson: _NdjsonPrinter,
}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
