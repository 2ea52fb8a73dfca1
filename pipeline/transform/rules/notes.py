"""Notes: when, in which language, and the text, which may lie in a Binary."""

from __future__ import annotations

import re

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import issue
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.dates import starting, used_visit_start, with_visit_period
from pipeline.transform.rules.declaration import dated, looked_up, rule, used_fact
from pipeline.transform.rules.observations import NUMBER_TEXT

#: Why what is a text has no row but by the option `notes`.
NOTE_TEXT_OFF = "note_text_off"

_TEXT = (
    *("note_text", "encoding_concept_id", "binary_reference", "binary_line"),
    *used_fact("binary"),
    *looked_up("language", "language", by_map=True),
)


@rule(
    reads=("note_text", "is_unsupported", "language", "document_date", "context_period_start", "visit_occurrence_id"),
    optional=("binary_reference",),
    writes=(_TEXT, dated("start"), "visit_start", "visit_end", used_fact("encounter_period"), "exclude_reason"),
    dates=("document_date", "context_period_start", "visit_start"),
    facts=("binary", "encounter_period"),
    value_maps=("note_language",),
    constants=("note_encoding_utf8", "note_language_english"),
)
def document_note(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """A document: its date, else the beginning of what it documents, else of the visit. Without a text no row."""
    frame = _with_text(with_visit_period(frame, derivation), derivation)
    own = ("document_date", "context_period_start")
    frame = used_visit_start(starting(frame, derivation, *own, "visit_start"), own)
    reason = pl.when("is_unsupported").then(pl.lit("note_text_unsupported")).otherwise(pl.lit("note_without_text"))
    return frame.with_columns(pl.when(pl.col("note_text").is_null()).then(reason).alias("exclude_reason"))


@rule(
    reads=("note_text", "language"),
    optional=("binary_reference",),
    writes=_TEXT,
    facts=("binary",),
    value_maps=("note_language",),
    constants=("note_encoding_utf8", "note_language_english"),
)
def report_note(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """A text of a report; a form without a text makes no row. The report's own row says so: `report_texts`."""
    return _with_text(frame, derivation).filter(pl.col("note_text").is_not_null())


@rule(
    reads=("is_unsupported",),
    writes=(issue(IssueCode.NOTE_TEXT_UNSUPPORTED),),
    options=("notes",),
)
def report_texts(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Issue note_text_unsupported of a report with a form that is not text, where notes are loaded."""
    flagged = pl.col("is_unsupported") & pl.lit(derivation.options.notes == "on")
    return frame.with_columns(flagged.fill_null(False).alias(issue(IssueCode.NOTE_TEXT_UNSUPPORTED)))


@rule(reads=("code",), writes=("exclude_reason",), priorities=("lab",), options=("notes",))
def no_document(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Without rows whose code is one of documents (domain Note): a report's texts are its notes, and it has no value.

    Where notes are off it is excluded as other documents are.
    """
    is_document = _is_document(frame, derivation)
    if derivation.options.notes == "on":
        return frame.filter(~is_document)
    return frame.with_columns(pl.when(is_document).then(pl.lit(NOTE_TEXT_OFF)).alias("exclude_reason"))


@rule(
    reads=("code", "value_as_number", "value_as_concept_id", "value_boolean"),
    writes=("exclude_reason",),
    priorities=("lab",),
    options=("notes",),
)
def no_text_of_note(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The same of an observation without a value, or whose value is a text: of that `observation_note` makes the note."""
    if derivation.options.notes == "on":
        return frame.filter(~_is_valueless_document(frame, derivation))
    return _with_reason(frame, derivation)


def _is_valueless_document(frame: pl.DataFrame, derivation: Derivation) -> pl.Series:
    values = ("value_as_number", "value_as_concept_id", "value_boolean")
    return _is_document(frame, derivation) & frame.select(pl.all_horizontal(pl.col(values).is_null())).to_series()


def _with_reason(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    own = [pl.col("exclude_reason")] if "exclude_reason" in frame.columns else []
    reason = pl.coalesce(*own, pl.when(_is_valueless_document(frame, derivation)).then(pl.lit(NOTE_TEXT_OFF)))
    return frame.with_columns(reason.alias("exclude_reason"))


@rule(
    reads=("code", "note_text", "language"),
    writes=("encoding_concept_id", looked_up("language", "language", by_map=True)),
    value_maps=("note_language",),
    constants=("note_encoding_utf8", "note_language_english"),
    priorities=("lab",),
)
def observation_note(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The text of an observation whose code is one of documents, and no number."""
    is_number = frame["note_text"].str.contains(NUMBER_TEXT)
    return _with_text(frame.filter(_is_document(frame, derivation) & ~is_number), derivation)


def _is_document(frame: pl.DataFrame, derivation: Derivation) -> pl.Series:
    """True where the standard concept of the code is of domain Note."""
    found = derivation.resolver.resolve_single("lab")
    documents = found.filter(pl.col("target_domain_id") == "Note")["code_set"]
    return frame["code"].is_in(documents.implode()).fill_null(False)


def _with_text(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """note_text with that of a Binary where it lies there; encoding, and language, which is English where none is given."""
    english = pl.lit(derivation.constant("note_language_english"), dtype=pl.Int64)
    frame = _with_language(frame, derivation).with_columns(
        pl.lit(derivation.constant("note_encoding_utf8"), dtype=pl.Int64).alias("encoding_concept_id"),
        pl.coalesce("language_concept_id", english).alias("language_concept_id"),
    )
    if "binary_reference" not in frame.columns:
        return frame
    by_reference = pl.col("note_text").is_null() & pl.col("binary_reference").is_not_null()
    frame = frame.with_columns(pl.when(by_reference).then("binary_reference").alias("binary_reference"))
    frame = derivation.with_fact(frame, "binary_reference", "binary", "binary_line")
    texts = derivation.binary_texts(frame["binary_line"].drop_nulls().unique().sort())
    frame = used(frame, "binary", "binary_reference", by_reference, pl.col("binary_line").is_null())
    by_line = pl.col("binary_line").replace_strict(texts, default=None, return_dtype=pl.String)
    return frame.with_columns(pl.coalesce("note_text", by_line).alias("note_text"))


_LANGUAGES = "urn:ietf:bcp:47"


def _with_language(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds language_concept_id by the value map of languages: of `en-US` in its own words, else of `en`."""
    numbers = {}
    for language in frame["language"].drop_nulls().unique(maintain_order=True):
        names = (language, language.lower(), re.split("[-_]", language.lower())[0])
        numbers[language] = derivation.sets.add_concept({"coding": [{"system": _LANGUAGES, "code": n} for n in names]})
    code_sets = frame["language"].replace_strict(numbers, default=None, return_dtype=pl.Int32).alias("language_set")
    frame = derivation.look_ups.of(
        frame.with_columns(code_sets), "language_set", "language", value_map="note_language", element="language"
    )
    return frame.drop("language_set")
