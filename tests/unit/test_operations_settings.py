"""operations.yaml: what is wrong in it is reported by file, line, key and the nearest known key; secrets never stand in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.alert_settings import EmailChannel, LogChannel, WebhookChannel
from pipeline.core.errors import ConfigurationError
from pipeline.core.operations_settings import load_operations
from pipeline.core.settings import load_settings

_MAIL = "kind: email, host: smtp.example.org, sender: etl@example.org, recipients: [oncall@example.org]"


def _alerts(text: str) -> str:
    return f"alerts:\n  {text}\n"


def _channel(text: str) -> str:
    return _alerts(f"channels:\n  - {{{text}}}")


#: The file's text → what the message must say.
WRONG = {
    "unknown section": ("alert:\n  x: 1\n", [":1:", "no key 'alert'", "Did you mean 'alerts'?"]),
    "section twice": ("alerts: {}\nalerts: {}\n", [":2:", "twice, first in line 1"]),
    "section is a list": ("alerts: [a]\n", [":1:", "`alerts` is a list"]),
    "unknown key": (_alerts("remind_after_hour: 3"), [":2:", "Did you mean 'remind_after_hours'?"]),
    "unknown kind": (_channel("kind: pager"), [":3:", "channels.0", "must be one of 'email', 'webhook', 'log'"]),
    "no kind": (_channel("host: x"), [":3:", "channels.0", "'kind' is missing"]),
    "typo in a channel": (_channel(f"{_MAIL}, prot: 25"), [":3:", "'channels.0.prot'", "Did you mean 'port'?"]),
    "password in the file": (
        _channel(f"{_MAIL}, username: etl, password: hunter2"),
        [":3:", "password_env or password_file"],
    ),
    "address in the file": (
        _channel("kind: webhook, url: 'https://hooks.example.org/T0/hunter2'"),
        [":3:", "url_env or url_file"],
    ),
    "password in the clear": (
        _channel(f"{_MAIL}, username: etl, password_env: P, security: none"),
        ["never sent in the clear"],
    ),
    "user without a password": (_channel(f"{_MAIL}, username: etl"), ["belong together"]),
    "no address": (_channel("kind: webhook"), ["exactly one of url_env and url_file"]),
    "two addresses": (_channel("kind: webhook, url_env: A, url_file: b"), ["exactly one of url_env and url_file"]),
    "not a mail address": (
        _channel("kind: email, host: h, sender: etl, recipients: [a@b]"),
        [":3:", "channels.0.sender", "is not a mail address"],
    ),
    "line break in an address": (
        _channel('kind: email, host: h, sender: "a@b\\nBcc: c@d", recipients: [a@b]'),
        ["channels.0.sender", "line break"],
    ),
    "nobody": (_channel("kind: email, host: h, sender: a@b, recipients: []"), ["must name an address at least"]),
    "url as host": (_channel("kind: email, host: 'smtp://h:25', sender: a@b, recipients: [a@b]"), ["not the name"]),
    "same name": (_alerts("channels: [{kind: log}, {kind: log}]"), [":2:", "two channels have the name 'log'"]),
    "heartbeat in the file": (_alerts("heartbeat:\n    url: https://hc.example.org/hunter2"), [":3:", "url_env"]),
    "hours of nothing": (_alerts("publication_within_hours: 0"), [":2:", "must be more than 0"]),
    "typo at a site": (
        _alerts("sites:\n    email:\n      publication_within_hour: 3"),
        [":4:", "'sites.email.publication_within_hour'", "Did you mean 'publication_within_hours'?"],
    ),
    "not yaml": ("alerts: [\n", ["not valid YAML"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_reported_with_its_line(case: str, tmp_path: Path) -> None:
    text, words = WRONG[case]
    (tmp_path / "operations.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_operations(load_settings({"EPIC_OMOP_HOME": str(tmp_path)}))
    message = str(caught.value)
    assert [word for word in [*words, str(tmp_path / "operations.yaml")] if word not in message] == []
    assert "hunter2" not in message


def test_without_a_file_alerts_go_to_the_log(tmp_path: Path) -> None:
    settings = load_operations(load_settings({"EPIC_OMOP_HOME": str(tmp_path)}))
    assert settings.alerts.channels == (LogChannel(kind="log"),)


def test_a_file_of_another_name_must_exist(tmp_path: Path) -> None:
    environment = {"EPIC_OMOP_HOME": str(tmp_path), "EPIC_OMOP_OPERATIONS": str(tmp_path / "other.yaml")}
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_operations(load_settings(environment))
    (tmp_path / "other.yaml").write_text("")
    assert load_operations(load_settings(environment)).alerts.remind_after_hours == 24


def test_channels_are_named_and_their_files_stand_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "operations.yaml").write_text(
        _alerts(f"channels: [{{{_MAIL}}}, {{kind: webhook, name: teams, url_file: hook}}]\n  sites: {{one: {{}}}}")
    )
    mail, hook = load_operations(load_settings({"EPIC_OMOP_HOME": str(tmp_path)})).alerts.channels
    assert isinstance(mail, EmailChannel)
    assert (mail.name, mail.security) == ("email", "starttls")
    assert isinstance(hook, WebhookChannel)
    assert (hook.name, hook.url_file) == ("teams", tmp_path / "hook")
