"""The HTTP edge: the one place where requests are sent, retried and judged.

- Retries with back-off live here and nowhere else (`Transport.retrying`).
- Each failure is classified as permanent or transient here, once (`Response.error`).
- The allow-list of origins is enforced here, for every address that is about to be contacted: a status address, a
  manifest's link or file and a redirect all come from a server and are not trusted.
- Every address behind a name is checked before it is connected to (`network.py`).
- Nothing of a resource ever gets into a message or a log: of an error body only the codes and those words of an
  OperationOutcome that cannot be about a patient are shown (`redaction.py`).
- Every request counts against the site's budget and leaves an entry in the access log (`recording.py`).
"""

from __future__ import annotations

import logging
import random
import re
import ssl
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import httpx
import orjson

from pipeline.core.clock import Clock
from pipeline.core.errors import (
    AddressNotListed,
    AuthenticationRefused,
    ConfigurationError,
    EpicOmopError,
    ProtocolError,
    RemoteRefused,
    RemoteUnavailable,
    RequestBudgetSpent,
    Unreachable,
    UnsafeRemote,
    UnusableAddress,
)
from pipeline.core.settings import SiteSettings
from pipeline.extract.http.messages import Exchange, entry_of
from pipeline.extract.http.network import (
    CheckedNetwork,
    address_rule,
    check_network,
    is_internal_host,
    is_refused_address,
)
from pipeline.extract.http.recording import (
    AccessEntry,
    AccessLog,
    Event,
    LoggedAccess,
    RequestBudget,
    UnlimitedRequests,
)
from pipeline.extract.http.redaction import known_words, plain_text, shown_url
from pipeline.fhir.gzip_stream import DamagedGzipError, gunzip
from pipeline.fhir.lines import without_mark
from pipeline.fhir.operation_outcome import OPERATION_OUTCOME, Issue, parse_issues

__all__ = [
    "RemoteRequest",
    "Response",
    "RetryPolicy",
    "StreamedResponse",
    "TokenSource",
    "Transport",
    "plain_text",
    "retry_after_seconds",
    "shown_url",
]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

# httpx logs whole URLs, query values included, and httpcore logs headers: neither may reach a log file.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_CONNECT_SECONDS = 10.0
#: So long a download may stay below the site's floor.
_FLOOR_SECONDS = 60.0
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ERROR_BODY_BYTES = 64 * 1024
_PORTS = {"https": 443, "http": 80}
_TRANSIENT_STATUS = frozenset({408, 429})
#: Times far beyond it are no times that a calendar has.
_LONGEST_ASKED_SECONDS = 366 * 86_400.0

#: Retry-After values above this are an instant (some servers send epoch seconds), not a duration.
_EPOCH_FROM = 1_000_000_000
_EPOCH_MILLISECONDS_FROM = 1_000_000_000_000

#: Of the codes in `details.coding`, those that can be about no patient: numbers such as Epic's 59108, constants.
_SHOWN_CODE = re.compile(r"[0-9]{3,6}|[A-Z_]{3,40}")


class TokenSource(Protocol):
    """Where access tokens come from; they are asked for with the limits of the transport that needs one."""

    def current(self, transport: Transport) -> str: ...

    def renew(self, rejected: str, transport: Transport) -> str:
        """A token other than `rejected`, which the server refused with 401."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a request is repeated; times in seconds."""

    attempts: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 300.0

    def wait_seconds(self, attempt: int, asked_seconds: float | None, chance: random.Random) -> float:
        """The wait after the attempt of that number (from 1).

        Doubles each time, with half of it left to chance so that parallel downloads do not come back together.
        What the server asked for (Retry-After) counts up to the longest wait, and never shortens the back-off.
        """
        back_off = min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** (attempt - 1))
        jittered = back_off * chance.uniform(0.5, 1.0)
        if asked_seconds is None:
            return jittered
        asked = min(asked_seconds, self.longest_wait_seconds) * chance.uniform(1.0, 1.1)
        return max(jittered, asked)


@dataclass(frozen=True)
class RemoteRequest:
    """One request. `action` says in messages what was tried, such as "The kick-off for group eXample"."""

    action: str
    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] | None = None
    #: A body of JSON.
    content: bytes | None = None
    #: None: the request carries no token.
    tokens: TokenSource | None = None
    #: An idle connection is given up after this.
    read_seconds: float = 60.0
    #: A larger body is refused.
    max_bytes: int = 1 << 20
    #: Of a JSON body: objects, lists and values.
    max_values: int = 4_000_000
    #: What to check, by status, where there is better advice than the general one.
    advice: Mapping[int, str] = field(default_factory=dict)
    #: For the access log.
    event: Event = "read"
    resource_type: str | None = None


@dataclass(frozen=True)
class Response:
    """A response whose body was read whole, within the request's limit."""

    request: RemoteRequest
    status: int
    url: str
    headers: httpx.Headers
    body: bytes
    received_at: datetime

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ProtocolError, and UnsafeRemote where it would take more memory than its kind
        of answer ever needs: a few MiB of `{},` become gigabytes of objects."""
        if _too_many_values(self.body, self.request.max_values):
            raise UnsafeRemote(f"{self.request.action}: the answer holds more than {self.request.max_values:,} values.")
        try:
            document = orjson.loads(without_mark(self.body))
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise ProtocolError(f"{self.request.action}: the server's answer is not a JSON object.")
        return document

    @property
    def code(self) -> str | None:
        """The codes of a refusal, for the access log: OAuth's `error`, or those of an OperationOutcome."""
        if self.status < 400:
            return None
        codes = dict.fromkeys(issue.code for issue in self.issues if issue.code)
        if codes:
            return ", ".join(codes)
        try:
            error = self.json().get("error")
        except ProtocolError:
            return None
        return error if isinstance(error, str) and re.fullmatch(r"[a-z_]{1,40}", error) else None

    @property
    def entries(self) -> int | None:
        """How many resources a page of a search holds."""
        if self.request.event != "search" or self.status != 200:
            return None
        try:
            found = self.json().get("entry")
        except ProtocolError:
            return None
        return len(found) if isinstance(found, list) else 0

    @property
    def retry_after(self) -> float | None:
        return retry_after_seconds(self.headers.get("retry-after"), self.received_at)

    @property
    def issues(self) -> tuple[Issue, ...]:
        """The issues of an OperationOutcome; empty for any other body."""
        try:
            outcome = self.json()
        except ProtocolError:
            return ()
        return (parse_issues(outcome) or ()) if outcome.get("resourceType") == OPERATION_OUTCOME else ()

    @property
    def is_transient(self) -> bool:
        transient_issue = any(issue.code == "transient" for issue in self.issues)
        return self.status in _TRANSIENT_STATUS or self.status >= 500 or (self.status >= 400 and transient_issue)

    def error(self) -> EpicOmopError:
        """This answer, whose status is not a success, as the error to raise: classified as permanent or transient here."""
        issues = dict.fromkeys(shown for issue in self.issues if (shown := _shown_issue(issue)))
        reason = plain_text("; ".join(issues), 600)
        message = f"{self.request.action}: the server answered {self.status}{f' ({reason})' if reason else ''}."
        if self.is_transient:
            wait = self.retry_after
            next_try = self.received_at + timedelta(seconds=wait) if wait is not None else None
            return RemoteUnavailable(message, "Trying again later may succeed.", next_try=next_try)
        advice = self.request.advice.get(self.status) or _ADVICE.get(self.status, "")
        if self.status == 401:
            return AuthenticationRefused(message, advice)
        return RemoteRefused(message, advice, status=self.status)


@dataclass(frozen=True)
class StreamedResponse:
    """A response whose decompressed body streams by: 200 the whole, 206 a part of it, 416 no such part (empty)."""

    request: RemoteRequest
    status: int
    headers: httpx.Headers
    chunks: Iterator[bytes]


_ADVICE = {
    400: "The server calls the request itself wrong: compare resource_types and groups in sites.yaml with what the "
    "site offers.",
    401: "A fresh token was refused as well: check that the app is registered for this FHIR base URL.",
    403: "Nearly always the app's registration, not the token: check that all four Bulk Data APIs (kick-off, status, "
    "file, delete) and the search API of each resource type are registered, and the scopes granted.",
    404: "Check fhir_url in sites.yaml.",
    422: "The server refuses the parameters: check resource_types in sites.yaml.",
}


class Transport:
    """Sends requests to the allow-listed origins of one site. Thread-safe; `close` it, or use it as a context manager.

    Raises UnsafeRemote for an address outside the allow-list, RemoteUnavailable (Unreachable where no connection was
    made) for a failed connection, and what `Response.error` makes of refusals.
    """

    def __init__(
        self,
        site: SiteSettings,
        clock: Clock,
        *,
        policy: RetryPolicy | None = None,
        chance: random.Random | None = None,
        access: AccessLog | None = None,
        budget: RequestBudget | None = None,
    ) -> None:
        self.clock = clock
        self.policy = policy or RetryPolicy()
        self.chance = chance or random.SystemRandom()
        self._site = site
        self._origins = _allowed_origins(site)
        self._addresses = address_rule(site)
        self._access = access or LoggedAccess(site.name, site.client_id)
        self._budget = budget or UnlimitedRequests()
        self._deadline: datetime | None = None
        self._floor = site.download_floor_bytes_per_second
        self._client = httpx.Client(
            verify=_tls_context(site, self._origins),
            headers={"User-Agent": "epic-omop", "Accept-Encoding": "gzip"},  # _chunks decodes gzip and nothing else
            follow_redirects=False,  # _follow checks each address first
            trust_env=not site.test_mode,  # a proxy of the environment is meant for real sites, not for loopback
            limits=httpx.Limits(max_connections=max(site.download_workers, site.rest_workers) + 2),
        )
        check_network(self._client, CheckedNetwork(self._addresses))

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def record(self, entry: AccessEntry) -> None:
        """An entry of the access log for what is not a request."""
        self._access.record(entry)

    def within(self, seconds: float) -> Transport:
        """The same connections for one short call: one attempt, and everything done in so many seconds."""
        limited = object.__new__(Transport)
        limited.__dict__.update(self.__dict__)
        limited.policy = RetryPolicy(attempts=1)
        limited._deadline = self.clock.now() + timedelta(seconds=seconds)
        return limited

    def retrying(self, operation: Callable[[], _T]) -> _T:
        """Run the operation until it does not raise RemoteUnavailable, as often as the policy allows."""
        for attempt in range(1, self.policy.attempts):
            try:
                return operation()
            except RemoteUnavailable as error:
                now = self.clock.now()
                asked = (error.next_try - now).total_seconds() if error.next_try else None
                wait = self.policy.wait_seconds(attempt, asked, self.chance)
                _log.warning("%s Attempt %d; waiting %.1f s.", error.message, attempt, wait)
                self.clock.sleep(wait)
        return operation()

    def fetch(self, request: RemoteRequest) -> Response:
        """Send with retries and return a successful answer; raises the classified error otherwise."""

        def once() -> Response:
            answer = self.send(request)
            if answer.status >= 300:
                raise answer.error()
            return answer

        return self.retrying(once)

    def send(self, request: RemoteRequest) -> Response:
        """Send once (a refused token is renewed once) and return the answer, whatever its status."""
        with self._open(request) as exchange:
            return self._read_response(exchange, request.max_bytes)

    def stream(self, request: RemoteRequest, consume: Callable[[Iterator[bytes]], _T]) -> _T:
        """Send with retries and hand the decompressed body to `consume` in pieces of at most about 1 MiB.

        `consume` is called anew for each attempt; when it raises RemoteUnavailable, the request is repeated as
        well. A body that ends early or whose gzip is damaged never passes as whole.
        """
        return self.stream_from(lambda: request, lambda answer: consume(answer.chunks))

    def stream_from(self, next_request: Callable[[], RemoteRequest], consume: Callable[[StreamedResponse], _T]) -> _T:
        """As `stream`, with a request of its own for each attempt, which may ask for the rest only (Range).

        `consume` is given 200, and 206 or 416 where the request has a Range. Damaged gzip is a RemoteUnavailable
        whose cause is a DamagedGzipError: what was received is worth nothing.
        """

        def once() -> _T:
            request = next_request()
            with self._open(request) as exchange:
                status, headers = exchange.response.status_code, exchange.response.headers
                if status == 200 or (status in (206, 416) and "Range" in request.headers):
                    chunks = self._chunks(exchange) if status != 416 else iter(())
                    return consume(StreamedResponse(request, status, headers, chunks))
                answer = self._read_response(exchange, _ERROR_BODY_BYTES)
                raise answer.error() if answer.status >= 300 else _no_content(answer)

        return self.retrying(once)

    def _read_response(self, exchange: Exchange[RemoteRequest], max_bytes: int) -> Response:
        response = exchange.response
        body = self._limited_body(exchange, max_bytes if response.status_code < 300 else _ERROR_BODY_BYTES)
        now = self.clock.now()
        answer = Response(exchange.request, response.status_code, str(response.url), response.headers, body, now)
        exchange.detail = answer.code
        exchange.entries = answer.entries
        return answer

    @contextmanager
    def _open(self, request: RemoteRequest) -> Iterator[Exchange[RemoteRequest]]:
        """The response with its body unread, after redirects and, on 401, with a renewed token (rule 10)."""
        token = request.tokens.current(self) if request.tokens else None
        exchange = Exchange(request, self._follow(request, token))
        failure: BaseException | None = None
        try:
            if exchange.response.status_code == 401 and request.tokens and token:
                exchange.response.close()
                self._access.record(exchange.entry(None))
                _log.info("%s: the token was refused; renewing it.", request.action)
                exchange = Exchange(request, self._follow(request, request.tokens.renew(token, self)))
            yield exchange
        except BaseException as error:
            failure = error
            raise
        finally:
            exchange.response.close()
            self._access.record(exchange.entry(failure))

    def _follow(self, request: RemoteRequest, token: str | None) -> httpx.Response:
        url = request.url
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send_to(request, url, token)
            location = response.headers.get("location")
            if response.status_code not in _REDIRECTS or request.method != "GET" or not location:
                return response
            response.close()
            self._access.record(Exchange(request, response).entry(None))
            url = urllib.parse.urljoin(url, location)
        raise ProtocolError(f"{request.action}: more than {_MAX_REDIRECTS} redirects.")

    def _send_to(self, request: RemoteRequest, url: str, token: str | None) -> httpx.Response:
        try:
            self.check_address(request.action, url)
            self._budget.take(self._remaining(request))
            return self._send_once(request, url, token)
        except RequestBudgetSpent:  # nothing was asked
            raise
        except EpicOmopError as error:
            self._access.record(entry_of(request, url, error))
            raise

    def _send_once(self, request: RemoteRequest, url: str, token: str | None) -> httpx.Response:
        headers = {"Epic-Client-ID": self._site.client_id} if self._site.client_id else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        with _network_errors(request.action):
            prepared = self._client.build_request(
                request.method,
                url,
                headers={**headers, **request.headers},
                data=request.form,
                content=request.content,
                timeout=self._timeout(request),
            )
            return self._client.send(prepared, stream=True)

    def check_address(self, action: str, url: str) -> None:
        """Raises AddressNotListed where the address belongs to no allow-listed origin, but could; UnusableAddress where it
        never could."""
        origin = _origin(url)
        if origin not in self._origins:
            message = (
                f"{action}: the server sent us to {origin or 'an address without a host'}, which is not allow-listed."
            )
            if origin.startswith("http://") and not self._site.test_mode:
                raise UnusableAddress(message, "Only https is used: report the address to the site.")
            if not origin or is_internal_host(httpx.URL(url).host):
                raise UnusableAddress(
                    message,
                    "Nothing is asked for there. If it is the site's own server in your network, name it in allowed_origins"
                    " and its network in private_networks in sites.yaml; otherwise report it to the site.",
                )
            raise AddressNotListed(message, "If that host is the site's own, add it to allowed_origins in sites.yaml.")
        if is_refused_address(self._addresses, httpx.URL(url).host):
            raise UnusableAddress(
                f"{action}: {origin} is an address inside a network that is not open to it.",
                "If the site's server stands in your own network, name it as private_networks in sites.yaml.",
            )

    def _timeout(self, request: RemoteRequest) -> httpx.Timeout:
        remaining = self._remaining(request)
        return httpx.Timeout(min(request.read_seconds, remaining), connect=min(_CONNECT_SECONDS, remaining))

    def _remaining(self, request: RemoteRequest) -> float:
        if self._deadline is None:
            return float("inf")
        remaining = (self._deadline - self.clock.now()).total_seconds()
        if remaining <= 0:
            raise RemoteUnavailable(f"{request.action}: the server took too long.", "Trying again later may succeed.")
        return remaining

    def _flowing(self, request: RemoteRequest, raw: Iterator[bytes]) -> Iterator[bytes]:
        """A file's body, as long as it flows: one that trickles holds a worker, and a window, for days.

        Raises RemoteUnavailable where less than the site's floor came in a minute of waiting; what came stays, and the next
        attempt asks for the rest by Range. Time in which nobody asked for more does not count.
        """
        floor = self._floor if request.event == "file" else 0
        came, waited = 0, 0.0
        while True:
            asked = self.clock.now()
            chunk = next(raw, None)
            if chunk is None:
                return
            waited += (self.clock.now() - asked).total_seconds()
            came += len(chunk)
            yield chunk
            if waited >= _FLOOR_SECONDS:
                if came < floor * waited:
                    raise RemoteUnavailable(
                        f"{request.action}: less than {floor} bytes a second came in a minute.",
                        "If the site's line is that slow, lower download_floor_bytes_per_second in sites.yaml.",
                    )
                came, waited = 0, 0.0

    def _limited_body(self, exchange: Exchange[RemoteRequest], limit: int) -> bytes:
        body = bytearray()
        for chunk in self._chunks(exchange):
            self._remaining(exchange.request)
            body += chunk
            if len(body) > limit:
                if exchange.response.status_code >= 300:
                    return b""  # an error page this long is not an OperationOutcome
                raise UnsafeRemote(f"{exchange.request.action}: the answer is longer than {limit} bytes.")
        return bytes(body)

    def _chunks(self, exchange: Exchange[RemoteRequest]) -> Iterator[bytes]:
        """The body, decompressed, in pieces as the network gives them; counted for the access log."""
        action, response = exchange.request.action, exchange.response
        with _network_errors(action):
            # as the network gives it: httpx throws a gathered piece away when it is cut
            raw = exchange.received(self._flowing(exchange.request, response.iter_raw()))
            encoding = response.headers.get("content-encoding", "identity").strip().lower()
            if encoding in ("", "identity"):
                yield from exchange.passed_on(raw)
            elif encoding in ("gzip", "x-gzip"):
                yield from exchange.passed_on(gunzip(raw))
            else:
                raise ProtocolError(f"{action}: the server used an encoding that was not asked for.")


def _too_many_values(body: bytes, most: int) -> bool:
    """Whether a JSON text would become more objects than are allowed: each but the first has one of these before it."""
    return sum(body.count(mark) for mark in (b",", b"{", b"[")) > most


def _no_content(answer: Response) -> ProtocolError:
    return ProtocolError(f"{answer.request.action}: the server answered {answer.status} instead of 200.")


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header: seconds, an HTTP date, or (out of specification) an epoch.

    Never negative, a year at most; None where there is no header or it cannot be read. The caller sets its own bound.
    """
    seconds = _asked_seconds(value, now)
    return None if seconds is None else min(max(0.0, seconds), _LONGEST_ASKED_SECONDS)


def _asked_seconds(value: str | None, now: datetime) -> float | None:
    text = (value or "").strip()
    if not text:
        return None
    if re.fullmatch(r"-?\d{1,15}(\.\d+)?", text):
        number = float(text)
        if number >= _EPOCH_MILLISECONDS_FROM:
            number /= 1000
        return number - now.timestamp() if number >= _EPOCH_FROM else number
    try:
        instant = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - now).total_seconds()


def _shown_issue(issue: Issue) -> str:
    """An issue cut down to what the server says about itself: its code, Epic's codes such as 59108, known words."""
    codes = [code for code in issue.own_codes if _SHOWN_CODE.fullmatch(code)]
    words = [*codes, *(known_words(plain_text(text, 1000), 1000) for text in issue.texts)]
    text = " ".join(dict.fromkeys(word for word in words if word and word != "…"))
    return f"{issue.code}: {plain_text(text, 300)}".strip(": ")


def _tls_context(site: SiteSettings, origins: frozenset[str]) -> ssl.SSLContext:
    """The system's certificates, and the site's own. Reading the former takes a twentieth of a second, so a simulated
    Epic on loopback, which has no https address, goes without: then no certificate is good enough."""
    is_needed = any(origin.startswith("https://") for origin in origins)
    context = ssl.create_default_context() if is_needed else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if site.ca_file:
        try:
            context.load_verify_locations(site.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"ca_file of site {site.name}, {site.ca_file}, is not a readable PEM file of certificates."
            ) from error
    return context


def _allowed_origins(site: SiteSettings) -> frozenset[str]:
    origins = {_origin(url) for url in (site.fhir_url or "", *site.allowed_origins)}
    if not site.test_mode:
        origins = {origin for origin in origins if origin.startswith("https://")}
    return frozenset(origins - {""})


def _origin(url: str) -> str:
    """scheme://host:port in lower case; empty for what is not a valid http(s) address or carries a user name."""
    try:
        parsed = httpx.URL(url)  # the parser that decides where the connection goes
    except httpx.InvalidURL:
        return ""
    if parsed.scheme not in _PORTS or not parsed.host or parsed.userinfo:
        return ""
    return f"{parsed.scheme}://{parsed.host}:{parsed.port or _PORTS[parsed.scheme]}"


@contextmanager
def _network_errors(action: str) -> Iterator[None]:
    """Turns what httpx and the gzip decoder raise into our errors, without addresses or content."""
    try:
        yield
    except DamagedGzipError as error:
        raise RemoteUnavailable(f"{action}: the body cannot be decompressed: {error}.") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ProtocolError(f"{action}: the server named an address that cannot be used.") from error
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
        if _certificate_refused(error):
            raise UnsafeRemote(
                f"{action}: the server's certificate is not trusted.",
                "Where the site has a certificate authority of its own, name its file as ca_file in sites.yaml.",
            ) from error
        raise Unreachable(f"{action}: no connection to the server ({type(error).__name__}).") from error
    except httpx.TransportError as error:
        raise RemoteUnavailable(f"{action}: the connection failed ({type(error).__name__}).") from error


def _certificate_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
