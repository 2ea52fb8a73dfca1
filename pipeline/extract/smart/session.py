"""A site's connection and tokens together, as all requests to it need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.core.clock import Clock
from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import SiteSettings
from pipeline.extract.http.recording import AccessLog, RequestBudget
from pipeline.extract.http.transport import RetryPolicy, Transport
from pipeline.extract.smart.keys import load_signing_keys
from pipeline.extract.smart.tokens import SmartClient

__all__ = ["EpicSession", "open_session"]


@dataclass(frozen=True)
class EpicSession:
    site: SiteSettings
    transport: Transport
    tokens: SmartClient

    def within(self, seconds: float) -> EpicSession:
        """The same connections and tokens for one short call: one attempt, so many seconds in total."""
        return replace(self, transport=self.transport.within(seconds))


@contextmanager
def open_session(
    site: SiteSettings,
    clock: Clock,
    *,
    policy: RetryPolicy | None = None,
    access: AccessLog | None = None,
    budget: RequestBudget | None = None,
) -> Iterator[EpicSession]:
    """A session with the site; its connections are closed at the end of the block. Sends nothing yet.

    Work of the pipeline opens it by `pipeline.extract.site_session.site_session`, with the warehouse's access log and budget;
    without them, entries go to the log file alone and nothing is counted.
    Raises ConfigurationError for a site without a FHIR server and for an unusable key.
    """
    if site.fhir_url is None:
        raise ConfigurationError(
            f"Site {site.name} has no fhir_url: there is nothing to export from.",
            "Give it fhir_url, client_id, a key and groups in sites.yaml, or load a folder with `ingest --from`.",
        )
    keys = load_signing_keys(site)
    with Transport(site, clock, policy=policy, access=access, budget=budget) as transport:
        yield EpicSession(site, transport, SmartClient(site, keys, clock))
