"""Addresses and a server's own explanation, cut down to what cannot be about a patient.

The text of an OperationOutcome is needed to understand a refusal, and may quote what was refused: a name, a number, a
date. So a word of it is shown only if it is one of the words below, which are those of the specifications and of
plain English about requests; everything else becomes `…`. A list of what to hide would always lack something.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable

from pipeline.core.resource_types import RESOURCE_TYPES

__all__ = ["known_words", "plain_text", "progress_words", "shown_url"]

_PLAIN = """
a about above accept accepted access accessible active activity after again all allow allowed already also an and
another any api app application are as ask asked at attempt attempted authentication authorisation authorised
authorization authorize authorized available away back bad base be because been before being below body both bulk
busy but by call called calls can cannot category change changed check client clients code come complete completed
connection contact contain contains content could count create created current currently customer data database
date day days delete deleted denied did different disabled do does done down due during each element elements empty
enabled encounter end ended endpoint error errors exceed exceeded exceeds exception exist exists expected expired
export exported exporting exports failed failure failures few field fields file files filter filters finished first
for forbidden format found from full gateway general generated get go gone got group groups had has have header
headers hour hours how id identifier identifiers identity if in inactive include included information initiate
initiated internal interval into invalid is issue it item items its job jobs just key kick known large last later
least length less like limit limited limits line list load long longer maintenance make malformed many match may
maximum media member members message method minimum minute minutes missing modified more most must name namespace
need needed network new next no non none normalizing not now number object of off on once one only operation or
order other our out outcome output over overload overloaded own page pages parameter parameters parse parsing
patients pending perform permission permissions permitted please possible prefer previous problem process processed
processing progress protocol provide provided proxy queue queued quota rate read reading reason received recent
recently record records reference refused register registered rejected remain remaining request requested requester
requests require required requires resource resources respond response restricted result results retrieve retry
returns sent ignored
returned running same scope scopes search second seconds secure security see server service session set should
since site some soon source specified standard start started state status still stop storage structure subject
submitted success successful supplied support supported system tenant than that the their them then there these
they this those throttle throttled throttling time timed timeout times to token too total transient try trying type
types unable unauthorized unavailable under unexpected unknown unprocessable unrecognized unsupported until up url
use used user users using valid validate validation value values version via wait was when where which while
will window with within without work write wrong you your
async http https json kickoff fhir ndjson oauth operationoutcome r4 scopes smart
"""

_WORDS = frozenset(_PLAIN.split()) | frozenset(name.lower() for name in RESOURCE_TYPES)

#: `_type`, `$export`, `Content-Type`, `too-costly`: judged by their parts.
_PARTS = re.compile(r"[-_/$]+")
_EDGES = " \t\r\n.,;:!?()[]{}<>\"'`*=&|"
_NUMBER = re.compile(r"\d{1,7}([.,]\d{1,2})?%?|\d{1,7}/\d{1,7}")


def known_words(text: object, limit: int = 200) -> str:
    """One line, at most so long, of the words that may be shown; `…` for the others."""
    return _shown_words(text, limit, _is_known)


def progress_words(text: object, limit: int = 100) -> str:
    """The same for X-Progress, of which numbers are the matter."""
    return _shown_words(text, limit, lambda word: bool(_NUMBER.fullmatch(word)) or _is_known(word))


def _shown_words(text: object, limit: int, shown: Callable[[str], bool]) -> str:
    if not isinstance(text, str):
        return ""
    printable = "".join(character if character.isprintable() else " " for character in text[: 50 * limit])
    words: list[str] = []
    for word in printable.split():
        kept = word if shown(word.strip(_EDGES)) else "…"
        if kept != "…" or words[-1:] != ["…"]:
            words.append(kept)
    joined = " ".join(words)
    return joined if len(joined) <= limit else f"{joined[:limit]}…"


def _is_known(word: str) -> bool:
    return all(part.lower() in _WORDS for part in _PARTS.split(word) if part) and bool(_PARTS.sub("", word))


def shown_url(url: str) -> str:
    """The address as logs and messages may show it: without its query's values, fragment and user part, and without
    the ids of resources (but for a Group's, which is none of a patient)."""
    parts = urllib.parse.urlsplit(url)
    names = [name for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)]
    query = f"?{'&'.join(f'{name}=…' for name in names)}" if names else ""
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{_shown_path(parts.path)}{query}"


def _shown_path(path: str) -> str:
    segments = path.split("/")
    for before, position in zip(segments, range(1, len(segments)), strict=False):
        if before in RESOURCE_TYPES and before != "Group" and segments[position][:1] not in ("", "_", "$"):
            segments[position] = "…"
    return "/".join(segments)


def plain_text(text: object, limit: int = 200) -> str:
    """A server's words for a message: one line, short, without anything that looks like a token or a key."""
    if not isinstance(text, str):
        return ""
    words = (word if len(word) <= 60 else "…" for word in "".join(c if c.isprintable() else " " for c in text).split())
    joined = " ".join(words)
    return joined if len(joined) <= limit else f"{joined[:limit]}…"
