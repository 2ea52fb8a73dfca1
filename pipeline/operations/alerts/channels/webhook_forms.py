"""A message in the documented forms of its receivers, within their limits.

Slack: `text` for notifications and `blocks` (Block Kit): 150 characters in a header, 3,000 in a section, 50 blocks; in
practice about 13,000 in all. Teams: a message with one Adaptive Card (version 1.4), 28 KB in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from pipeline.operations.alerts.messages import Message, Problem, cut, problem_text, recovery_text

__all__ = ["FORMS", "form_of"]

_SLACK_HEADER, _SLACK_SECTION, _SLACK_ALL = 150, 2_900, 8_000
_TEAMS_BYTES = 24_000
_TEAMS_HOSTS = (".logic.azure.com", ".webhook.office.com", ".powerplatform.com", "outlook.office.com")


def form_of(url: str, given: str | None) -> str:
    """The form that is set, else the receiver's own by its host, else Slack's, which Mattermost and others take."""
    host = urlsplit(url).hostname or ""
    return given or ("teams" if host.endswith(_TEAMS_HOSTS) else "slack")


def _slack(message: Message) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": cut(message.subject, _SLACK_HEADER), "emoji": False}}
    ]
    used = 0
    parts = [_escaped(part) for part in _parts(message)]
    for position, part in enumerate(parts):
        used += len(part)
        if used > _SLACK_ALL:
            left = f"… and {len(parts) - position} more: `epic-omop alerts list`"
            blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": left}})
            break
        text = part if len(part) <= _SLACK_SECTION else part[: _SLACK_SECTION - 1] + "…"
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text}})
    # Slack shows `text` in notifications alone; receivers that know no blocks show nothing else.
    text = _escaped(message.text)
    return {"text": text if len(text) <= _SLACK_SECTION else text[: _SLACK_SECTION - 1] + "…", "blocks": blocks}


def _parts(message: Message) -> Iterator[str]:
    if message.note:
        yield message.note
    yield from map(problem_text, message.problems)
    yield from map(recovery_text, message.recovered)


def _escaped(text: str) -> str:
    """What Slack would take for a link or for a call of people (`<!channel>`)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(message: Message) -> dict[str, Any]:
    listed: Sequence[Problem] = (*message.problems, *message.recovered)
    for most in range(len(listed), -1, -1):
        document = _card(message, listed[:most], len(listed) - most)
        if len(orjson.dumps(document)) <= _TEAMS_BYTES:
            return document
    return _card(message, (), len(listed))


def _card(message: Message, listed: Sequence[Problem], left: int) -> dict[str, Any]:
    color = (
        "Good" if message.event in ("resolved", "test") else "Attention" if message.severity == "error" else "Warning"
    )
    body: list[dict[str, Any]] = [
        {**_block(cut(message.subject, 300)), "weight": "Bolder", "size": "Medium", "color": color}
    ]
    body += [_block(message.note)] if message.note else []
    for one in listed:
        facts = [("What happened", one.what), ("What it means", one.meaning), ("What to do", one.to_do)]
        facts += [("Command", one.command)] if one.resolved_at is None else []
        body.append({**_block(f"{one.title} ({one.severity})"), "weight": "Bolder", "separator": True})
        body.append({"type": "FactSet", "facts": [{"title": name, "value": _plain(value)} for name, value in facts]})
    if left:
        body.append(_block(f"… and {left} more: epic-omop alerts list"))
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _block(text: str) -> dict[str, Any]:
    return {"type": "TextBlock", "text": _plain(text), "wrap": True}


def _plain(text: str) -> str:
    """Cards take Markdown: links of a text that is not ours are none."""
    return text.replace("[", "\\[").replace("](", "]\\(")


def _own(message: Message) -> dict[str, Any]:
    return {**message.as_json(), "text": message.text}


#: Format → the document.
FORMS: Mapping[str, Callable[[Message], dict[str, Any]]] = {"slack": _slack, "teams": _teams, "json": _own}
