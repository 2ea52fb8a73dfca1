"""Every error that a user of epic-omop can meet, distinguished by what the user should do.

This module holds the exception tree and nothing else. An error says what happened, to what, and what to
do next; it never carries patient data or a secret.

EpicOmopError
├── UsageError                the command or its input was wrong (exit 2)
│   ├── ConfigurationError    sites.yaml, an environment variable, a key file
│   └── MappingError          a mapping file; carries the file and, where known, the line
├── TransientError            the same call may succeed later (exit 75)
│   ├── RemoteUnavailable     network, time-out, 408, 429, 5xx
│   │   ├── Unreachable       no connection was made: the server has seen nothing of the request
│   │   ├── UnreadableStatus  the status was answered with what is not a manifest: it says nothing of the export
│   │   └── KickOffUnknown    sent, and no clear answer came: an export may run; never repeated blindly
│   ├── CooldownActive        Epic refuses a kick-off for this group until `next_try`
│   ├── ExportNotReady        the export still runs; ask again at `next_try`
│   ├── RequestBudgetSpent    the site's requests of this hour are used up; continue at `next_try`
│   └── SiteBusy              another run of the same site holds the lock
├── PermanentError            repeating does not help until somebody changes something (exit 1)
│   ├── AuthenticationRefused token endpoint refused
│   ├── RemoteRefused         400, 403, 404, 422 and the like
│   ├── ProtocolError         the server's answer breaks the specification
│   │   └── AcceptedWithoutAddress  an export runs, and the server did not say where to ask for it
│   ├── ExportGone            the job or its files no longer exist on the server
│   ├── UnsafeRemote          an address or a size that the security rules refuse
│   │   ├── UnusableAddress   an address that no setting or later try makes usable
│   │   └── AddressNotListed  a public address that allowed_origins in sites.yaml could name
│   └── ConfirmationNeeded    much would be deleted, and nobody has confirmed it
├── LandingError              the landing or staging store is damaged or full (exit 74)
├── LakehouseError            the folder of Parquet snapshots is damaged, full, or not ours (exit 74)
├── WarehouseError            PostgreSQL is missing, damaged, or of the wrong version (exit 74)
│   └── WarehouseUnavailable  it went away, or refuses for a reason that passes: a restart, too many connections, a lock
├── VocabularyError           the vocabulary is missing or cannot be read (exit 1)
├── StorageError              a file system refuses: read-only, no rights, full (exit 74)
├── Defect                    an exception that nobody expected (exit 70)
├── TransformError            worker processes cannot start, or many lines break them (exit 70)
├── AccountingError           lines in ≠ outcomes out: a defect that must never pass silently (exit 70)
└── CheckFailed               rows that analysts must never see would have been there: nothing was published (exit 70)
"""

from __future__ import annotations

from datetime import datetime

__all__ = [
    "AcceptedWithoutAddress",
    "AccountingError",
    "AddressNotListed",
    "AuthenticationRefused",
    "CheckFailed",
    "ConfigurationError",
    "ConfirmationNeeded",
    "CooldownActive",
    "Defect",
    "EpicOmopError",
    "ExportGone",
    "ExportNotReady",
    "KickOffUnknown",
    "LakehouseError",
    "LandingError",
    "MappingError",
    "NightFailed",
    "PermanentError",
    "ProtocolError",
    "RemoteRefused",
    "RemoteUnavailable",
    "RequestBudgetSpent",
    "SiteBusy",
    "StorageError",
    "TransformError",
    "TransientError",
    "Unreachable",
    "UnreadableStatus",
    "UnsafeRemote",
    "UnusableAddress",
    "UsageError",
    "VocabularyError",
    "WarehouseError",
    "WarehouseUnavailable",
]


class EpicOmopError(Exception):
    """What happened (first argument) and what to do next (`advice`, may be empty)."""

    exit_code = 1

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class UsageError(EpicOmopError):
    exit_code = 2


class ConfigurationError(UsageError):
    pass


class MappingError(UsageError):
    """A mapping file is wrong. `file` and `line` (1-based) say where, as far as known."""

    def __init__(self, message: str, advice: str = "", *, file: str | None = None, line: int | None = None) -> None:
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(f"{where}{message}", advice)
        self.file = file
        self.line = line


class TransientError(EpicOmopError):
    """`next_try` is the UTC time from which another try makes sense, when known."""

    exit_code = 75

    def __init__(self, message: str, advice: str = "", *, next_try: datetime | None = None) -> None:
        super().__init__(message, advice)
        self.next_try = next_try


class RemoteUnavailable(TransientError):
    pass


class Unreachable(RemoteUnavailable):
    """No connection was made: the server has seen nothing of the request."""


class UnreadableStatus(RemoteUnavailable):
    """The question for the status was answered with 200 and something that is not a manifest."""


class KickOffUnknown(RemoteUnavailable):
    """The kick-off was sent and no clear answer came: an export may run. It must not be kicked off again blindly.

    `status` is the HTTP status, where a server or a gateway did answer."""

    def __init__(
        self, message: str, advice: str = "", *, next_try: datetime | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, advice, next_try=next_try)
        self.status = status


class CooldownActive(TransientError):
    pass


class ExportNotReady(TransientError):
    pass


class RequestBudgetSpent(TransientError):
    pass


class SiteBusy(TransientError):
    pass


class PermanentError(EpicOmopError):
    pass


class AuthenticationRefused(PermanentError):
    pass


class RemoteRefused(PermanentError):
    """`status` is the HTTP status of the refusal."""

    def __init__(self, message: str, advice: str = "", *, status: int | None = None) -> None:
        super().__init__(message, advice)
        self.status = status


class ProtocolError(PermanentError):
    pass


class AcceptedWithoutAddress(ProtocolError):
    """The server started an export and did not say where to ask for it: it runs, and cannot be reached."""


class ExportGone(PermanentError):
    pass


class UnsafeRemote(PermanentError):
    pass


class UnusableAddress(UnsafeRemote):
    """An address at which nothing is ever asked: malformed, of another scheme, or inside a network that is not open."""


class AddressNotListed(UnsafeRemote):
    """A public address outside the allow-list: right, perhaps, once a person has named it in sites.yaml."""


class ConfirmationNeeded(PermanentError):
    """More would be deleted than goes without asking: nothing was done, and `--confirm` does it."""


class LandingError(EpicOmopError):
    exit_code = 74


class LakehouseError(EpicOmopError):
    exit_code = 74


class WarehouseError(EpicOmopError):
    exit_code = 74


class WarehouseUnavailable(WarehouseError):
    """The same work may succeed in some minutes: nothing of it was committed."""


class VocabularyError(EpicOmopError):
    pass


class TransformError(EpicOmopError):
    exit_code = 70


class StorageError(EpicOmopError):
    exit_code = 74


class Defect(EpicOmopError):
    exit_code = 70


class AccountingError(EpicOmopError):
    exit_code = 70


class CheckFailed(EpicOmopError):
    """A rule of `pipeline.quality.checks` does not hold for what was to be published, or for what was to be passed on."""

    exit_code = 70

    def __init__(
        self, message: str, advice: str = "", *, check: str = "", table: str | None = None, problems: int = 1
    ) -> None:
        super().__init__(message, advice)
        self.check = check
        self.table = table
        self.problems = problems


class NightFailed(EpicOmopError):
    """A night in this process whose kick-off or loads failed; what went wrong is the message."""
