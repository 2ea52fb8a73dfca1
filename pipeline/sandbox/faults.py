"""The faults that the simulated Epic can play, and the file that asks for them. Models only; `fault_player.py` plays.

A faults file is YAML: a list under `faults`, each with the name of its kind under `fault`. Unknown names and values are
refused. `epic-omop sandbox faults` prints an example that holds every kind, with comments.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.core.errors import UsageError

__all__ = [
    "EXAMPLE_FILE",
    "ClockSkew",
    "CutBody",
    "CutGzip",
    "Deleted",
    "Duplicate",
    "EmptyOutput",
    "EndTokens",
    "Exchange",
    "Fault",
    "FaultTally",
    "LinesFault",
    "LinkLoop",
    "ManifestVersion",
    "MissingTypes",
    "NoGzip",
    "NoRanges",
    "NoResponse",
    "NotNdjson",
    "OtherAddress",
    "Outcomes",
    "Pages",
    "Redirect",
    "ResponseFault",
    "SmallPieces",
    "TooRecently",
    "TransactionTime",
    "TypeName",
    "WrongCount",
    "load_faults",
]

#: A commented file with every kind of fault.
EXAMPLE_FILE = Path(__file__).with_name("faults_example.yaml")

#: One HTTP exchange of an export, as `at` names it. The answer to the last `status` is the manifest.
Exchange = Literal["discovery", "token", "kick-off", "status", "file", "delete"]

Times = Annotated[int, Field(ge=1)] | Literal["always"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Counted(_Model):
    """A fault of single requests: it lets `after` of them pass, disturbs `times`, and then no more."""

    after: Annotated[int, Field(ge=0)] = 0
    times: Times = 1


class _OfFile(_Counted):
    """A fault of downloads: of the type, of the file of that number (from 1, as the manifest lists it), or of all."""

    type: str | None = None
    number: Annotated[int, Field(ge=1)] | None = None


class ResponseFault(_OfFile):
    """Another answer in place of the server's: 401, 404, 410, 429, 500, 503, or 202 for an export that takes long.

    `retry_after` is sent as it stands, or made: `date` (in a minute), `past`, `epoch`, `epoch-milliseconds`. `code`
    and `text` become an OperationOutcome.
    """

    fault: Literal["answer"] = "answer"
    at: Exchange
    status: Annotated[int, Field(ge=200, le=599)]
    retry_after: str | None = None
    code: str | None = None
    text: str = "Played by the sandbox."


class NoResponse(_OfFile):
    """The connection ends without an answer; with `processed`, the server has done what was asked all the same."""

    fault: Literal["no-answer"] = "no-answer"
    at: Exchange
    processed: bool = False


class EndTokens(_OfFile):
    """All access tokens end just before the request, as after a restart of the server: it is answered with 401."""

    fault: Literal["end-tokens"] = "end-tokens"
    at: Exchange


class TooRecently(_Counted):
    """The kick-off is refused because "this client has requested this Group too recently"; sites differ in the status."""

    fault: Literal["too-recently"] = "too-recently"
    status: Annotated[int, Field(ge=400, le=599)] = 400


class ClockSkew(_Model):
    """The server's clock is so many seconds ahead (or, negative, behind), in what it verifies and in its Date header."""

    fault: Literal["clock-skew"] = "clock-skew"
    seconds: float


class CutBody(_OfFile):
    """The connection ends after so many bytes of a file's body."""

    fault: Literal["cut-body"] = "cut-body"
    bytes: Annotated[int, Field(ge=0)] = 100


class CutGzip(_OfFile):
    """A compressed file misses its last bytes, and the answer ends as if it were whole."""

    fault: Literal["cut-gzip"] = "cut-gzip"
    bytes: Annotated[int, Field(ge=1)] = 8


class SmallPieces(_OfFile):
    """A file's body is sent in pieces of so many bytes, which split characters of several bytes."""

    fault: Literal["small-pieces"] = "small-pieces"
    bytes: Annotated[int, Field(ge=1)] = 7
    times: Times = "always"


class NotNdjson(_OfFile):
    """What comes as a file is none of its type: an HTML page, a JSON array, resources in UTF-16, or gzip without saying so."""

    fault: Literal["not-ndjson"] = "not-ndjson"
    how: Literal["html", "array", "utf-16", "gzip"] = "html"


class NoRanges(_Model):
    """The server knows no HTTP Range: it always sends the whole file."""

    fault: Literal["no-ranges"] = "no-ranges"


class NoGzip(_Model):
    """The server never compresses."""

    fault: Literal["no-gzip"] = "no-gzip"


class Redirect(_OfFile):
    """A file's address redirects to `location`."""

    fault: Literal["redirect"] = "redirect"
    location: str
    times: Times = "always"


class LinesFault(_Model):
    """How the files of a type (without: of every type) are written.

    bom: a byte order mark first. crlf: lines end with CR LF. blank-lines: an empty and a blank line after each. no-last-newline.
    malformed-line: a line of broken JSON first. long-line: a line of `bytes` bytes first. no-last-updated: resources
    without meta.lastUpdated. not-ascii: each resource gets text of several bytes a character.
    """

    fault: Literal["lines"] = "lines"
    how: Literal[
        "bom",
        "crlf",
        "blank-lines",
        "no-last-newline",
        "malformed-line",
        "long-line",
        "no-last-updated",
        "not-ascii",
    ]
    type: str | None = None
    bytes: Annotated[int, Field(ge=1)] = 20_000_000


class Duplicate(_Model):
    """The first resource of a type comes again in a last file of its own, with these elements set."""

    fault: Literal["duplicate"] = "duplicate"
    type: str
    set: dict[str, Any] = Field(default_factory=dict)


class Deleted(_Model):
    """The first resources of a type are left out, and listed in `deleted` as a Bundle of DELETE entries."""

    fault: Literal["deleted"] = "deleted"
    type: str
    resources: Annotated[int, Field(ge=1)] = 1


class Outcomes(_Model):
    """The manifest lists a file of OperationOutcomes, one issue each: `severity code`, such as `error processing`.

    `epic_code` is put into every issue's details (59108, 4101 …).
    """

    fault: Literal["outcomes"] = "outcomes"
    issues: tuple[str, ...] = ("information informational", "error processing", "fatal exception")
    epic_code: str | None = None


class _OfManifest(_Model):
    times: Times = "always"


class WrongCount(_OfManifest):
    """The manifest's `count` of a type's first file is `count`, or wrong by `off_by`."""

    fault: Literal["wrong-count"] = "wrong-count"
    type: str
    count: Annotated[int, Field(ge=0)] | None = None
    off_by: int = 1


class TransactionTime(_OfManifest):
    """The manifest's transactionTime is this text; without `time`, it has none."""

    fault: Literal["transaction-time"] = "transaction-time"
    time: str | None = None


class EmptyOutput(_OfManifest):
    """The export is complete and has no file."""

    fault: Literal["empty-output"] = "empty-output"


class MissingTypes(_OfManifest):
    """The manifest does not list the files of these types."""

    fault: Literal["missing-types"] = "missing-types"
    types: tuple[str, ...]


class Pages(_OfManifest):
    """The manifest comes in pages of so many files, linked by `next` (STU3)."""

    fault: Literal["pages"] = "pages"
    files: Annotated[int, Field(ge=1)] = 1


class LinkLoop(_OfManifest):
    """The manifest's `next` link leads back to the manifest."""

    fault: Literal["link-loop"] = "link-loop"


class OtherAddress(_OfManifest):
    """The first file of a type lies elsewhere: another host, or a path of this server that holds nothing."""

    fault: Literal["other-address"] = "other-address"
    type: str
    url: str


class TypeName(_OfManifest):
    """The manifest names `name` as the type of a type's first file, such as ../../x."""

    fault: Literal["type-name"] = "type-name"
    type: str
    name: str


class ManifestVersion(_Model):
    """The shape of the manifest. stu2: `extension` an object. stu3: `deleted` and `link` as well. stu4 (draft):
    `outcome` instead of `error`, `extension` an array, no `request`.

    `separate_status`: every status request is answered with 200, and X-Export-Status says how the export stands.
    """

    fault: Literal["manifest-version"] = "manifest-version"
    version: Literal["stu2", "stu3", "stu4"]
    separate_status: bool = False


Fault = Annotated[
    ResponseFault
    | NoResponse
    | EndTokens
    | TooRecently
    | ClockSkew
    | CutBody
    | CutGzip
    | SmallPieces
    | NotNdjson
    | NoRanges
    | NoGzip
    | Redirect
    | LinesFault
    | Duplicate
    | Deleted
    | Outcomes
    | WrongCount
    | TransactionTime
    | EmptyOutput
    | MissingTypes
    | Pages
    | LinkLoop
    | OtherAddress
    | TypeName
    | ManifestVersion,
    Field(discriminator="fault"),
]


class FaultTally:
    """How often each fault was played, for all who play them. Thread-safe."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = faults
        self._passed: Counter[int] = Counter()
        self._played: Counter[int] = Counter()
        self._lock = threading.Lock()

    def take(self, accepts: Callable[[Fault], bool], *, most: int | None = None) -> list[Fault]:
        """The faults that `accepts` takes and whose turn it is, in the order of the file; they count as played. Of the
        others that it takes, one more request has passed. At most `most`."""
        found: list[Fault] = []
        with self._lock:
            for index, fault in enumerate(self.faults):
                if not accepts(fault):
                    continue
                if self._passed[index] < getattr(fault, "after", 0):
                    self._passed[index] += 1
                elif len(found) != most and self._played[index] < _limit(fault):
                    self._played[index] += 1
                    found.append(fault)
        return found

    def played(self) -> list[tuple[Fault, int]]:
        """Each fault and how often it was played."""
        with self._lock:
            return [(fault, self._played[index]) for index, fault in enumerate(self.faults)]


def _limit(fault: Fault) -> float:
    times: Times = getattr(fault, "times", "always")
    return float("inf") if times == "always" else times


class _File(_Model):
    faults: tuple[Fault, ...]


_FILE: TypeAdapter[_File] = TypeAdapter(_File)


def load_faults(file: Path) -> tuple[Fault, ...]:
    """The faults of a YAML file. Raises UsageError that names the entry and what is wrong with it."""
    advice = "`epic-omop sandbox faults` prints an example with every kind of fault."
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({type(error).__name__}).", advice) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UsageError(f"{file} is not valid YAML{f' at line {mark.line + 1}' if mark else ''}.", advice) from None
    try:
        return _FILE.validate_python(document).faults
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors(include_input=False))
        raise UsageError(f"{file} asks for what the sandbox cannot play: {problems}.", advice) from None


def _problem(place: tuple[int | str, ...], message: str) -> str:
    """ "fault 2 (answer), status: …", counted from 1."""
    parts = list(place[1:])
    number = f"fault {int(parts[0]) + 1}" if parts and isinstance(parts[0], int) else "the file"
    kind = f" ({parts[1]})" if len(parts) > 1 else ""
    name = f", {'.'.join(map(str, parts[2:]))}" if len(parts) > 2 else ""
    return f"{number}{kind}{name}: {message}"
