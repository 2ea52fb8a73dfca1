"""Alerts as JSON that is posted: in the form that Slack's incoming webhooks take, or Teams' workflows, or as it is.

The address is a secret and stands in no message, no error and no log. Redirects are not followed: they would carry it
elsewhere. Sources: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks and
https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/add-incoming-webhook.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import orjson

from pipeline.core.alert_settings import HeartbeatSettings, WebhookChannel
from pipeline.core.errors import ConfigurationError, EpicOmopError, PermanentError, RemoteUnavailable, Unreachable
from pipeline.operations.alerts.channels.deadline import Closing, within
from pipeline.operations.alerts.channels.secrets import ca_file_of, is_this_machine, read_url
from pipeline.operations.alerts.channels.webhook_forms import FORMS, form_of
from pipeline.operations.alerts.messages import Message

__all__ = ["send_heartbeat", "send_webhook"]

# Both write whole addresses to their logs.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

#: Of an answer so much is looked at.
_ANSWER_BYTES = 16 * 1024
_ADVICE = {
    400: "The receiver does not take this form: set `format` to slack, teams or json.",
    401: "The receiver wants another token: make the webhook anew and store its address.",
    403: "The receiver wants another token, or has switched webhooks off: make the webhook anew.",
    404: "There is no such webhook (any more): make it anew and store its address.",
    405: "This address takes no messages: check that it is the webhook's own.",
    410: "The webhook's channel is gone: make a webhook for another one.",
    413: "The message is too large for the receiver.",
}


def send_webhook(channel: WebhookChannel, message: Message, seconds: float) -> None:
    """Post a message. Raises TransientError, ConfigurationError or PermanentError as the package says."""
    url = read_url("the address of a webhook", channel.url_env, channel.url_file, allow_http=channel.allow_http)
    form = form_of(url, channel.format)
    document = FORMS[form](message)
    action = f"Posting to webhook {channel.name} at {urlsplit(url).hostname}"
    headers = {"Content-Type": "application/json", "X-Epic-Omop-Message": str(message.message_id)}
    answer = _asked(action, "POST", url, headers, orjson.dumps(document), channel.ca_file, seconds)
    if answer.status >= 300:
        raise _refusal(action, answer)
    # Teams' connectors answer 200 to what Teams refused, and say so in words.
    if form == "teams" and b"delivery failed" in answer.body:
        if b"HTTP error 429" in answer.body:
            raise RemoteUnavailable(f"{action}: Teams takes no more messages at present.", "It is tried again.")
        raise PermanentError(f"{action}: Teams refused the message.", _ADVICE[400])


def send_heartbeat(settings: HeartbeatSettings, seconds: float) -> None:
    """Ask for the watcher's address, which thereby knows that alerts are looked after. Raises as `send_webhook`."""
    url = read_url("the address of the heartbeat", settings.url_env, settings.url_file, allow_http=settings.allow_http)
    action = f"The heartbeat to {urlsplit(url).hostname}"
    answer = _asked(action, "GET", url, {}, None, settings.ca_file, seconds)
    if answer.status >= 300:
        raise _refusal(action, answer)


class _Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


def _asked(
    action: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    content: bytes | None,
    ca_file: Path | None,
    seconds: float,
) -> _Answer:
    verify = ssl.create_default_context(cafile=ca_file_of(ca_file))
    # A proxy of the environment is not meant for this machine.
    trust_env = not is_this_machine(urlsplit(url).hostname or "")

    def ask(closing: Closing) -> _Answer:
        with httpx.Client(verify=verify, timeout=seconds, trust_env=trust_env, follow_redirects=False) as client:
            closing.by(client.close)
            own = {"User-Agent": "epic-omop", **headers}
            with client.stream(method, url, headers=own, content=content) as response:
                body = b""
                for chunk in response.iter_raw(_ANSWER_BYTES):
                    body += chunk
                    if len(body) >= _ANSWER_BYTES:
                        break
                return _Answer(response.status_code, body)

    try:
        return within(seconds, action, ask)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise _classified(error, action) from None


def _classified(error: Exception, action: str) -> EpicOmopError:
    """By kind alone: the words of httpx may hold the address."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigurationError(
                f"{action}: the server's certificate is not trusted.",
                "Name the file of your certificate authority as ca_file.",
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return ConfigurationError(f"{action}: the address is no URL.", "Store the webhook's whole address.")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return Unreachable(
            f"{action}: no connection ({type(error).__name__}).",
            "Check the address, and the proxy if there is one (HTTPS_PROXY).",
        )
    return RemoteUnavailable(f"{action}: the connection failed ({type(error).__name__}).", "It is tried again.")


def _refusal(action: str, answer: _Answer) -> EpicOmopError:
    words = f"{action}: the server answered {answer.status}."
    if answer.status in (408, 425, 429) or answer.status >= 500:
        return RemoteUnavailable(words, "It is tried again.")
    if answer.status < 400:
        return PermanentError(words, "It sends elsewhere, which is not followed: store the address that it means.")
    return PermanentError(words, _ADVICE.get(answer.status, "Check the address and the format of the webhook."))
