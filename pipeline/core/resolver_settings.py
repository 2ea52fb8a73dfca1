"""Settings of a resolver: a service outside the house that is asked about codes that neither the local map nor the
vocabulary knows. How it is asked is in `pipeline.extract.terminology`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["OHDSI_SYSTEM", "ResolverSettings"]

#: The code system of OMOP concept ids (FHIR to OMOP guide, "Terminology Server API Utilization").
OHDSI_SYSTEM = "https://fhir-terminology.ohdsi.org"

_OMOPHUB = "https://api.omophub.com/v1"
_URL = re.compile(r"https?://[^/\s@?#\\]+(/[^\s?#\\]*)?", re.IGNORECASE)
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:-]{0,63}")


class ResolverSettings(BaseModel):
    """One of a site's `resolvers`, in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: omophub: POST fhir/resolve/batch. fhir: a terminology server's ConceptMap/$translate and CodeSystem/$lookup.
    kind: Literal["omophub", "fhir"]
    #: Base URL.
    url: str = ""
    #: The key or token that is sent as bearer: the name of an environment variable that holds it, or a file.
    api_key_env: str | None = None
    api_key_file: Path | None = None
    #: The vocabulary release that must answer: sent to OMOPHub as X-Vocab-Version, compared with what the service says.
    release: str | None = None
    #: Names of parameters of $translate differ.
    fhir_version: Literal["R4", "R5"] = "R4"
    #: The code system whose codes are OMOP concept ids.
    target_system: str = OHDSI_SYSTEM
    #: Canonical URL of the ConceptMap to translate by; None: the server chooses.
    concept_map: str | None = None
    #: A concept that is broader than the code counts as well.
    broader: bool = False
    #: Only codes of these systems are sent; empty: of all.
    systems: tuple[str, ...] = ()
    #: The display of a code is sent with it. It is written by people, and may say more than the code does.
    send_display: bool = False
    #: For one request.
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    #: For all requests of one run: what is left is asked by a later one.
    most_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    #: A code that the service does not know is asked for again after so many days.
    unknown_again_days: Annotated[float, Field(gt=0, le=3650)] = 30.0

    @model_validator(mode="after")
    def _whole(self) -> ResolverSettings:
        if self.kind == "fhir" and not self.url:
            raise ValueError("url is missing: the base URL of the terminology server")
        if not _URL.fullmatch(self.base_url):
            raise ValueError("url is not a base URL such as https://terminology.example.org/fhir")
        if self.api_key_env and self.api_key_file:
            raise ValueError("give only one of api_key_env and api_key_file")
        if self.kind == "omophub" and not (self.api_key_env or self.api_key_file):
            raise ValueError("give one of api_key_env and api_key_file")
        if self.release is not None and not _RELEASE.fullmatch(self.release):
            raise ValueError("release is the name of a vocabulary release such as 2025.2")
        return self

    @property
    def base_url(self) -> str:
        return (self.url or _OMOPHUB).rstrip("/")

    @property
    def key(self) -> str:
        """Resolvers that give the same answers have the same: the name of the cache."""
        parts = (
            *(self.kind, self.base_url, self.release, self.fhir_version, self.target_system, self.concept_map),
            *(self.broader, self.send_display),
        )
        return f"{self.kind}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
