"""Each role does its work and nothing else: on the embedded server, and on another by real logins with passwords."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from pipeline.core.clock import ManualClock
from pipeline.core.settings import MAPPINGS_FOLDER, Settings
from pipeline.quality.verify import verify_warehouse
from pipeline.warehouse.roles import LOG_RELATIONS, ROLES, grant_role, install_roles, role_script
from pipeline.warehouse.roles import Warehouse as Names
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary
from tests.command_line import CommandLine
from tests.databases import fresh_database
from tests.integration.support import START, Lines, Warehouse, encounter, observation, patient, reference

#: Roles are of a whole server, which other tests use at the same time.
SUFFIX = "_test_roles"
PASSWORD = "mice-eat-clocks"
NAMES = Names("cdm", "vocab", "etl", SUFFIX)
FILES: dict[str, Lines] = {
    "Patient": [patient()],
    "Encounter": [encounter()],
    "Observation": [
        observation(encounter=reference("Encounter", "e1")),
        observation("x", valueQuantity={"value": "1"}),
    ],
}


@dataclass(frozen=True)
class Place:
    """A warehouse that was installed by `admin`, loaded by the user `loader`, and its other users."""

    admin: str
    is_embedded: bool

    def url(self, user: str) -> str:
        """A session of this user. The embedded server knows its owner alone at its socket, who becomes another."""
        if self.is_embedded:
            role = "omop_etl" + SUFFIX if user == "loader" + SUFFIX else user
            return f"{self.admin}&options={quote(f'-c role={role}')}"
        parts = urlsplit(self.admin)
        return urlunsplit(parts._replace(netloc=f"{user}:{PASSWORD}@{parts.hostname}:{parts.port}"))

    def execute(self, user: str, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(user)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def refused(self, user: str, statement: str) -> bool:
        try:
            self.execute(user, statement)
        except psycopg.errors.InsufficientPrivilege:
            return True
        return False


def _user(role: str) -> str:
    return {"omop_etl": "loader"}.get(role, f"{role}_user") + SUFFIX


@pytest.fixture(scope="module", params=["embedded", "other"])
def place(request: pytest.FixtureRequest, make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[Place]:
    is_embedded = request.param == "embedded"
    server = request.getfixturevalue("postgres_url" if is_embedded else "other_postgres_url")
    is_embedded = is_embedded or server == request.getfixturevalue("postgres_url")
    with make_home() as home, fresh_database(server) as admin:
        install_schemas(admin, cdm="cdm", vocab="vocab", etl="etl")
        assert install_roles(admin, NAMES)
        with psycopg.connect(admin) as connection:
            for role in ROLES:
                user = sql.Identifier(_user(role))
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(user))
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, PASSWORD))
        for role in ROLES:
            assert grant_role(admin, NAMES, role, _user(role))
        place = Place(admin, is_embedded)
        _load(place.url(_user("omop_etl")), home)
        yield place
    with psycopg.connect(server, autocommit=True) as connection:  # what they owned went with the database
        for name in [*map(_user, ROLES), *map(NAMES.role, ROLES)]:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _load(url: str, home: Path) -> None:
    """Everything that loading does, as a user who is neither superuser nor owner of the access log."""
    assert not install_schemas(url, cdm="cdm", vocab="vocab", etl="etl").changed
    release = load_vocabulary(url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(url, release, vocab_schema="vocab", home=home)
    warehouse = Warehouse(Runtime(Settings(home=home, database_url=url, workers=1), ManualClock(START)), home)
    assert warehouse.load(FILES)[0].outcomes["loaded"] == 3
    changed = {**FILES, "Patient": [patient(gender="other"), patient("p2")]}
    assert warehouse.load(changed)[0].outcomes["loaded"] == 2
    with warehouse.runtime.connect() as connection:
        assert all(check.ok for check in verify_warehouse(connection, "cdm"))
        connection.execute("ANALYZE cdm.person")
    with psycopg.connect(url, autocommit=True) as vacuum:
        vacuum.execute("VACUUM cdm.person")


def test_who_may_do_what_with_every_table(place: Place) -> None:
    """No right more, none less, of each role on each relation of the three schemas."""
    reads = {
        "omop_reader": {("cdm", None), ("vocab", None)},
        "omop_steward": {
            ("vocab", None),
            *(("etl", name) for name in ("dead_letter", "dead_letter_open", "unmapped_code", "row_issue")),
            *(("etl", name) for name in ("exclusion", "file_account", "vocabulary_release")),
            *(("etl", name) for name in ("unmapped_coding", "publication", "local_map", "coverage")),
            ("etl", "alembic_version"),
            ("etl", "dead_letter_history"),
        },
        "omop_auditor": {("etl", name) for name in LOG_RELATIONS},
    }
    rows = place.execute(
        _user("omop_etl"),
        "SELECT role.name, space.nspname, relation.relname, privilege FROM pg_class AS relation"
        " JOIN pg_namespace AS space ON space.oid = relnamespace, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE',"
        " 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege,"
        f" unnest(ARRAY['omop_reader', 'omop_steward', 'omop_auditor', 'omop_etl']) AS role (name)"
        " WHERE nspname IN ('cdm', 'vocab', 'etl') AND relkind IN ('r', 'v')"
        f" AND has_table_privilege(role.name || '{SUFFIX}', relation.oid, privilege)",
    )
    found = set(rows)
    every = place.execute(
        _user("omop_etl"),
        "SELECT nspname, relname, relkind FROM pg_class JOIN pg_namespace AS space ON space.oid = relnamespace"
        " WHERE nspname IN ('cdm', 'vocab', 'etl') AND relkind IN ('r', 'v')",
    )
    expected: set[tuple[object, ...]] = set()
    for schema, name, _ in every:
        is_log = schema == "etl" and name in LOG_RELATIONS
        expected |= {
            (role, schema, name, "SELECT") for role, own in reads.items() if {(schema, name), (schema, None)} & own
        }
        writes = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
        expected |= {("omop_etl", schema, name, what) for what in (("SELECT",) if is_log else writes)}
    expected |= {("omop_steward", "etl", "local_map", what) for what in ("INSERT", "UPDATE", "DELETE")}
    expected |= {(role, "etl", "access_log", "INSERT") for role in ("omop_etl", "omop_steward", "omop_auditor")}
    assert found == expected, sorted(map(str, found ^ expected))


def test_the_loader_owns_all_but_the_log_and_is_no_superuser(place: Place) -> None:
    owners = dict(
        place.execute(
            _user("omop_etl"),
            "SELECT relname, pg_get_userbyid(relowner) FROM pg_class JOIN pg_namespace AS space ON space.oid = relnamespace"
            " WHERE nspname IN ('cdm', 'vocab', 'etl') AND relkind IN ('r', 'v', 'S')",
        )
    )
    etl = NAMES.role("omop_etl")
    others = {str(name) for name, owner in owners.items() if owner != etl}
    assert others == {name for name in owners if str(name).startswith(("access_log", "access_link", "access_head"))}
    assert place.execute(_user("omop_etl"), "SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles"
                         " WHERE rolname = current_user") == [(False, False, False)]  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE etl.access_log SET site = 'x'",
        "DELETE FROM etl.access_log",
        "TRUNCATE etl.access_log",
        "DROP TABLE etl.access_log",
        "ALTER TABLE etl.access_log DISABLE TRIGGER ALL",
        "ALTER TABLE etl.access_log OWNER TO CURRENT_USER",
        "DROP FUNCTION etl.refuse_change_of_access_log() CASCADE",
        "SET session_replication_role = replica",
        "DROP SCHEMA etl CASCADE",
        "CREATE TRIGGER t BEFORE INSERT ON etl.access_log EXECUTE FUNCTION etl.forget_known_marks()",
        "COPY etl.access_log TO PROGRAM 'true'",
        "CREATE ROLE another",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_nobody_may_rewrite_the_log_or_become_another(place: Place, role: str, statement: str) -> None:
    assert place.refused(_user(role), statement)


#: The log's own function as the trigger of a table of one's own, beside a view that it would read as the log's owner.
_BORROWED = """
    CREATE TEMP TABLE access_log (id bigint);
    CREATE FUNCTION pg_temp.borrowed() RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'runs as %', current_user; END $$;
    CREATE TEMP VIEW access_head AS SELECT pg_temp.borrowed() AS position, ''::bytea AS hash;
    CREATE CONSTRAINT TRIGGER access_log_link AFTER INSERT ON pg_temp.access_log DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION etl.link_access_log();
    INSERT INTO pg_temp.access_log VALUES (1)
"""


def _as_admin(place: Place, statement: str) -> None:
    with psycopg.connect(place.admin) as connection:
        connection.execute(statement.encode())


@pytest.mark.parametrize("role", ROLES)
def test_nobody_borrows_the_rights_of_the_logs_owner(place: Place, role: str) -> None:
    assert place.refused(_user(role), _BORROWED)


def test_the_logs_function_serves_no_other_table(place: Place) -> None:
    """Not even where someone may use it."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="alone"):
        _as_admin(place, _BORROWED)


_ENTRY = (
    "INSERT INTO etl.access_log (at, site, run_id, os_user, workflow, event, outcome)"
    " VALUES (now(), 's', 'r', 'u', 'w', 'read', 'ok')"
)


def test_who_looks_at_lines_leaves_an_entry_that_the_auditor_reads(place: Place) -> None:
    for role in ("omop_etl", "omop_steward", "omop_auditor"):
        place.execute(_user(role), _ENTRY)
    assert place.refused(_user("omop_reader"), _ENTRY)
    assert place.execute(_user("omop_auditor"), "SELECT count(*) FROM etl.access_log WHERE event = 'read'") == [(3,)]
    assert place.refused(_user("omop_steward"), "SELECT * FROM etl.access_log")


def test_tables_that_are_made_later_have_the_same_rights(place: Place) -> None:
    place.execute(_user("omop_etl"), "CREATE TABLE cdm.later AS SELECT 1 AS a")
    assert place.execute(_user("omop_reader"), "SELECT a FROM cdm.later") == [(1,)]
    place.execute(_user("omop_etl"), "DROP TABLE cdm.later")
    place.execute(_user("omop_etl"), "DROP TABLE cdm.fact_relationship")
    # What the next command does: the dropped table comes again, and a new one is granted.
    assert install_schemas(place.url(_user("omop_etl")), cdm="cdm", vocab="vocab", etl="etl").tables == 1
    assert place.execute(_user("omop_reader"), "SELECT count(*) FROM cdm.fact_relationship") == [(0,)]
    place.execute(
        _user("omop_steward"),
        "INSERT INTO etl.local_map (source_system, source_code, target_concept_id) VALUES ('urn:x', 'x', 0)",
    )
    assert place.refused(_user("omop_reader"), "SELECT * FROM etl.local_map")


def test_a_steward_works_by_the_commands(place: Place, tmp_path: Path) -> None:
    terminal = CommandLine(tmp_path, place.url(_user("omop_steward")))
    terminal.run("unmapped", "export")
    file = tmp_path / "decided.csv"
    file.write_text("source_system,source_code,target_concept_id\nurn:x,A,0\nurn:x,B,4273391\n")
    terminal.run("unmapped", "import", file, "--unseen", code=None)
    assert place.execute(_user("omop_steward"), "SELECT count(*) FROM etl.local_map WHERE source_code = 'A'") == [(1,)]
    terminal.run("unmapped", "status")
    assert "wrong_type" in terminal.run("dead-letters", "list").out
    (letter,) = place.execute(_user("omop_steward"), "SELECT min(id) FROM etl.dead_letter_open")
    assert '"id":"x"' in terminal.run("dead-letters", "show", str(letter[0]), "--raw").out.replace(" ", "")


def test_a_user_who_may_not_make_roles_gets_their_sql(place: Place, tmp_path: Path) -> None:
    loader = CommandLine(tmp_path, place.url(_user("omop_etl")), {"EPIC_OMOP_ROLE_SUFFIX": SUFFIX})
    assert "CREATE ROLE" not in loader.run("db", "init").out, "they are there"
    refused = loader.run("db", "grant", "omop_reader", _user("omop_steward"), code=1)
    assert f'GRANT "omop_reader{SUFFIX}" TO "{_user("omop_steward")}";' in refused.out
    other = CommandLine(tmp_path, place.url(_user("omop_etl")), {"EPIC_OMOP_ROLE_SUFFIX": "_nowhere"})
    script = other.run("db", "init").out
    assert role_script(Names("cdm", "vocab", "etl", "_nowhere")) in script
    assert "There is no role omop_reader_nowhere" in other.run("db", "grant", "omop_reader", "x", code=None).err
    admin = CommandLine(tmp_path, place.admin, {"EPIC_OMOP_ROLE_SUFFIX": SUFFIX})
    assert "no user nobody-there" in admin.run("db", "grant", "omop_reader", "nobody-there", code=2).err
    with psycopg.connect(place.admin) as connection:  # the printed SQL does it, by whoever may
        connection.execute(role_script(NAMES))


def test_a_creator_of_roles_who_owns_the_schemas_may_make_them(
    other_postgres_url: str, postgres_url: str, tmp_path: Path
) -> None:
    """A customer's user, no superuser: CREATEROLE and a database of its own."""
    if other_postgres_url == postgres_url:
        pytest.skip("only the embedded server, which knows its owner alone")
    names = Names("cdm", "vocab", "etl", "_test_creator")
    with psycopg.connect(other_postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE creator_test LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    try:
        with fresh_database(other_postgres_url) as admin:
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(f"GRANT CREATE ON DATABASE {urlsplit(admin).path[1:]} TO creator_test")
            parts = urlsplit(admin)
            url = urlunsplit(parts._replace(netloc=f"creator_test:{PASSWORD}@{parts.hostname}:{parts.port}"))
            install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")
            assert install_roles(url, names)
            assert install_roles(url, names), "again"
            _load(url, tmp_path)
    finally:
        with psycopg.connect(other_postgres_url, autocommit=True) as connection:
            for name in ("creator_test", *map(names.role, ROLES)):
                connection.execute(f"DROP ROLE IF EXISTS {name}")
