"""Alerts by e-mail: one plain-text message through an SMTP server, with STARTTLS or TLS and a login where set."""

from __future__ import annotations

import smtplib
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime

from pipeline.core.alert_settings import EmailChannel
from pipeline.core.errors import ConfigurationError, EpicOmopError, PermanentError, RemoteUnavailable, Unreachable
from pipeline.operations.alerts.channels.deadline import Closing, within
from pipeline.operations.alerts.channels.secrets import ca_file_of, read_secret
from pipeline.operations.alerts.messages import Message

__all__ = ["mail_of", "send_email"]

_PORTS = {"starttls": 587, "tls": 465, "none": 25}


def send_email(channel: EmailChannel, message: Message, seconds: float) -> str | None:
    """Returns what was not as it should be although the server took it, such as a refused address; None: nothing."""
    password = (
        read_secret("the password of the mail server", channel.password_env, channel.password_file)
        if channel.username
        else None
    )
    context = ssl.create_default_context(cafile=ca_file_of(channel.ca_file))
    action = f"Sending mail through {channel.host}"
    try:
        refused = within(seconds, action, lambda closing: _send(channel, message, password, context, seconds, closing))
    except (OSError, smtplib.SMTPException) as error:
        raise _classified(error, action) from None
    if refused:
        return f"The mail server refused {refused} of {len(channel.recipients)} recipients."
    return None


def mail_of(channel: EmailChannel, message: Message) -> EmailMessage:
    """The mail. Its Message-ID is that of the outbox, so that a copy is known as one; mails of an incident are a thread."""
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.recipients)
    mail["Date"] = format_datetime(datetime.fromisoformat(message.at).astimezone(UTC))
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Epic-Omop-Event"] = message.event
    if message.message_id:
        mail["Message-ID"] = _message_id(channel, message, message.message_id)
        if message.thread_id not in (0, message.message_id):
            opened = _message_id(channel, message, message.thread_id)
            mail["In-Reply-To"] = opened
            mail["References"] = opened
    mail.set_content(message.text)
    return mail


def _message_id(channel: EmailChannel, message: Message, number: int) -> str:
    instance = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in message.instance)
    return f"<alert-{number}.{instance}@{channel.sender.partition('@')[2]}>"


def _send(
    channel: EmailChannel,
    message: Message,
    password: str | None,
    context: ssl.SSLContext,
    seconds: float,
    closing: Closing,
) -> int:
    port = channel.port or _PORTS[channel.security]
    if channel.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(channel.host, port, timeout=seconds, context=context)
    else:
        server = smtplib.SMTP(channel.host, port, timeout=seconds)
    closing.by(server.close)
    try:
        if channel.security == "starttls":
            server.starttls(context=context)
        if channel.username and password:
            server.login(channel.username, password)
        refused = server.send_message(mail_of(channel, message))
    except BaseException:
        server.close()
        raise
    try:
        server.quit()
    except smtplib.SMTPException:
        server.close()  # it was taken already
    return len(refused)


def _classified(error: Exception, action: str) -> EpicOmopError:
    """By the server's code alone: its words may quote an address or a name."""
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return ConfigurationError(
            f"{action}: the server offers no STARTTLS, or no login.", "Check `security`, `port` and `username`."
        )
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return ConfigurationError(
            f"{action}: the server refused the login ({error.smtp_code}).", "Check `username` and the password."
        )
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({code for code, _ in error.recipients.values()})
        return _refused(codes[0], f"{action}: the server refused all recipients ({', '.join(map(str, codes))}).")
    if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code > 0:
        return _refused(error.smtp_code, f"{action}: the server answered {error.smtp_code}.")
    if isinstance(error, smtplib.SMTPException):
        return RemoteUnavailable(f"{action}: the connection ended ({type(error).__name__}).", "It is tried again.")
    return _of_connection(error, action)


def _of_connection(error: Exception, action: str) -> EpicOmopError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{action}: the server's certificate is not trusted.",
            "Name the file of your certificate authority as ca_file, and the host by the name in its certificate.",
        )
    if isinstance(error, ssl.SSLError):
        return ConfigurationError(
            f"{action}: no TLS connection ({error.reason or 'no reason given'}).",
            "Check `security` and `port`: 587 is nearly always starttls, 465 tls.",
        )
    why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return Unreachable(f"{action}: no connection ({why}).", "Check `host` and `port`, and that the server runs.")


def _refused(code: int, words: str) -> EpicOmopError:
    """RFC 5321, 4.2.1: 4yz may succeed later, 5yz will not."""
    if 400 <= code < 500:
        return RemoteUnavailable(words, "It is tried again.")
    return PermanentError(words, "Check `sender` and `recipients`, and what the server allows this machine to send.")
