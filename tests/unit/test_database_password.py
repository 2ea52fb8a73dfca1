"""The password of the database from a file, and the schema for Dagster: what is refused, without showing a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pipeline.core.database_password import with_password_of_file
from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import load_settings
from pipeline.orchestration.storage_in_postgres import storage_url

SECRET = "s3cr@t/:?#%"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\r\n", newline="")
    return path


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("postgresql://omop@db.example.org:5432/omop", "omop"),
        ("postgresql://omop@/omop?host=/run/postgresql", "omop"),
        ("postgresql:///omop?user=omop&sslmode=require", "omop"),
        ("postgresql://db.example.org/omop", None),
        ("postgresql:///omop", None),
    ],
)
def test_every_form_of_a_url_takes_it(url: str, user: str | None, file: Path) -> None:
    given = conninfo_to_dict(with_password_of_file(url, file))
    assert given["password"] == SECRET
    assert given.get("user") == user
    assert {**conninfo_to_dict(url), "password": SECRET} == given


@pytest.mark.parametrize(
    ("content", "url", "message"),
    [
        (b"", "postgresql://omop@db/omop", "is empty"),
        (b"\n", "postgresql://omop@db/omop", "is empty"),
        (b"one\ntwo\n", "postgresql://omop@db/omop", "more than one line"),
        (b"\xff\xfe", "postgresql://omop@db/omop", "not text"),
        (None, "postgresql://omop@db/omop", "No such file"),
        (b"one", "postgresql://omop:other@db/omop", "holds a password"),
        (b"one", None, "EPIC_OMOP_DATABASE_URL is not"),
    ],
)
def test_what_is_wrong_is_named_and_no_password_shown(
    content: bytes | None, url: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    variables = {"EPIC_OMOP_HOME": str(tmp_path), "EPIC_OMOP_DATABASE_PASSWORD_FILE": str(path)}
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_settings(variables | ({"EPIC_OMOP_DATABASE_URL": url} if url else {}))
    assert "other" not in str(caught.value).replace("another", "")
    assert "two" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "url", "message"),
    [
        ("cdm", "postgresql://omop@db/omop", "Dagster's alone"),
        ("public", "postgresql://omop@db/omop", "Dagster's alone"),
        ("pg_x", "postgresql://omop@db/omop", "schema's name"),
        ("dagster", None, "needs EPIC_OMOP_DATABASE_URL"),
    ],
)
def test_a_schema_that_cannot_be_dagsters_is_refused(
    schema: str, url: str | None, message: str, tmp_path: Path
) -> None:
    variables = {"EPIC_OMOP_HOME": str(tmp_path), "EPIC_OMOP_DAGSTER_SCHEMA": schema}
    with pytest.raises(ConfigurationError, match=message):
        load_settings(variables | ({"EPIC_OMOP_DATABASE_URL": url} if url else {}))


def test_options_of_the_url_stay_beside_the_schema() -> None:
    url = "postgresql://u:a%40b@db/omop?options=-cstatement_timeout%3D5s&sslmode=require"
    driver, _, rest = storage_url(url, "d").partition("://")
    assert driver == "postgresql+psycopg2", "Dagster's statements are written for it"
    given = conninfo_to_dict(f"postgresql://{rest}")
    assert given["options"] == "-cstatement_timeout=5s -csearch_path=d"
    assert (given["password"], given["sslmode"]) == ("a@b", "require")
