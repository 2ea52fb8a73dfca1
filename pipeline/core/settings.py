"""Settings: environment variables and `sites.yaml`, read once, checked, and passed on as typed objects.

Secrets are never written here: a site names the file or the environment variable that holds its key.
Nothing else in the project reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from omop_schema.contact import CONTACT_TABLES
from omop_schema.versions import DEFAULT_CDM_VERSION, CdmVersion
from pipeline.core.cdm_source import CdmSource
from pipeline.core.database_password import PASSWORD_FILE_VARIABLE, with_password_of_file
from pipeline.core.errors import ConfigurationError
from pipeline.core.history_bounds import HistoryBounds
from pipeline.core.instance_zone import default_zone
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.core.resource_types import RESOURCE_TYPES
from pipeline.core.settings_file import SettingsEntry, nearest
from pipeline.core.settings_problems import control_characters, problem, setting_name
from pipeline.core.sites_file import read_site_entries, write_site_entry

__all__ = [
    "DEVICE_TYPE",
    "DOCUMENT_TYPE",
    "MAPPINGS_FOLDER",
    "PERSONAL_TYPES",
    "RESULT_TYPE",
    "LogSettings",
    "Settings",
    "SiteSettings",
    "home_folder",
    "load_log_settings",
    "load_settings",
    "register_site",
]

#: The project's own mappings; `EPIC_OMOP_MAPPINGS` names another folder.
MAPPINGS_FOLDER = Path(__file__).resolve().parents[2] / "mappings"

#: Fetched by reference where an export lacks them (rule 11): what many patients share, and results of reports.
DEFAULT_HYDRATE_TYPES = ("Medication", "Location", "Practitioner", "PractitionerRole", "Organization", "Observation")
#: In `hydrate_types`: Observations that a DiagnosticReport.result or an Observation.hasMember refers to.
RESULT_TYPE = "Observation"
#: In `hydrate_types`: devices that uses and procedures refer to.
DEVICE_TYPE = "Device"
#: In `hydrate_types`: attachments of DocumentReference and DiagnosticReport.
DOCUMENT_TYPE = "Binary"
#: Of those, the types of which each resource belongs to one person.
PERSONAL_TYPES = (RESULT_TYPE, DOCUMENT_TYPE, DEVICE_TYPE)

#: What a search for a type needs beside the patient: each text is one search, and their results are put together.
#: Rule 6: categories that a site's API does not have (procedure, therapy, activity) are refused, so the list is a
#: setting. A type that is not named is searched for by the patient alone.
DEFAULT_CRAWL_SEARCHES: Mapping[str, tuple[str, ...]] = {
    "Observation": tuple(
        f"category={category}"
        for category in ("laboratory", "vital-signs", "social-history", "survey", "exam", "imaging")
    ),
    "Condition": tuple(
        f"category={category}" for category in ("problem-list-item", "encounter-diagnosis", "health-concern")
    ),
    "DocumentReference": ("category=clinical-note",),
    "CarePlan": ("category=38717003",),
}

_ORIGIN = re.compile(r"https?://[^/\s@?#\\]+/?", re.IGNORECASE)
_DAY_SECONDS = 86_400.0
_Model = TypeVar("_Model", bound=BaseModel)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MESSAGE = re.compile(r"\d{1,8}|[a-z][a-z-]{0,39}")
#: How `pipeline.landing.outcomes` names what cannot be read: that may be any message.
_UNKNOWN_MESSAGES = ("unreadable", "other")
_REMOVAL = re.compile(r"keep|delete|delete-after (?P<exports>[1-9][0-9]?) exports?")
_KEEP = re.compile(r"all|[1-9][0-9]{0,3} (exports?|days?)")
#: Parameters of a search beside `patient`, as they stand in the address; `patient` itself is never a setting.
_SEARCH = re.compile(r"(?!.*(^|&)(patient|subject)=)[A-Za-z_][\w:.-]*=[^&#\s]+(&[A-Za-z_][\w:.-]*=[^&#\s]+)*")


#: Where private_networks may lie: RFC 1918 and 6598, RFC 4193.
_PRIVATE_IPV4 = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
_PRIVATE_IPV6 = ipaddress.IPv6Network("fc00::/7")


def _is_private(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Not by Python's own `is_private`, which takes 0.0.0.0/1 for a private network."""
    if isinstance(network, ipaddress.IPv6Network):
        return network.subnet_of(_PRIVATE_IPV6)
    return any(network.subnet_of(block) for block in _PRIVATE_IPV4)


def _refuse_odd_base(url: str) -> None:
    """A base URL is scheme, host, port and path: paths are added to it, and it stands in logs and reports as it is. The
    message shows nothing of it, which may be a password. Raises ValueError."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("fhir_url must not hold a user name or password; a site is signed in to by its key")
    if "?" in url or "#" in url:
        raise ValueError("fhir_url must not have a query (?) or a fragment (#)")
    if not url.isprintable() or any(letter.isspace() or letter == "\\" for letter in url):
        raise ValueError("fhir_url must not hold blanks, control characters or backslashes")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("fhir_url has no host, or a port that is none")


def _refuse_unknown_type(name: str) -> None:
    """Of FHIR R4, whether it is mapped or not: what is exported is kept, and may be mapped one day. Raises ValueError."""
    if name not in RESOURCE_TYPES:
        raise ValueError(
            f"{name!r} is not a resource type of FHIR R4.{nearest(name, RESOURCE_TYPES)}".removesuffix(".")
        )


def _checked_zone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError(f"{value!r} is not an IANA time zone such as America/Chicago")
    return value


def _checked_cron(value: str) -> str:
    try:
        CronSim(value, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        raise ValueError(f"{value!r} is not a cron expression such as '0 1 * * *'") from None
    return value


class SiteSettings(BaseModel):
    """One Epic site: an entry under `sites:` in sites.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    #: FHIR base URL; None for a site that is only loaded from folders.
    fhir_url: str | None = None
    client_id: str | None = None
    #: The signing key (PEM, JWK or JWK Set): a file, or the name of an environment variable that holds it.
    private_key_file: Path | None = None
    private_key_env: str | None = None
    key_id: str | None = None
    algorithm: Literal["RS384", "ES384"] | None = None
    #: Rotation: the key that is used when the site does not know the new one yet. A file, a variable, or only
    #: another kid of the same JWK Set.
    previous_private_key_file: Path | None = None
    previous_private_key_env: str | None = None
    previous_key_id: str | None = None
    #: Where the public keys are hosted (a JWK Set); only `site check` and `keys check` read it.
    jwks_url: str | None = None
    #: `system/Patient.read` (v1) or `system/Patient.rs` (v2); None: what discovery names, else v1.
    scope_version: Literal["v1", "v2"] | None = None
    #: `aud` of the assertion where a proxy stands before the token endpoint (rule 9).
    audience: str | None = None
    #: IANA zone in which the site's `*_date` columns are taken.
    time_zone: str = "UTC"
    #: Group ids as given by the site's administrators (rule 1); ≤ 1,000 patients each is recommended (rule 7).
    groups: tuple[str, ...] = ()
    #: What is asked for (rule 5: always send `_type`); None: all types that the site's mappings map, which
    #: `pipeline.extract.asked_types` fills in.
    resource_types: tuple[str, ...] | None = None
    #: Rule 2: one kick-off for a client and group in this window.
    kickoff_window_hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    #: Bounds of the wait between two status requests, in seconds (rule 7).
    poll_floor_seconds: Annotated[float, Field(ge=0, le=_DAY_SECONDS)] = 600.0
    poll_ceiling_seconds: Annotated[float, Field(gt=0, le=_DAY_SECONDS)] = 3600.0
    download_workers: Annotated[int, Field(ge=1, le=32)] = 4
    #: A download that stays below so many bytes a second for a minute is begun anew where it was; 0: never.
    download_floor_bytes_per_second: Annotated[int, Field(ge=0)] = 512
    #: Further origins (scheme://host:port) that may be given the bearer token.
    allowed_origins: tuple[str, ...] = ()
    ca_file: Path | None = None
    #: Private networks (CIDR) in which the site's server may stand, such as 10.20.0.0/16; none by default, so that
    #: a name that turns out to be an address of our own network is refused.
    private_networks: tuple[str, ...] = ()
    #: Resources that a group's complete exports no longer hold: `keep`, `delete`, or `delete-after N exports`.
    #: docs/vanished.md says when an export is complete, and what is asked before much is deleted.
    vanished: str = "keep"
    #: The same for resources that left with their patient, and for what belongs to no patient.
    left_group: str = "keep"
    #: Types of which an export without a file holds none, instead of being incomplete.
    empty_when_missing: tuple[str, ...] = ()
    #: Messages that the site's error files always hold: Epic's own code such as 59108, or the FHIR type of the issue. They
    #: are counted and shown, and an export is complete all the same (docs/vanished.md says which are never tolerated).
    tolerated_messages: tuple[str, ...] = ()
    #: The site's exports know `_since`: `export --since` may be used. Many sites ignore it (rule 5).
    supports_since: bool = False
    #: Requests an hour that we allow ourselves at this site, over all processes; None: only counted.
    request_budget_per_hour: Annotated[int, Field(ge=1)] | None = None
    #: Plain http and loopback addresses are allowed only with this (the simulated Epic).
    test_mode: bool = False
    #: Observation periods do not begin before the site went live on Epic (specification, "Derived tables").
    go_live_date: date | None = None
    #: CDM table → a later day from which on its rows make periods: modules of the record come into use one after another.
    go_live_dates: Mapping[str, date] = Field(default_factory=dict)
    #: So many days or more without a contact part observation periods (Themis: 548), and so many days a period lasts after
    #: the last one, and after the death (Themis: 60).
    observation_period_gap_days: Annotated[int, Field(ge=1, le=36_500)] = 548
    observation_period_tail_days: Annotated[int, Field(ge=0, le=36_500)] = 60
    #: Periods begin at birth at the earliest; 9: also so many months before it (records split off the mother's).
    observation_period_months_before_birth: Annotated[int, Field(ge=0, le=9)] = 0
    #: A death more than 60 days before a contact is an issue (`activity_after_death`), and by option not loaded.
    doubted_deaths: Literal["keep", "drop"] = "keep"
    #: gap_days of drug_era: the days without an exposure (the CDM's field), or as OHDSI's script counts them
    drug_era_gap_days: Literal["exposed_days", "ohdsi_script"] = "exposed_days"
    #: whether each load counts facts that two resources bring (docs/mapping.md)
    count_duplicates: bool = True
    #: A line longer than this becomes a dead letter, in bytes.
    max_line_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    #: Keep the text of text-only concepts in `*_source_value` for these resource types (free text can hold names).
    text_source_value_types: tuple[str, ...] = ()
    #: Named settings of the mapping: docs/mapping-options.md.
    mapping: MappingOptions = MappingOptions()
    #: Services that are asked about codes that neither the local map nor the vocabulary knows, in their order
    #: (docs/vocabulary.md, 'Other resolvers'); by default none.
    resolvers: tuple[ResolverSettings, ...] = ()
    #: How many exports of each group, or for how many days, landing keeps whole: `14 exports`, `30 days`, `all`. Of older ones
    #: `landing prune` leaves the lines that are needed (docs/landing.md); it runs only when it is asked to.
    landing_keep: str = "30 days"
    #: Cron of the nightly schedule, in the site's zone.
    schedule: str = "0 1 * * *"
    #: By how much a night may differ from the site's own nights before, where the bounds of all sites do not fit it.
    history_bounds: HistoryBounds = HistoryBounds()
    #: Fetch by reference what an export lacks, after each export (docs/extraction.md).
    hydrate: bool = False
    hydrate_types: tuple[str, ...] = DEFAULT_HYDRATE_TYPES
    #: What was fetched by reference, or was not there, is asked for again after so many days.
    hydrate_again_days: Annotated[float, Field(ge=0, le=36_500)] = 30.0
    #: The patients of a crawl, for sites without bulk export: one FHIR id a line, or CSV.
    patients_file: Path | None = None
    #: By resource type, in place of that type's default: what its searches need beside the patient.
    crawl_searches: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    #: `_count` of searches: a ceiling for the server (rule 14).
    search_count: Annotated[int, Field(ge=1, le=1000)] = 200
    #: The site's searches know `_lastUpdated`: a crawl then asks for what changed since the last one.
    search_last_updated: bool = False
    #: Patients of a crawl, or references, that are worked on side by side.
    rest_workers: Annotated[int, Field(ge=1, le=16)] = 4
    #: Limit of reads and searches, all workers together.
    requests_per_second: Annotated[float, Field(gt=0, le=1000)] = 10.0

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("a site's name is lower-case letters, digits and _, beginning with a letter")
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        return _checked_zone(value)

    @field_validator("fhir_url")
    @classmethod
    def _fhir_base(cls, value: str | None) -> str | None:
        """Paths are added with a slash of their own."""
        return value.rstrip("/") if value else value

    @field_validator("private_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                network = ipaddress.ip_network(text)
            except ValueError:
                raise ValueError(f"{text!r} is not a network such as 10.20.0.0/16") from None
            if not _is_private(network):
                raise ValueError(
                    f"{text} is not a private network; loopback and link-local addresses are never allowed"
                )
        return value

    @field_validator("go_live_dates")
    @classmethod
    def _tables_of_events(cls, value: Mapping[str, date]) -> Mapping[str, date]:
        for name in value:
            if name not in CONTACT_TABLES:
                raise ValueError(f"{name!r} is none of the tables {', '.join(CONTACT_TABLES)}")
        return value

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        return _checked_cron(value)

    @field_validator("vanished", "left_group")
    @classmethod
    def _removal(cls, value: str) -> str:
        if not _REMOVAL.fullmatch(value):
            raise ValueError(f"{value!r} is none of keep, delete, and delete-after N exports with N from 1 to 99")
        return value

    @field_validator("landing_keep")
    @classmethod
    def _landing_keep(cls, value: str) -> str:
        if not _KEEP.fullmatch(value):
            raise ValueError(f"{value!r} is none of all, N exports and N days with N from 1 to 9999")
        return value

    @field_validator("tolerated_messages", mode="before")
    @classmethod
    def _codes(cls, value: object) -> object:
        """YAML takes a code of digits for a number."""
        return [str(code) if isinstance(code, int) else code for code in value] if isinstance(value, list) else value

    @field_validator("tolerated_messages")
    @classmethod
    def _tolerated_messages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not _MESSAGE.fullmatch(code) or code in _UNKNOWN_MESSAGES:
                raise ValueError(
                    f"{code!r} is neither a code of Epic's such as 59108 nor a FHIR type such as not-found"
                )
        return value

    @field_validator("resource_types", "empty_when_missing", "text_source_value_types")
    @classmethod
    def _resource_types(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            _refuse_unknown_type(name)
        return value

    @field_validator("resource_types")
    @classmethod
    def _some_type(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("must name a resource type at least; without the key all mapped types are asked for")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not _ORIGIN.fullmatch(text):
                raise ValueError(
                    "an origin is a scheme, a host and perhaps a port, such as https://files.example.org:8443"
                )
        return value

    @field_validator("groups")
    @classmethod
    def _group_ids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(group.strip() for group in value):
            raise ValueError("one of the ids is empty")
        return value

    @field_validator("hydrate_types")
    @classmethod
    def _hydrate_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = (*DEFAULT_HYDRATE_TYPES, DEVICE_TYPE, DOCUMENT_TYPE)
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"{unknown[0]} cannot be fetched by reference; known are {', '.join(known)}")
        return value

    @field_validator("crawl_searches")
    @classmethod
    def _crawl_searches(cls, value: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        for resource_type, searches in value.items():
            _refuse_unknown_type(resource_type)
            for search in searches:
                if not _SEARCH.fullmatch(search):
                    raise ValueError(f"{resource_type}: {search!r} is not a valid search such as category=laboratory")
        return value

    @field_validator("resolvers")
    @classmethod
    def _each_resolver_once(cls, value: tuple[ResolverSettings, ...]) -> tuple[ResolverSettings, ...]:
        if len({resolver.key for resolver in value}) < len(value):
            raise ValueError("one resolver is there twice")
        return value

    @model_validator(mode="after")
    def _resolvers_by_https(self) -> SiteSettings:
        if not self.test_mode and any(resolver.base_url[:8].lower() != "https://" for resolver in self.resolvers):
            raise ValueError("resolvers are asked by https:// alone (http:// only with test_mode: true)")
        return self

    @model_validator(mode="after")
    def _whole(self) -> SiteSettings:
        if self.fhir_url is None:
            return self
        if not self.fhir_url.startswith("https://") and not (self.test_mode and self.fhir_url.startswith("http://")):
            raise ValueError("fhir_url must begin with https:// (http:// only with test_mode: true)")
        _refuse_odd_base(self.fhir_url)
        if not self.client_id:
            raise ValueError("client_id is missing: the client id that Epic gave for this environment")
        if (self.private_key_file is None) == (self.private_key_env is None):
            raise ValueError("give exactly one of private_key_file and private_key_env")
        if self.previous_private_key_file and self.previous_private_key_env:
            raise ValueError("give only one of previous_private_key_file and previous_private_key_env")
        if not self.groups and self.patients_file is None:
            raise ValueError(
                "groups is empty: list the group ids that the site's administrators gave you, or, for a site without"
                " bulk export, name a patients_file to crawl"
            )
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    @property
    def vanished_after(self) -> int | None:
        """From how many complete exports must a resource be absent before it is deleted? None: it is kept."""
        return _exports_before_removal(self.vanished)

    @property
    def left_group_after(self) -> int | None:
        """The same for what left with its patient."""
        return _exports_before_removal(self.left_group)

    @property
    def landing_kept(self) -> tuple[int, Literal["exports", "days", "all"]]:
        """`landing_keep` as a number and what it counts."""
        number, _, unit = self.landing_keep.partition(" ")
        if not unit:
            return 0, "all"
        return int(number), "exports" if unit.startswith("export") else "days"

    @property
    def asked_types(self) -> tuple[str, ...]:
        """`resource_types`, once they are filled in (`pipeline.extract.asked_types.with_asked_types`)."""
        assert self.resource_types is not None, "the types of the site are not filled in yet"
        return self.resource_types

    def searches_of(self, resource_type: str) -> tuple[str, ...]:
        """The parameters of each search for a type, beside the patient; one empty text: the patient alone."""
        searches = self.crawl_searches.get(resource_type, DEFAULT_CRAWL_SEARCHES.get(resource_type, ()))
        return tuple(searches) or ("",)


def _exports_before_removal(policy: str) -> int | None:
    words = _REMOVAL.fullmatch(policy)
    if words is None or policy == "keep":
        return None
    return int(words["exports"] or 1)


class Settings(BaseModel):
    """Everything that is set once for an instance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    #: None: the embedded server.
    database_url: str | None = Field(default=None, repr=False)
    #: Schema of that database in which Dagster keeps its runs and switches; None: SQLite files in the home.
    dagster_schema: str | None = None
    #: Version of the OMOP CDM that the database has; another one needs `epic-omop db upgrade`.
    cdm_version: CdmVersion = DEFAULT_CDM_VERSION
    #: What the table cdm_source says of the instance.
    cdm_source: CdmSource = CdmSource()
    cdm_schema: str = "cdm"
    vocab_schema: str = "vocab"
    etl_schema: str = "etl"
    #: Added to the names of the database roles (`pipeline/warehouse/roles.py`): roles are of a whole server, and a second
    #: warehouse in it has readers of its own, such as omop_reader_trial by `_trial`.
    role_suffix: Annotated[str, Field(pattern=r"^[a-z0-9_]{0,40}$")] = ""
    #: Zone of every `*_datetime` column (f2o-072); without the variable that of the first site
    #: (`pipeline.core.instance_zone`).
    time_zone: str = "UTC"
    #: Worker processes of the transform stage.
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    #: What a worker process may hold in memory (MB); None: its share of half the machine's, at least 2 GB.
    worker_memory_mb: Annotated[int, Field(ge=256)] | None = None
    mappings: Path = MAPPINGS_FOLDER
    #: Each site's own part of the mappings is in a folder of its name here; None: `mappings/sites` in the home.
    site_mappings: Path | None = None
    #: CSV that says which patient of one site is which of another: docs/mapping.md.
    person_crosswalk: Path | None = None
    #: Added to the hash that makes surrogate ids; changing it gives every resource a new identity.
    surrogate_salt: str = Field(default="", repr=False)
    #: Secret under which identifiers of practitioners, organizations and locations are compared; empty: a file in the home.
    identifier_key: str = Field(default="", repr=False)
    #: Folder of the Parquet snapshots of `epic-omop lakehouse snapshot` and Dagster (docs/lakehouse.md); None: only `--to`.
    lakehouse: str | None = None
    #: Cron of Dagster's snapshots, in `time_zone`; used only where `lakehouse` is set.
    lakehouse_schedule: str = "0 6 * * *"
    #: Names and addresses by which browsers reach Dagster's UI (docs/security.md); requests for others are refused.
    ui_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    #: Settings of alerts and retention (`pipeline.core.operations_settings`); None: `operations.yaml` in the home.
    operations: Path | None = None
    sites: Mapping[str, SiteSettings] = Field(default_factory=dict)

    @field_validator("ui_hosts", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """The variable holds them with commas."""
        return tuple(filter(None, re.split(r"[,\s]+", value))) if isinstance(value, str) else value

    @field_validator("ui_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"[A-Za-z0-9.:_-]+|\[[0-9a-fA-F:.]+\]", host) or "://" in host or host.count(":") == 1:
                raise ValueError(f"{host!r} is not a valid name or address of a host; give it without scheme and port")
        return value

    @field_validator("cdm_schema", "vocab_schema", "etl_schema", "dagster_schema")
    @classmethod
    def _schema_name(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if not _NAME.fullmatch(value) or value.startswith("pg_") or value == "information_schema":
            raise ValueError(
                "a schema's name is lower-case letters, digits and _, beginning with a letter, and none of PostgreSQL's own"
            )
        return value

    @model_validator(mode="after")
    def _schemas_are_three(self) -> Settings:
        if len({self.cdm_schema, self.vocab_schema, self.etl_schema}) < 3:
            raise ValueError("EPIC_OMOP_CDM_SCHEMA, _VOCAB_SCHEMA and _ETL_SCHEMA must be three different names")
        if self.dagster_schema in {self.cdm_schema, self.vocab_schema, self.etl_schema, "public"}:
            raise ValueError("EPIC_OMOP_DAGSTER_SCHEMA must be a schema that is Dagster's alone, such as dagster")
        if self.dagster_schema and self.database_url is None:
            raise ValueError("EPIC_OMOP_DAGSTER_SCHEMA needs EPIC_OMOP_DATABASE_URL: the embedded server is not for it")
        return self

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        return _checked_zone(value)

    @field_validator("lakehouse")
    @classmethod
    def _local_folder(cls, value: str | None) -> str | None:
        if value and "://" in value:
            raise ValueError(
                f"{value.partition('://')[0]}:// is not a local folder (docs/lakehouse.md, 'Object stores')"
            )
        return value

    @field_validator("lakehouse_schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        return _checked_cron(value)

    @property
    def landing(self) -> Path:
        return self.home / "landing"

    @property
    def staging(self) -> Path:
        return self.home / "staging"

    @property
    def site_mappings_folder(self) -> Path:
        return self.site_mappings or self.home / "mappings" / "sites"

    @property
    def sites_file(self) -> Path:
        return self.home / "sites.yaml"

    def site(self, name: str) -> SiteSettings:
        """The site of that name. Raises ConfigurationError that lists the known names."""
        try:
            return self.sites[name]
        except KeyError:
            known = ", ".join(sorted(self.sites)) or "none yet"
            raise ConfigurationError(
                f"There is no site {name!r} in {self.sites_file}.{nearest(name, self.sites)}", f"Known sites: {known}."
            ) from None

    def site_or_folder(self, name: str) -> SiteSettings:
        """The site of that name, or one with defaults for a name that only `ingest --from` uses."""
        if name in self.sites:
            return self.sites[name]
        return _validated(SiteSettings, {"name": name}, f"site {name!r}")


_VARIABLES = {
    "EPIC_OMOP_DATABASE_URL": "database_url",
    "EPIC_OMOP_DAGSTER_SCHEMA": "dagster_schema",
    "EPIC_OMOP_CDM_VERSION": "cdm_version",
    "EPIC_OMOP_CDM_SCHEMA": "cdm_schema",
    "EPIC_OMOP_VOCAB_SCHEMA": "vocab_schema",
    "EPIC_OMOP_ETL_SCHEMA": "etl_schema",
    "EPIC_OMOP_ROLE_SUFFIX": "role_suffix",
    "EPIC_OMOP_TIME_ZONE": "time_zone",
    "EPIC_OMOP_WORKERS": "workers",
    "EPIC_OMOP_WORKER_MEMORY_MB": "worker_memory_mb",
    "EPIC_OMOP_MAPPINGS": "mappings",
    "EPIC_OMOP_SITE_MAPPINGS": "site_mappings",
    "EPIC_OMOP_PERSON_CROSSWALK": "person_crosswalk",
    "EPIC_OMOP_SURROGATE_SALT": "surrogate_salt",
    "EPIC_OMOP_IDENTIFIER_KEY": "identifier_key",
    "EPIC_OMOP_LAKEHOUSE": "lakehouse",
    "EPIC_OMOP_LAKEHOUSE_SCHEDULE": "lakehouse_schedule",
    "EPIC_OMOP_UI_HOSTS": "ui_hosts",
    "EPIC_OMOP_OPERATIONS": "operations",
}
#: Variable → column of cdm_source: EPIC_OMOP_CDM_HOLDER is `cdm_holder`.
_CDM_SOURCE_VARIABLES = {f"EPIC_OMOP_{column.upper()}": column for column in CdmSource.model_fields}


def home_folder(environment: Mapping[str, str] | None = None) -> Path:
    """EPIC_OMOP_HOME, where everything else is; asked alone where the other settings may be wrong. Raises
    ConfigurationError."""
    variables = os.environ if environment is None else environment
    try:
        home = Path(variables.get("EPIC_OMOP_HOME") or ".epic-omop").absolute()
        str(home).encode()
    except FileNotFoundError:
        raise ConfigurationError("The working folder does not exist any more.", "Change to another one.") from None
    except UnicodeEncodeError:
        raise ConfigurationError(
            "The path of EPIC_OMOP_HOME cannot be read as UTF-8.", "Name another folder, or set LC_ALL=C.UTF-8."
        ) from None
    return home


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the environment and `<EPIC_OMOP_HOME>/sites.yaml` (or the file that `EPIC_OMOP_SITES` names).

    Raises ConfigurationError that names the variable or the site and key that is wrong.
    """
    variables = os.environ if environment is None else environment
    home = home_folder(variables)
    sites_file = Path(variables["EPIC_OMOP_SITES"]) if variables.get("EPIC_OMOP_SITES") else None
    values: dict[str, Any] = {field: variables[name] for name, field in _VARIABLES.items() if variables.get(name)}
    values["home"] = home
    if password_file := variables.get(PASSWORD_FILE_VARIABLE):
        values["database_url"] = with_password_of_file(values.get("database_url"), Path(password_file))
    values["cdm_source"] = {
        column: variables[name] for name, column in _CDM_SOURCE_VARIABLES.items() if variables.get(name)
    }
    values["sites"] = sites = _read_sites(sites_file or home / "sites.yaml", required=sites_file is not None)
    values.setdefault("time_zone", default_zone(home, (site.time_zone for site in sites.values())))
    return _validated(Settings, values, "the environment")


class LogSettings(BaseModel):
    """How our own log lines are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "WARNING"
    format: Literal["text", "json"] = "text"


def load_log_settings(environment: Mapping[str, str] | None = None) -> LogSettings:
    """EPIC_OMOP_LOG_LEVEL and EPIC_OMOP_LOG_FORMAT, apart from the rest: they must hold before that can be wrong.

    Raises ConfigurationError.
    """
    variables = os.environ if environment is None else environment
    values = {
        "level": variables.get("EPIC_OMOP_LOG_LEVEL", "").upper() or "WARNING",
        "format": variables.get("EPIC_OMOP_LOG_FORMAT", "").lower() or "text",
    }
    return _validated(LogSettings, values, "EPIC_OMOP_LOG_LEVEL, EPIC_OMOP_LOG_FORMAT")


def register_site(home: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Write or replace one site's entry in `<home>/sites.yaml`; the other entries stay. Returns the file."""
    _validated(SiteSettings, {"name": name, **entry}, f"site {name!r}")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = home / "sites.yaml"
    write_site_entry(file, name, entry)
    return file


#: Relative to the file that names them, so that the folder can be moved as a whole.
_FILE_KEYS = ("private_key_file", "previous_private_key_file", "patients_file", "api_key_file")


def _read_sites(file: Path, *, required: bool) -> dict[str, SiteSettings]:
    if not file.exists():
        if required:
            raise ConfigurationError(
                f"EPIC_OMOP_SITES names {file}, which does not exist.", "Write the file, or unset the variable."
            )
        return {}
    return {entry.name: _site(entry) for entry in read_site_entries(file)}


def _site(entry: SettingsEntry) -> SiteSettings:
    given = _beside(entry.file.parent, entry.values)
    if isinstance(resolvers := given.get("resolvers"), list):
        given["resolvers"] = [
            _beside(entry.file.parent, resolver) if isinstance(resolver, Mapping) else resolver
            for resolver in resolvers
        ]
    if "name" in given:
        raise ConfigurationError(
            f"{entry.place(('name',))}: the name of site {entry.name!r} is the key above it.", "Take `name` out."
        )
    problems = [
        f"{entry.place(path)}: {setting_name(path)}: holds a line break or another control character."
        for path in control_characters(entry.values)
    ]
    try:
        if not problems:
            return SiteSettings.model_validate({**given, "name": entry.name})
    except ValidationError as error:
        problems = [_described(item, entry) for item in error.errors(include_input=False, include_url=False)]
    raise ConfigurationError(
        f"Settings of site {entry.name!r} are wrong. {' '.join(problems)}", "See README, 'sites.yaml'."
    )


def _beside(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: folder / Path(value).expanduser() if key in _FILE_KEYS and isinstance(value, str) else value
        for key, value in values.items()
    }


def _described(item: ErrorDetails, entry: SettingsEntry) -> str:
    """`file:line: key: what is wrong.` of one problem that pydantic found."""
    words = problem(item)
    # A rule about the whole site begins with the key that it is about.
    location = item["loc"]
    place = entry.place(location or words.split(maxsplit=1)[:1])
    key = setting_name(location)
    if item["type"] == "extra_forbidden":
        models: Mapping[object, type[BaseModel]] = {"mapping": MappingOptions, "resolvers": ResolverSettings}
        fields = models.get(location[0], SiteSettings).model_fields
        close = nearest(str(location[-1]), set(fields) - {"name"})
        return f"{place}: there is no key {key!r}.{close}"
    return f"{place}: {key + ': ' if key else ''}{words}{'' if words.endswith('?') else '.'}"


def _variable(name: str) -> str:
    """The environment variable of a setting; the setting's own name where there is none."""
    fields = {**_VARIABLES, **{variable: f"cdm_source.{column}" for variable, column in _CDM_SOURCE_VARIABLES.items()}}
    return next((variable for variable, field in fields.items() if field == name), name)


def _validated(model: type[_Model], values: Mapping[str, Any], where: str) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{_variable(setting_name(item['loc'])) or 'entry'}: {problem(item)}"
            for item in error.errors(include_input=False)
        )
        raise ConfigurationError(f"Settings in {where} are wrong: {problems}.") from None
