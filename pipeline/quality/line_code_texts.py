"""What each code of a dead letter and of an issue means, and what to do: one entry a code of `pipeline.core.line_codes`.

The page docs/dead-letters.md and `epic-omop dead-letters` are made from it. A code of a former version has no entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.line_codes import IssueCode, RejectionCode

__all__ = ["ISSUES", "REJECTIONS", "CodeText", "rejection_text"]


@dataclass(frozen=True)
class CodeText:
    """An entry. `stages`: which stages give the code. `summary`: at most one short line; sentences end with a full stop."""

    summary: str
    meaning: str
    what_to_do: str
    stages: tuple[str, ...] = ()


_UNDAMAGED = "Ask the site's Epic team for the resource, or wait: the next export brings the line again."

#: By code, in the order of the stages.
REJECTIONS: Mapping[RejectionCode, CodeText] = {
    RejectionCode.UTF8_INVALID: CodeText(
        "the line is not UTF-8",
        "A byte of the line belongs to no UTF-8 character; the reason says which. JSON must be UTF-8 (RFC 8259, section"
        " 8.1). It comes from a text that was stored in another encoding, or from a file that was changed on its way.",
        f"Run `epic-omop verify --files`: if the file was damaged here, export again. Else the source is wrong. {_UNDAMAGED}"
        " To load it now, repair the text and run `dead-letters repair`.",
        ("parse",),
    ),
    RejectionCode.JSON_INVALID: CodeText(
        "the line is not JSON",
        "The line cannot be read as JSON from the character that the reason names: it is cut off, two lines have run"
        " together, or a number or a text is not closed.",
        f"Many at once: look whether the file is whole (`epic-omop verify --files`) and export again. One alone: {_UNDAMAGED}"
        " To load it now, close what is open and run `dead-letters repair`.",
        ("parse",),
    ),
    RejectionCode.LINE_TOO_LONG: CodeText(
        "the line is longer than max_line_bytes",
        "The line has more bytes than the site's `max_line_bytes`. Nearly always it is a document or an image within a"
        " resource, or a Bundle that came as one line.",
        "If the line is right, raise `max_line_bytes` of the site in sites.yaml and replay the code. The database holds the"
        " first 64 KiB of a line of more than 16 MiB; the whole line is in landing.",
        ("parse",),
    ),
    RejectionCode.NESTED_TOO_DEEPLY: CodeText(
        "elements within elements, too deeply",
        "The elements are nested more deeply than JSON is read here (1,024 levels), or than a mapping can follow. No"
        " FHIR resource of a hospital is: the line is wrong, or meant to do harm.",
        "Look at the line with `dead-letters show ID --raw | head -c 2000`, and ask the site where it comes from.",
        ("parse",),
    ),
    RejectionCode.NUL_CHARACTER: CodeText(
        "a text holds the character NUL",
        "A text has the character U+0000 (`\\u0000` in JSON), which PostgreSQL cannot store and FHIR does not allow. The"
        " path names the element.",
        "The text was stored wrongly in the source: report it there. To load the line now, take the character out and run"
        " `dead-letters repair`.",
        ("parse",),
    ),
    RejectionCode.NOT_A_RESOURCE: CodeText(
        "the line has no usable resourceType",
        "The line is JSON, but not an object with a `resourceType` of letters: an array, a text, an object of another kind,"
        " or a resource that has another shape than its type can have.",
        "See with `dead-letters show ID --raw` what it is. A file of another kind does not belong into the export's folder;"
        " a resource without its type can be repaired.",
        ("parse", "view"),
    ),
    RejectionCode.ID_MISSING: CodeText(
        "the resource has no id",
        "The resource has no `id`, or one that is not a text. Without it a row could not be found again by the next export:"
        " it would be there twice.",
        "The source is wrong: a server gives each resource an id. In files that were made by hand, add ids that stay the"
        " same, and run `dead-letters repair`.",
        ("parse",),
    ),
    RejectionCode.MODIFIER_UNKNOWN: CodeText(
        "an extension that may change the meaning is not known",
        "The resource has a `modifierExtension`, or `implicitRules`, that its mapping does not know. FHIR says that such a"
        " resource must not be used by whoever does not understand it (f2o-063). The reason names the extension.",
        "Read what the extension means. If the rows are right all the same, add its URL to `known_modifiers` of the"
        " mapping (docs/writing-a-mapping.md) and replay the code; else the line is rightly left out.",
        ("view",),
    ),
    RejectionCode.WRONG_TYPE: CodeText(
        "an element has another type than FHIR's",
        "The element in the path holds a text where FHIR has a number, an array where it has one value, and the like. What"
        " it means cannot be guessed.",
        "Compare the path with the resource's page in FHIR R4. If many lines of a site have it, their Epic interface is"
        " wrong: report it. One line can be repaired.",
        ("view",),
    ),
    RejectionCode.EVALUATION_FAILED: CodeText(
        "an element cannot be evaluated",
        "The expression in the path cannot be computed for this resource: an element has an unexpected form, a number is"
        " beyond what is computed, or several values stand where one is meant.",
        "Look at the element with `dead-letters show ID --raw`. If it is valid FHIR, the mapping is wrong: try"
        " `epic-omop view run`, mend the mapping, and replay the code.",
        ("view",),
    ),
    RejectionCode.CODE_INVALID: CodeText(
        "a status or the like with a code that FHIR does not have",
        "The element in the path, such as `status`, has a code that its FHIR value set does not have: whether the event"
        " happened cannot be said.",
        "The source is wrong: report it. If the site means a code by it, add that to the mapping's filter"
        " (docs/mapping-tables.md, Filters) and replay the code; one line can be repaired.",
        ("transform",),
    ),
    RejectionCode.REQUIRED_MISSING: CodeText(
        "a required column of OMOP has no source",
        "The row's table needs a column (the last step of the path) for which the resource says nothing that can be used:"
        " most often no reference to a patient.",
        "If the element is absent in the source, so the line stays out. If it is there in another place, the mapping can"
        " read it: docs/writing-a-mapping.md.",
        ("transform",),
    ),
    RejectionCode.DATE_MISSING: CodeText(
        "no date from which the row's date could be taken",
        "None of the elements from which the mapping takes the date is there. Where an encounter or a birth would have"
        " given it and has not come yet, `caused_by` names that resource.",
        "With `caused_by`: nothing; the line goes through again by itself when that resource is loaded. Without: the source"
        " has no date, and OMOP has no row without one.",
        ("transform",),
    ),
    RejectionCode.DATE_INVALID: CodeText(
        "the date is not a FHIR date",
        "The element in the path is there, but is no valid FHIR date (`00.00.0000`), or a day that no calendar has"
        " (`2020-02-31`), and no other date can be used.",
        "The source is wrong: report it. If the right date is known, write it into the line and run `dead-letters repair`.",
        ("transform",),
    ),
    RejectionCode.PERSON_UNKNOWN: CodeText(
        "the person is not loaded",
        "The row needs a person who is not loaded: the Patient was not in any export yet, is a dead letter or excluded"
        " itself, or the reference cannot be followed (by an identifier, contained, unreadable). `caused_by` names the"
        " Patient where it is known.",
        "Nothing, where the Patient comes with a later export: the line goes through again by itself. Else look why the"
        " Patient is missing: a dead letter of its own, `epic-omop explain Patient/ID`, or a group that does not hold the"
        " Patient.",
        ("transform", "publish"),
    ),
    RejectionCode.WORKER_FAILED: CodeText(
        "the line breaks the process that reads it",
        "The transform stage fails on this line, or the line takes more memory than a worker process may have. The line was"
        " set aside, so that the others are loaded.",
        "Raise EPIC_OMOP_WORKER_MEMORY_MB and replay the code. If it fails again, it is a defect of epic-omop: report the"
        " reason; the line itself holds patient data and stays with you.",
        ("transform",),
    ),
    RejectionCode.REPLACED_BY_CYCLE: CodeText(
        "patients replace each other in a circle",
        "`Patient.link` of type `replaced-by` leads from this Patient over others back to itself: which of them is the"
        " person cannot be said. The line that closed the circle was rejected; the rows of before stay.",
        "The merges are wrong in the source: report them. When one of the links is taken back, the next export loads it.",
        ("publish",),
    ),
    RejectionCode.PART_OF_CYCLE: CodeText(
        "encounters are parts of each other in a circle",
        "`Encounter.partOf` leads from this Encounter over others back to itself. The line that closed the circle was"
        " rejected; the rows of before stay.",
        "The source is wrong: report it. To load the visit now, take `partOf` out of the line and run `dead-letters repair`.",
        ("publish",),
    ),
    RejectionCode.PERSON_ERASED: CodeText(
        "the person was erased",
        "The letter was about a person who was erased (`epic-omop erase`). It is closed and empty; that it was there stays, so"
        " that the account of its export adds up.",
        "Nothing.",
        ("erase",),
    ),
}

_NOTHING = "Nothing: the row says what can be known."
_AT_SOURCE = "If it is frequent, report it to the site: only the source can say more."

ISSUES: Mapping[IssueCode, CodeText] = {
    IssueCode.ACTIVITY_AFTER_DEATH: CodeText(
        "events long after the death",
        "The person has events more than 60 days after this death: one of the two is wrong.",
        "Look at both with `epic-omop explain`; a death of another patient in the wrong record must be mended at the source.",
    ),
    IssueCode.ANSWER_TEXT_DROPPED: CodeText(
        "a free text answer was not taken over",
        "An answer of a questionnaire is free text, which may name people; the site's settings do not take it over.",
        "If such texts may be loaded, set the option `questionnaire_text` of the site.",
    ),
    IssueCode.CLINICAL_STATUS_NOT_ACTIVE: CodeText(
        "the condition is over, and no status says so",
        "The clinical status says that a condition or an allergy is inactive, in remission or resolved. The row has no status"
        " for that; its end comes from the abatement alone.",
        _NOTHING,
    ),
    IssueCode.CODE_AMBIGUOUS: CodeText(
        "the vocabulary has several codes that may be meant",
        "The code is written in a way (without points or hyphens) that fits several codes of its vocabulary: its concept is 0.",
        "Give it a concept in the site's local map (docs/stewards.md).",
    ),
    IssueCode.COUNTED_ELSEWHERE: CodeText(
        "another resource says the same",
        "A rule of duplicates counts the fact at another resource, so that it has one row.",
        _NOTHING,
    ),
    IssueCode.DATE_IMPUTED: CodeText(
        "a year or a month was completed to a day",
        "The source gives a year or a month; the row has its first day.",
        _NOTHING,
    ),
    IssueCode.DATE_INVALID: CodeText(
        "a date that is not a FHIR date was passed over",
        "The element in the path is no valid date, and another one was used; an end like that is absent.",
        _AT_SOURCE,
    ),
    IssueCode.DATE_OUT_OF_RANGE: CodeText(
        "a year before 1850 or in the future",
        "The date is before 1850, or after the year that follows the export's. It was loaded as it is.",
        "To leave such rows out, set the option `implausible_dates: exclude`.",
    ),
    IssueCode.DATE_SENTINEL: CodeText(
        "a date that stands for unknown",
        "The date is one that systems write for `unknown`, such as 1900-01-01 for a birth.",
        "To leave such rows out, set the option `implausible_dates: exclude`.",
    ),
    IssueCode.DAYS_SUPPLY_IMPLAUSIBLE: CodeText(
        "a supply of more than a year",
        "A supply, or a quantity by daily dose, is of more than 365 days; it was left out of the end and of days_supply.",
        "If the site gives such supplies, set the option `long_supply: keep`.",
    ),
    IssueCode.DEATH_WITHOUT_DATE: CodeText(
        "a death without its date",
        "The Patient is dead (`deceasedBoolean`) and no date says when: there is no row in death.",
        _AT_SOURCE,
    ),
    IssueCode.DOSE_SUBPOTENT: CodeText(
        "an immunization with too little effect",
        "`isSubpotent` is true: the dose does not count as one of the series.",
        "Leave it out of counts of vaccinations.",
    ),
    IssueCode.END_BEFORE_START: CodeText(
        "an end before its start",
        "The end lies before the start; it was taken for absent.",
        _AT_SOURCE,
    ),
    IssueCode.LANDED_LINE_MISSING: CodeText(
        "the line is in no landed export any more",
        "What the resource depends on has changed, and its own line is not in landing: its rows stay as they were.",
        "Put the removed landing folder back, or export everything again.",
    ),
    IssueCode.NOTE_TEXT_UNSUPPORTED: CodeText(
        "a document whose form is not read",
        "The document is of a form (an image, a PDF) from which no text is taken.",
        _NOTHING,
    ),
    IssueCode.QUANTITY_INEXACT: CodeText(
        "an age or a duration with a comparator",
        "An age or a duration says less or more than (`<`, `>`) its number. As an age the number stands in; as a duration it is"
        " not used.",
        _NOTHING,
    ),
    IssueCode.REFERENCE_BY_IDENTIFIER: CodeText(
        "a reference by identifier alone",
        "The reference names no resource but an identifier, of a type whose identifiers are not compared.",
        _AT_SOURCE,
    ),
    IssueCode.REFERENCE_CONTAINED: CodeText(
        "a reference to a contained resource",
        "The reference is to a resource within this one, which has no row of its own or says nothing that can be used.",
        _NOTHING,
    ),
    IssueCode.REFERENCE_TYPE_UNUSABLE: CodeText(
        "a reference to another type of resource",
        "The reference is to a type that cannot be what the column means: a Device as provider.",
        _NOTHING,
    ),
    IssueCode.REFERENCE_UNREADABLE: CodeText(
        "a reference that cannot be read",
        "The text of the reference is not one that FHIR knows.",
        _AT_SOURCE,
    ),
    IssueCode.ROW_LEFT_OUT: CodeText(
        "a part of the resource has no row",
        "A component, a reaction, a diagnosis or the like cannot be made a row because of the element in the path; the"
        " resource's other rows are there.",
        "Look at the element with `epic-omop explain`. If it is valid FHIR, the mapping is to be mended.",
    ),
    IssueCode.START_IS_MANUFACTURE_DATE: CodeText(
        "a device without a date of use",
        "By option, the start is the device's date of manufacture.",
        "Take no such start for the beginning of a use.",
    ),
    IssueCode.VALUE_IMPLAUSIBLE: CodeText(
        "a number outside its limits",
        "A rule about numbers finds the value outside the limits of its concept, and the option `plausibility` is `apply`.",
        "Look at the rule in `plausibility/`; a site's own rules come before it.",
    ),
    IssueCode.VALUE_NEGATIVE: CodeText(
        "a number below 0 where none can be",
        "The value is negative, and its concept does not allow that (Themis). The column is NULL; value_source_value stays.",
        _AT_SOURCE,
    ),
}


def rejection_text(code: str) -> CodeText | None:
    """The entry of a dead letter's code; None for one that only a former version gave."""
    return REJECTIONS[RejectionCode(code)] if code in set(RejectionCode) else None
