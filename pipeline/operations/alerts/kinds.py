"""The kinds of alerts: what each means, what to do, and by which command. docs/alerts.md has a section for each.

A new kind is an entry here and a rule that finds it; a text that a channel sends is made of these and of what the rule says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

__all__ = ["CONSEQUENCES", "KINDS", "AlertKind", "Condition", "KindText", "Severity"]

Severity = Literal["warning", "error"]


class AlertKind(StrEnum):
    RUN_FAILED = "run_failed"
    NO_PUBLICATION = "no_publication"
    NOTHING_RAN = "nothing_ran"
    SITE_STOPPED = "site_stopped"
    SITE_STUCK = "site_stuck"
    EXPORT_WAITING = "export_waiting"
    CHECK_FAILED = "check_failed"
    CHECK_WARNS = "check_warns"
    DEAD_LETTERS_JUMP = "dead_letters_jump"
    UNMAPPED_CODES_JUMP = "unmapped_codes_jump"
    DISK_FULL_SOON = "disk_full_soon"
    WAREHOUSE_AWAY = "warehouse_away"
    RULE_FAILED = "rule_failed"


@dataclass(frozen=True)
class KindText:
    """`command` takes `{site}`; a rule may name a more exact one."""

    title: str
    #: error: a person is needed now. warning: somebody should look within days.
    severity: Severity
    meaning: str
    to_do: str
    command: str


@dataclass(frozen=True)
class Condition:
    """Something that is wrong at present. `what` says what happened, without patient data; `site` is None where it is
    about the whole instance; `about` distinguishes conditions of one kind and site, such as groups."""

    kind: AlertKind
    site: str | None
    what: str
    about: str = ""
    own_command: str = ""

    @property
    def key(self) -> str:
        return f"{self.site or ''}:{self.kind}:{self.about}"

    @property
    def text(self) -> KindText:
        return KINDS[self.kind]

    @property
    def severity(self) -> Severity:
        return self.text.severity

    @property
    def needs_person(self) -> bool:
        return self.severity == "error"

    @property
    def command(self) -> str:
        return self.own_command or self.text.command.format(site=self.site or "NAME")


KINDS: Mapping[AlertKind, KindText] = {
    AlertKind.RUN_FAILED: KindText(
        "A run failed",
        "error",
        "What the run should have done is not done. The warehouse is as before it: nothing is half loaded.",
        "Read the error, mend its cause, and run the site again; the next night also tries.",
        "epic-omop run --site {site}",
    ),
    AlertKind.NO_PUBLICATION: KindText(
        "A night without a publication",
        "error",
        "Analysts see the data of an earlier night.",
        "Look at what the site's export does; run it by hand if nothing is on its way.",
        "epic-omop status",
    ),
    AlertKind.NOTHING_RAN: KindText(
        "Nothing ran at all",
        "error",
        "No site asked for its exports: Dagster's daemon is down, or the machine was off at night.",
        "Start the services, then see that the daemon is alive.",
        "epic-omop ui",
    ),
    AlertKind.SITE_STOPPED: KindText(
        "A site is stopped",
        "warning",
        "The site's schedule is off, so that no night asks for its exports.",
        "Switch it on again if that was not meant.",
        "epic-omop site enable {site}",
    ),
    AlertKind.SITE_STUCK: KindText(
        "A site is stuck",
        "error",
        "An export is open and does not move on by itself; no further one is asked for until it ends.",
        "Read why, and continue the site by hand.",
        "epic-omop run --site {site}",
    ),
    AlertKind.EXPORT_WAITING: KindText(
        "An export takes longer than usual",
        "warning",
        "The site still works on it, or does not say that it has stopped.",
        "Ask the site's administrators whether the export runs; abandon it only when they say that it does not.",
        "epic-omop status",
    ),
    AlertKind.CHECK_FAILED: KindText(
        "A check failed",
        "error",
        "Something that must always hold in the warehouse does not: results may be wrong.",
        "See which rows the check names, before analysts use the tables.",
        "epic-omop verify",
    ),
    AlertKind.CHECK_WARNS: KindText(
        "A check warns",
        "warning",
        "Something is odd, such as a number far from the site's own past; the tables may be right all the same.",
        "See what the check says, and whether the site knows why.",
        "epic-omop verify",
    ),
    AlertKind.DEAD_LETTERS_JUMP: KindText(
        "Many more lines than usual could not be loaded",
        "warning",
        "These resources are missing from the tables, or are there as they were before.",
        "See the reasons: one code for many lines is nearly always one change at the site.",
        "epic-omop dead-letters list --site {site}",
    ),
    AlertKind.UNMAPPED_CODES_JUMP: KindText(
        "Many more codes than usual have no concept",
        "warning",
        "Rows are loaded with concept 0, and analyses by concept do not find them.",
        "See the codes: a new code system or another form of codes can be mapped, and a remap mends the rows.",
        "epic-omop unmapped status --site {site}",
    ),
    AlertKind.DISK_FULL_SOON: KindText(
        "A disk is full soon",
        "error",
        "Exports cannot be landed and the database stops when it is full; nothing is lost, and no night is loaded.",
        "Give it space, or keep landed exports for a shorter time.",
        "epic-omop landing status",
    ),
    AlertKind.WAREHOUSE_AWAY: KindText(
        "The warehouse cannot be used",
        "error",
        "No site can be loaded, and no other alert can be found out.",
        "See that PostgreSQL runs, takes connections, and has space on its disk.",
        "epic-omop db status",
    ),
    AlertKind.RULE_FAILED: KindText(
        "A rule of the alerts could not be asked",
        "warning",
        "What this rule looks for is not seen at present; the other rules are asked.",
        "Upgrade the schemas if they are of an older version, and see the log.",
        "epic-omop db init",
    ),
}

#: What is no news where one of these is open for the same site: it follows from it.
CONSEQUENCES: Mapping[AlertKind, frozenset[AlertKind]] = {
    AlertKind.NO_PUBLICATION: frozenset(
        {AlertKind.RUN_FAILED, AlertKind.SITE_STUCK, AlertKind.EXPORT_WAITING, AlertKind.SITE_STOPPED}
    ),
    AlertKind.SITE_STUCK: frozenset({AlertKind.RUN_FAILED, AlertKind.EXPORT_WAITING}),
    AlertKind.EXPORT_WAITING: frozenset({AlertKind.SITE_STUCK}),
}
