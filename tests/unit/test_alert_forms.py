"""Messages in the forms of their receivers: what Slack's own library and Teams' documentation say of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from typing import Any

import orjson
import pytest
from slack_sdk.models.blocks import Block

from pipeline.core.alert_settings import EmailChannel
from pipeline.operations.alerts.channels.email import mail_of
from pipeline.operations.alerts.channels.webhook_forms import FORMS, form_of
from pipeline.operations.alerts.kinds import AlertKind, Condition
from pipeline.operations.alerts.messages import Message, Problem, problem_of

NOW = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
HOSTILE = "<!channel> & <https://evil.example|click> [x](https://evil.example)\r\nBcc: x@y\x1b[31m \u202e"


def problem(what: str, kind: AlertKind = AlertKind.RUN_FAILED) -> Problem:
    condition = Condition(kind, "one", what)
    return problem_of(kind, condition.severity, what, condition.command, NOW)


def message(*problems: Problem, **more: Any) -> Message:
    values = {"event": "opened", "site": "one", "instance": "north on etl1", "at": NOW.isoformat(), **more}
    return Message(problems=problems, **values)


MESSAGES = {
    "one": message(problem("Export 12 is failed: the server answered 500.")),
    "hostile": message(problem(HOSTILE), site=None),
    "many": message(*[problem("x" * 600) for _ in range(200)]),
    "recovered": message(event="resolved", recovered=(problem("It failed."),)),
    "test": message(event="test", note="This is a test."),
    "nothing": message(),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_slack_takes_it(name: str) -> None:
    """https://docs.slack.dev/reference/block-kit/blocks: its library checks the lengths."""
    document = FORMS["slack"](MESSAGES[name])
    assert set(document) == {"text", "blocks"}
    assert document["text"]
    assert len(document["blocks"]) <= 50
    assert len(orjson.dumps(document)) < 13_000
    for block in document["blocks"]:
        parsed = Block.parse(block)
        assert parsed is not None
        parsed.validate_json()
        text = block["text"]["text"]
        assert 0 < len(text) <= (150 if block["type"] == "header" else 3000)
        if block["type"] != "header":  # plain text is shown as it is
            assert "<" not in text.replace("&lt;", "")
    assert "<" not in document["text"]


#: https://adaptivecards.io/explorer: the properties that version 1.4 has, of those that we use.
_ELEMENTS = {
    "TextBlock": {"type", "text", "wrap", "weight", "size", "color", "separator"},
    "FactSet": {"type", "facts"},
}


@pytest.mark.parametrize("name", MESSAGES)
def test_teams_takes_it(name: str) -> None:
    document = FORMS["teams"](MESSAGES[name])
    assert len(orjson.dumps(document)) < 28 * 1024
    assert document["type"] == "message"
    (attachment,) = document["attachments"]
    assert set(attachment) == {"contentType", "contentUrl", "content"}
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    card = attachment["content"]
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    for element in card["body"]:
        assert set(element) <= _ELEMENTS[element["type"]]
        assert element.get("color", "Good") in {"Good", "Attention", "Warning"}
        for fact in element.get("facts", ()):
            assert set(fact) == {"title", "value"}
            assert "](" not in fact["value"].replace("]\\(", "")


def test_its_own_form_has_every_part() -> None:
    document = FORMS["json"](MESSAGES["one"])
    (first,) = document["problems"]
    assert (document["event"], document["site"], document["severity"]) == ("opened", "one", "error")
    assert first["command"] == "epic-omop run --site one"
    assert first["command"] in document["text"]
    assert Message.from_json(orjson.loads(orjson.dumps(MESSAGES["one"].as_json())), message_id=7).message_id == 7


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("https://hooks.slack.com/services/x", "slack"),
        ("https://prod-1.westeurope.logic.azure.com/workflows/x", "teams"),
        ("https://contoso.webhook.office.com/webhookb2/x", "teams"),
        ("https://default1.2.environment.api.powerplatform.com/powerautomate/x", "teams"),
        ("https://mattermost.hospital.example/hooks/x", "slack"),
    ],
)
def test_the_host_says_which_form_it_takes(url: str, form: str) -> None:
    assert form_of(url, None) == form
    assert form_of(url, "json") == "json"


def test_a_mail_says_everything_on_lines_of_its_own_and_no_header_is_smuggled_in() -> None:
    channel = EmailChannel(kind="email", name="mail", host="h", sender="etl@h.example", recipients=("a@h.example",))
    sent = replace(MESSAGES["hostile"], message_id=8, thread_id=7)
    mail: Any = message_from_bytes(mail_of(channel, sent).as_bytes(), policy=default)
    assert mail["Bcc"] is None
    assert mail["Subject"] == "[north on etl1] the warehouse: problem: A run failed"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert (mail["Message-ID"], mail["In-Reply-To"]) == (
        "<alert-8.north-on-etl1@h.example>",
        "<alert-7.north-on-etl1@h.example>",
    )
    text = mail.get_content()
    assert "\x1b" not in text
    assert [line.partition(":")[0] for line in text.splitlines() if ": " in line][1:] == [
        "What happened",
        "What it means",
        "What to do",
        "Command",
    ]
