"""One message to one channel, whatever its kind."""

from __future__ import annotations

from pipeline.core.alert_settings import EmailChannel, LogChannel, WebhookChannel
from pipeline.core.errors import Defect, EpicOmopError
from pipeline.operations.alerts.channels.email import send_email
from pipeline.operations.alerts.channels.log import send_log
from pipeline.operations.alerts.channels.webhook import send_webhook
from pipeline.operations.alerts.messages import Message

__all__ = ["Channel", "send"]

Channel = EmailChannel | WebhookChannel | LogChannel


def send(channel: Channel, message: Message, seconds: float) -> str | None:
    """Returns what was not as it should be although it was taken; None: nothing. Raises EpicOmopErrors alone, so that one
    channel never keeps a message from the others."""
    try:
        if isinstance(channel, EmailChannel):
            return send_email(channel, message, seconds)
        if isinstance(channel, WebhookChannel):
            send_webhook(channel, message, seconds)
        else:
            send_log(message)
    except EpicOmopError:
        raise
    except Exception as error:  # noqa: BLE001 - its words may hold an address
        raise Defect(f"Channel {channel.name}: an unexpected {type(error).__name__}.", "Please report it.") from None
    return None
