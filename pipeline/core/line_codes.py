"""Codes of what is wrong with a line (a dead letter) and with a row (an issue); nothing else gives one.

What each means and what to do about it is in `pipeline.quality.line_code_texts`, and on the page docs/dead-letters.md.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["IssueCode", "RejectionCode"]


class RejectionCode(StrEnum):
    """`code` of `etl.dead_letter`: why a line was not loaded. By the stages that give them."""

    # parse: the line as text
    UTF8_INVALID = "utf8_invalid"
    JSON_INVALID = "json_invalid"
    LINE_TOO_LONG = "line_too_long"
    NESTED_TOO_DEEPLY = "nested_too_deeply"
    NUL_CHARACTER = "nul_character"
    NOT_A_RESOURCE = "not_a_resource"
    ID_MISSING = "id_missing"
    # view: the resource against its mapping
    MODIFIER_UNKNOWN = "modifier_unknown"
    WRONG_TYPE = "wrong_type"
    EVALUATION_FAILED = "evaluation_failed"
    # transform: the rows
    CODE_INVALID = "code_invalid"
    REQUIRED_MISSING = "required_missing"
    DATE_MISSING = "date_missing"
    DATE_INVALID = "date_invalid"
    PERSON_UNKNOWN = "person_unknown"  # publish as well
    WORKER_FAILED = "worker_failed"
    # publish: the rows among others
    REPLACED_BY_CYCLE = "replaced_by_cycle"
    PART_OF_CYCLE = "part_of_cycle"
    # erase: closed letters whose content was taken out
    PERSON_ERASED = "person_erased"


class IssueCode(StrEnum):
    """`code` of `etl.row_issue`: what of a loaded resource is other than its source says, or was left out."""

    ACTIVITY_AFTER_DEATH = "activity_after_death"
    ANSWER_TEXT_DROPPED = "answer_text_dropped"
    CLINICAL_STATUS_NOT_ACTIVE = "clinical_status_not_active"
    CODE_AMBIGUOUS = "code_ambiguous"
    COUNTED_ELSEWHERE = "counted_elsewhere"
    DATE_IMPUTED = "date_imputed"
    DATE_INVALID = "date_invalid"
    DATE_OUT_OF_RANGE = "date_out_of_range"
    DATE_SENTINEL = "date_sentinel"
    DAYS_SUPPLY_IMPLAUSIBLE = "days_supply_implausible"
    DEATH_WITHOUT_DATE = "death_without_date"
    DOSE_SUBPOTENT = "dose_subpotent"
    END_BEFORE_START = "end_before_start"
    LANDED_LINE_MISSING = "landed_line_missing"
    NOTE_TEXT_UNSUPPORTED = "note_text_unsupported"
    QUANTITY_INEXACT = "quantity_inexact"
    REFERENCE_BY_IDENTIFIER = "reference_by_identifier"
    REFERENCE_CONTAINED = "reference_contained"
    REFERENCE_TYPE_UNUSABLE = "reference_type_unusable"
    REFERENCE_UNREADABLE = "reference_unreadable"
    ROW_LEFT_OUT = "row_left_out"
    START_IS_MANUFACTURE_DATE = "start_is_manufacture_date"
    VALUE_IMPLAUSIBLE = "value_implausible"
    VALUE_NEGATIVE = "value_negative"
