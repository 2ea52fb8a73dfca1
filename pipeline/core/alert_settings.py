"""Settings of alerts: the section `alerts:` of operations.yaml (docs/alerts.md). Who is informed, by what, and from when on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "CHANNEL_KINDS",
    "AlertSettings",
    "EmailChannel",
    "HeartbeatSettings",
    "LogChannel",
    "SiteAlertSettings",
    "WebhookChannel",
]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
#: Local part and domain; what a mail server does not take it says itself.
_ADDRESS = re.compile(r"[^\s@<>,;:\"()\[\]\\]+@[^\s@<>,;:\"()\[\]\\]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]+\]?")


class _Channel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    #: By which deliveries are remembered; empty: that of the kind.
    name: str = ""
    #: Only alerts of these sites (and of the instance as a whole); empty: of all.
    sites: tuple[str, ...] = ()
    #: Only alerts that need a person: `warning`s are left out.
    severity: Literal["warning", "error"] = "warning"

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise ValueError("a channel's name is lower-case letters, digits, - and _, beginning with a letter")
        return value


class LogChannel(_Channel):
    """Alerts as lines of our own log, at level WARNING (ERROR for those that need a person)."""

    kind: Literal["log"]


class EmailChannel(_Channel):
    """Alerts as e-mail through an SMTP server."""

    kind: Literal["email"]
    host: str
    #: None: 587 with STARTTLS, 465 with TLS from the first byte on, 25 without.
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    #: `none` sends the message in the clear, and takes no password.
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password_env: str | None = None
    password_file: Path | None = None
    #: Certificate authorities of the server's certificate, where they are of the house.
    ca_file: Path | None = None
    sender: str
    recipients: tuple[str, ...]

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not _HOST.fullmatch(value):
            raise ValueError("is not the name or address of a host; the port is a key of its own")
        return value

    @field_validator("sender")
    @classmethod
    def _sender(cls, value: str) -> str:
        return _checked_address(value)

    @field_validator("recipients")
    @classmethod
    def _recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name an address at least")
        return tuple(map(_checked_address, value))

    @model_validator(mode="after")
    def _login(self) -> EmailChannel:
        if self.password_env and self.password_file:
            raise ValueError("give only one of password_env and password_file")
        has_password = bool(self.password_env or self.password_file)
        if has_password != bool(self.username):
            raise ValueError("username and password_env (or password_file) belong together")
        if has_password and self.security == "none":
            raise ValueError("a password is never sent in the clear: set security to starttls or tls")
        return self


class WebhookChannel(_Channel):
    """Alerts as JSON that is posted to an address, which is a secret: it holds the token."""

    kind: Literal["webhook"]
    url_env: str | None = None
    url_file: Path | None = None
    #: The receiver's form; None: by the host of the address, and Slack's (`text`, `blocks`) where that says nothing.
    format: Literal["slack", "teams", "json"] | None = None
    #: Certificate authorities of the server's certificate, where they are of the house.
    ca_file: Path | None = None
    #: http:// is refused but to this machine itself; set it for a receiver inside the house without TLS.
    allow_http: bool = False

    @model_validator(mode="after")
    def _address(self) -> WebhookChannel:
        _refuse_other_than_one(self.url_env, self.url_file)
        return self


class HeartbeatSettings(BaseModel):
    """An address that is asked for after each run of the rules that went well: a watcher elsewhere misses it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url_env: str | None = None
    url_file: Path | None = None
    ca_file: Path | None = None
    allow_http: bool = False

    @model_validator(mode="after")
    def _address(self) -> HeartbeatSettings:
        _refuse_other_than_one(self.url_env, self.url_file)
        return self


class SiteAlertSettings(BaseModel):
    """What differs for one site; None: as for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    publication_within_hours: Annotated[float, Field(gt=0, le=8760)] | None = None
    export_within_hours: Annotated[float, Field(gt=0, le=8760)] | None = None


class AlertSettings(BaseModel):
    """Who is informed, and the bounds of the rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[Annotated[EmailChannel | WebhookChannel | LogChannel, Field(discriminator="kind")], ...] = (
        LogChannel(kind="log"),
    )
    heartbeat: HeartbeatSettings | None = None
    #: By which messages name this warehouse; None: the abbreviation of cdm_source, or the machine where it has none.
    instance: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    #: What is still open is said again after so many hours; 0: never.
    remind_after_hours: Annotated[float, Field(ge=0, le=8760)] = 24.0
    #: For one message to one channel, everything together.
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 15.0
    #: A night's export is published so many hours after the site's schedule at the latest.
    publication_within_hours: Annotated[float, Field(gt=0, le=8760)] = 12.0
    #: An export is late after so many hours whatever is usual; None: only by the site's own last exports.
    export_within_hours: Annotated[float, Field(gt=0, le=8760)] | None = None
    #: A disk that is full within so many days by its trend.
    disk_within_days: Annotated[float, Field(gt=0, le=365)] = 7.0
    #: The site's own nights that a night is compared with, and how many are needed for it.
    history_nights: Annotated[int, Field(ge=3, le=365)] = 14
    history_least_nights: Annotated[int, Field(ge=2, le=365)] = 5
    #: A number jumps that is above the median by so many median absolute deviations (times 1.4826) …
    jump_deviations: Annotated[float, Field(gt=0, le=1000)] = 5.0
    #: … and by so many at least.
    jump_least_dead_letters: Annotated[int, Field(ge=1)] = 20
    jump_least_unmapped_codes: Annotated[int, Field(ge=1)] = 20
    #: What differs by site.
    sites: Mapping[str, SiteAlertSettings] = Field(default_factory=dict)

    @field_validator("channels")
    @classmethod
    def _each_channel_once(
        cls, value: tuple[EmailChannel | WebhookChannel | LogChannel, ...]
    ) -> tuple[EmailChannel | WebhookChannel | LogChannel, ...]:
        named = tuple(one if one.name else one.model_copy(update={"name": one.kind}) for one in value)
        names = [one.name for one in named]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two channels have the name {twice!r}; give each a `name` of its own")
        return named

    @model_validator(mode="after")
    def _enough_nights(self) -> AlertSettings:
        if self.history_least_nights > self.history_nights:
            raise ValueError("history_least_nights must not be more than history_nights")
        return self

    def of_site(self, site: str) -> SiteAlertSettings:
        """The bounds of one site, with what holds for all filled in."""
        own = self.sites.get(site, SiteAlertSettings())
        return SiteAlertSettings(
            publication_within_hours=own.publication_within_hours or self.publication_within_hours,
            export_within_hours=own.export_within_hours or self.export_within_hours,
        )


#: `kind` → the model of such a channel.
CHANNEL_KINDS: Mapping[object, type[BaseModel]] = {"email": EmailChannel, "webhook": WebhookChannel, "log": LogChannel}


def _checked_address(value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ValueError(f"{value!r} is not a mail address such as oncall@hospital.example")
    return value


def _refuse_other_than_one(variable: str | None, file: Path | None) -> None:
    if (variable is None) == (file is None):
        raise ValueError("give exactly one of url_env and url_file: the address is a secret, for it holds the token")
