"""Looking at a site before the first run: what works, what does not, and what to do. Starts no export.

Each look is a short exchange that costs nothing of the kick-off window (rule 2): discovery, a token, the
CapabilityStatement, and reading the Group resource where the site offers that. Nothing is repeated for long: who runs
this sits before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline.core.clock import Clock
from pipeline.core.errors import ConfigurationError, EpicOmopError, UnsafeRemote
from pipeline.core.findings import Finding
from pipeline.core.settings import SiteSettings
from pipeline.extract.asked_types import capability_request, objects, resources_of_server
from pipeline.extract.http.recording import AccessLog, RequestBudget
from pipeline.extract.http.transport import RemoteRequest, Response, RetryPolicy
from pipeline.extract.smart.key_files import check_hosted_keys, check_key
from pipeline.extract.smart.keys import SigningKey, load_signing_keys
from pipeline.extract.smart.session import EpicSession, open_session
from pipeline.extract.smart.tokens import SmartClient, SmartConfiguration, discover

__all__ = ["check_site"]

_POLICY = RetryPolicy(attempts=2, longest_wait_seconds=10)
_NOTABLE_SKEW_SECONDS = 5.0
_LARGEST_SKEW_SECONDS = 60.0
_FHIR_JSON = "application/fhir+json"
_EXPORTS = ("export", "group-export")


@dataclass
class _Look:
    """What one look found is used by the next ones."""

    session: EpicSession
    keys: tuple[SigningKey, ...]
    configuration: SmartConfiguration | None = None
    statement: dict[str, Any] = field(default_factory=dict)
    has_token: bool = False

    @property
    def site(self) -> SiteSettings:
        return self.session.site

    @property
    def base(self) -> str:
        return self.site.fhir_url or ""


def check_site(
    site: SiteSettings, clock: Clock, *, access: AccessLog | None = None, budget: RequestBudget | None = None
) -> Iterator[Finding]:
    """Findings in the order of the looks, each as soon as it is there. The site's types are filled in
    (`asked_types.with_asked_types`).

    Raises ConfigurationError for a site without a FHIR server; everything else is a finding.
    """
    try:
        keys = load_signing_keys(site)
    except ConfigurationError as error:
        yield Finding("private key", "failed", error.message, error.advice)
        return
    with open_session(site, clock, policy=_POLICY, access=access, budget=budget) as session:
        look = _Look(session, keys)
        for part in (_settings, _keys, _discovery, _clock, _token, _scopes, _capabilities, _bulk, _types, _groups):
            yield from _finish(part, look)
        yield Finding(
            "kick-off",
            "not checked",
            f"it starts an export, of which a group has one in {site.kickoff_window_hours:g} hours",
            f"The first run does it: epic-omop run --site {site.name}",
        )


def _finish(part: Callable[[_Look], Iterator[Finding]], look: _Look) -> Iterator[Finding]:
    try:
        yield from part(look)
    except EpicOmopError as error:
        yield Finding(part.__name__.strip("_").replace("_", " "), "failed", error.message, error.advice)


def _settings(look: _Look) -> Iterator[Finding]:
    site = look.site
    budget = f", {site.request_budget_per_hour:,} requests an hour" if site.request_budget_per_hour else ""
    found = (
        f"{site.fhir_url}, client {site.client_id}, {len(site.groups)} groups, {len(site.asked_types)} types{budget}"
    )
    if site.test_mode:
        advice = "Take test_mode out of sites.yaml for a real site: it allows http and addresses of this machine."
        yield Finding("settings", "warning", f"{found}; test mode", advice)
    else:
        yield Finding("settings", "ok", found)


def _keys(look: _Look) -> Iterator[Finding]:
    for number, key in enumerate(look.keys):
        yield check_key(key, "previous private key" if number else "private key")
    url = look.site.jwks_url
    if url:
        yield from check_hosted_keys(url, look.keys, look.session.transport.clock, look.site)
    else:
        advice = "If you host a JWK Set, set jwks_url in sites.yaml; otherwise upload the key at Epic on FHIR."
        yield Finding("hosted JWK Set", "not checked", "no jwks_url", advice)


def _discovery(look: _Look) -> Iterator[Finding]:
    look.configuration = configuration = look.session.transport.retrying(
        lambda: discover(look.session.transport, look.base)
    )
    look.session.transport.check_address("The token endpoint", configuration.token_endpoint)
    algorithms = configuration.algorithms
    wrong = [key.algorithm for key in look.keys if algorithms and key.algorithm not in algorithms]
    if wrong:
        advice = "Make a key of the other kind (epic-omop keys new --type …) and register it."
        yield Finding(
            "discovery", "failed", f"the site takes {', '.join(algorithms)}, the key signs {wrong[0]}", advice
        )
    else:
        yield Finding("discovery", "ok", f"token endpoint {urlsplit(configuration.token_endpoint).netloc}")


def _clock(look: _Look) -> Iterator[Finding]:
    skew = look.configuration.clock_difference if look.configuration else None
    if skew is None:
        yield Finding("clock", "not checked", "the site's answer has no Date header")
    elif abs(skew) <= _NOTABLE_SKEW_SECONDS:
        yield Finding("clock", "ok", "agrees with the site's within 5 s")
    else:
        state = "failed" if abs(skew) > _LARGEST_SKEW_SECONDS else "warning"
        found = f"differs from the site's by {skew:.0f} s"
        advice = "Set this machine's clock by NTP: tokens are refused when clocks differ."
        yield Finding("clock", "failed" if state == "failed" else "warning", found, advice)


def _token(look: _Look) -> Iterator[Finding]:
    session = look.session
    if look.configuration is None:
        yield Finding("token", "not checked", "discovery failed")
        return
    first = session.tokens.key
    session.transport.retrying(lambda: session.tokens.current(session.transport))
    look.has_token = True
    token = session.tokens.token
    assert token is not None
    seconds = (token.expires_at - session.transport.clock.now()).total_seconds()
    found = f"granted for {seconds:.0f} s, with the key {session.tokens.key.key_id}"
    if session.tokens.key is not first:
        advice = "The site does not know the new key yet; that takes hours to days. Until then the old one is used."
        yield Finding("token", "warning", f"{found}, which is the previous one", advice)
    else:
        yield Finding("token", "ok", found)


def _scopes(look: _Look) -> Iterator[Finding]:
    if not look.has_token:
        yield Finding("scopes", "not checked", "there is no token")
        return
    asked = look.site.asked_types
    missing = look.session.tokens.missing_types()
    if missing:
        state = "failed" if len(missing) == len(asked) else "warning"
        found = f"{len(asked) - len(missing)} of {len(asked)} types may be read; not granted: {', '.join(missing)}"
        advice = "Register the read and search APIs of these types for the app, or take them out of resource_types."
        yield Finding("scopes", "failed" if state == "failed" else "warning", found, advice)
    else:
        yield Finding("scopes", "ok", f"all {len(asked)} types may be read")


def _capabilities(look: _Look) -> Iterator[Finding]:
    look.statement = look.session.transport.fetch(capability_request(look.site)).json()
    version = str(look.statement.get("fhirVersion", ""))[:20]
    software = look.statement.get("software")
    name = software.get("name") if isinstance(software, dict) else None
    found = f"FHIR {version or 'of no stated version'}{f', {str(name)[:60]}' if name else ''}"
    if version.startswith("4."):
        yield Finding("capabilities", "ok", found)
    else:
        yield Finding("capabilities", "failed", found, "FHIR R4 is needed: fhir_url ends with /api/FHIR/R4 at Epic.")


def _bulk(look: _Look) -> Iterator[Finding]:
    if not look.statement:
        yield Finding("bulk export", "not checked", "there is no CapabilityStatement")
        return
    group = resources_of_server(look.statement).get("Group", {})
    names = {str(operation.get("name")).lstrip("$") for operation in objects(group.get("operation"))}
    stated = any("bulkdata" in str(url) or "bulk-data" in str(url) for url in look.statement.get("instantiates") or ())
    if names & set(_EXPORTS) or stated:
        yield Finding("bulk export", "ok", "the CapabilityStatement names it")
    else:
        advice = "Not every site states it. Ask the administrators whether Bulk Data is enabled for this client."
        yield Finding("bulk export", "warning", "the CapabilityStatement names no export of a Group", advice)


def _types(look: _Look) -> Iterator[Finding]:
    known = resources_of_server(look.statement)
    if not known:
        yield Finding("resource types", "not checked", "the CapabilityStatement names none")
        return
    unknown = [name for name in look.site.asked_types if name not in known]
    if unknown:
        advice = "Take them out of resource_types: a type that the site does not know can make it refuse the kick-off."
        yield Finding("resource types", "warning", f"the site does not name: {', '.join(unknown)}", advice)
    else:
        yield Finding("resource types", "ok", f"the site names all {len(look.site.asked_types)}")


def _groups(look: _Look) -> Iterator[Finding]:
    """Reads each Group: a plain GET, which is not a kick-off. It needs a scope that an export does not."""
    if not look.has_token:
        yield Finding("groups", "not checked", "there is no token")
        return
    interactions = objects(resources_of_server(look.statement).get("Group", {}).get("interaction"))
    if "read" not in {one.get("code") for one in interactions}:
        yield Finding("groups", "not checked", "the site does not offer to read a Group", _ASK_FOR_GROUPS)
        return
    tokens = SmartClient(
        look.site.model_copy(update={"resource_types": ("Group",)}), look.keys, look.session.transport.clock
    )
    for group in look.site.groups:
        yield _group(look, tokens, group)


_ASK_FOR_GROUPS = "Compare the ids in sites.yaml with those that the administrators gave; the first kick-off shows."


def _group(look: _Look, tokens: SmartClient, group: str) -> Finding:
    what = f"group {group}"
    request = RemoteRequest(
        f"Reading group {group}",
        f"{look.base}/Group/{quote(group, safe='')}",
        headers={"Accept": _FHIR_JSON},
        tokens=tokens,
        max_bytes=64 << 20,
        event="read",
        resource_type="Group",
    )
    try:
        answer = look.session.transport.send(request)
    except UnsafeRemote as error:  # a group with very many members is there all the same
        return Finding(what, "not checked", error.message)
    except EpicOmopError as error:
        return Finding(what, "not checked", f"no token for reading groups: {error.message}", _ASK_FOR_GROUPS)
    return _group_finding(what, answer)


def _group_finding(what: str, answer: Response) -> Finding:
    if answer.status == 200:
        return Finding(what, "ok", "the client may see it")
    if answer.status in (401, 403):
        found = f"the client may not read groups ({answer.status}); that says nothing of the export"
        return Finding(what, "not checked", found, _ASK_FOR_GROUPS)
    if answer.status in (404, 410):
        return Finding(what, "failed", "the site knows no such group, or hides it from this client", _ASK_FOR_GROUPS)
    return Finding(what, "not checked", f"the site answered {answer.status}", _ASK_FOR_GROUPS)
