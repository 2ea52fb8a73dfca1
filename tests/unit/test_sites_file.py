"""sites.yaml: what is wrong in it is told by file, line, key and the nearest known key; nothing is ignored."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.core.errors import ConfigurationError
from pipeline.core.instance_zone import keep_zone
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings, load_settings, register_site
from pipeline.publication.known_cache import known_folder

_URL = "https://epic.example.org/fhir"
_KEY = "private_key_env: KEY"

#: The file's text → what the message must say.
WRONG = {
    "entry is a list": ("sites:\n  north: [a, b]\n", [":2:", "site 'north' is a list", "keys and values"]),
    "entry is a text": ("sites:\n  north: https://x\n", [":2:", "site 'north' is a single value"]),
    "entry is a number": ("sites: {north: 7}\n", [":1:", "site 'north' is a single value"]),
    "sites is a list": ("sites:\n- name: north\n", [":2:", "`sites` is a list"]),
    "sites is a text": ("sites: north\n", [":1:", "`sites` is a single value"]),
    "file is a list": ("- north\n", [":1:", "the file is a list"]),
    "typo of sites": ("site:\n  north: {}\n", [":1:", "no key 'site'", "Did you mean 'sites'?"]),
    "site without sites": ("north:\n  groups: []\n", [":1:", "no key 'north'"]),
    "unknown key": ("sites:\n  north:\n    fhir_ulr: x\n", [":3:", "no key 'fhir_ulr'", "Did you mean 'fhir_url'?"]),
    "unlike every key": ("sites:\n  north:\n    \n    zzz: 1\n", [":4:", "no key 'zzz'"]),
    "unknown option": (
        "sites:\n  north:\n    mapping:\n      panel_rows: x\n",
        [":4:", "no key 'mapping.panel_rows'", "Did you mean 'panel_row'?"],
    ),
    "resolver without a key": (
        "sites:\n  north:\n    resolvers: [{kind: omophub}]\n",
        [":3:", "resolvers.0: give one of api_key_env and api_key_file"],
    ),
    "typo in a resolver": (
        "sites:\n  north:\n    resolvers:\n    - kind: fhir\n      url: https://t.example.org/fhir\n      sistems: [a]\n",
        ["no key 'resolvers.0.sistems'", "Did you mean 'systems'?"],
    ),
    "resolver by http": (
        "sites:\n  north:\n    resolvers: [{kind: fhir, url: 'http://t.example.org'}]\n",
        [":3:", "resolvers are asked by https:// alone"],
    ),
    "password in a resolver": (
        "sites:\n  north:\n    resolvers: [{kind: fhir, url: 'https://a:b@t.example.org'}]\n",
        [":3:", "resolvers.0: url is not a base URL"],
    ),
    "resolver twice": (
        "sites:\n  north:\n    resolvers: [&a {kind: fhir, url: 'https://t.example.org'}, *a]\n",
        ["resolvers: one resolver is there twice"],
    ),
    "resolvers is a text": ("sites:\n  north:\n    resolvers: omophub\n", [":3:", "resolvers", "must be a list"]),
    "mapping is a list": ("sites:\n  north:\n    mapping: [x]\n", [":3:", "mapping"]),
    "wrong value": ("sites:\n  north:\n    time_zone: Chicago\n", [":3:", "time_zone", "America/Chicago"]),
    "wrong item": ("sites:\n  north:\n    groups:\n    - {a: 1}\n", [":4:", "groups.0"]),
    "groups is a text": ("sites:\n  north:\n    groups: g1\n", [":3:", "groups"]),
    "file as a list": ("sites:\n  north:\n    private_key_file: [a]\n", [":3:", "private_key_file"]),
    "repeated key": ("sites:\n  north:\n    groups: [a]\n    groups: [b]\n", [":4:", "twice", "line 3"]),
    "repeated site": ("sites:\n  north: {}\n  north: {}\n", [":3:", "twice", "line 2"]),
    "name within": ("sites:\n  north:\n    name: south\n", [":3:", "name"]),
    "bad name": ("sites:\n  North-West: {}\n", [":2:", "lower-case"]),
    "a tab": ("sites:\n\tnorth: {}\n", ["not valid YAML at line 2"]),
    "two documents": ("sites: {}\n---\nsites: {}\n", ["not valid YAML"]),
    "a key that is a list": ("sites:\n  [a, b]: {}\n", [":2:", "not a single word"]),
    "unknown tag": (
        "sites:\n  north:\n    groups: !!python/object:os.system [x]\n",
        [":3:", "'groups' cannot be read"],
    ),
    "a value in itself": ("sites:\n  north:\n    groups: &a [*a]\n", ["nested too deeply"]),
    "merge of a text": ("sites:\n  north:\n    <<: x\n", [":3:", "cannot be read"]),
    "whole site": (f"sites:\n  north:\n    fhir_url: {_URL}\n    {_KEY}\n", [":2:", "client_id is missing"]),
    "impossible date": ("sites:\n  north:\n    go_live_date: 2024-02-31\n", [":3:", "go_live_date"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_by_its_place(case: str, tmp_path: Path) -> None:
    text, words = WRONG[case]
    (tmp_path / "sites.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_settings({"EPIC_OMOP_HOME": str(tmp_path)})
    assert [word for word in words if word not in str(refused.value)] == [], str(refused.value)
    assert str(tmp_path / "sites.yaml") in str(refused.value)


#: YAML of values that are wrong somewhere; a list of settings takes none of the first ones, a single value none of the second.
SINGLE_VALUES = (
    "x",
    "7",
    "-1",
    "1.5",
    "yes",
    "2024-02-31",
    "",
    "~",
    '""',
    '" "',
    ".inf",
    ".nan",
    "1e400",
    '"a\\0b"',
    '"a\\nb"',
)
LISTS = ("[]", "[a, 1]", "[[a]]", "[{a: 1}]", "[null]", '["a\\0b"]', "[Pateint]")
KEYS = ("{}", "{a: 1}", "{5: [x]}", "{a: [[1]]}", "{null: x}", "{a: {b: {c: d}}}")
#: Of pydantic and Python, not of people.
FOREIGN = (
    "Input",
    "valid ",
    "unable to",
    "tuple",
    "dictionary",
    "string",
    "boolean",
    "instance",
    "pathlib",
    "[key]",
)
FIELDS = [
    *((("sites", "north", name), field) for name, field in SiteSettings.model_fields.items() if name != "name"),
    *((("sites", "north", "mapping", name), field) for name, field in MappingOptions.model_fields.items()),
]


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=[".".join(path[2:]) for path, _ in FIELDS])
def test_any_value_of_any_key_is_taken_or_refused_in_our_words(
    path: tuple[str, ...], field: FieldInfo, tmp_path: Path
) -> None:
    is_list, is_map = "tuple" in str(field.annotation).split("Mapping")[0], "Mapping" in str(field.annotation)
    is_map = is_map or (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    for value in (*SINGLE_VALUES, *LISTS, *KEYS):
        above = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(path[:-1]))
        (tmp_path / "sites.yaml").write_text(f"{above}{'  ' * (len(path) - 1)}{path[-1]}: {value}\n")
        try:
            load_settings({"EPIC_OMOP_HOME": str(tmp_path)})
        except ConfigurationError as refused:
            said = refused.message
        else:
            shape = "list" if value in LISTS else "map" if value in KEYS else "single"
            assert value == "~" or value == "" or shape == ("list" if is_list else "map" if is_map else "single"), value
            continue
        assert f"sites.yaml:{len(path)}: " in said, said
        assert path[2] in said, said
        assert [word for word in FOREIGN if word in said] == [], said


@pytest.mark.parametrize("key", ["resource_types", "empty_when_missing", "text_source_value_types", "crawl_searches"])
def test_a_type_that_fhir_does_not_have_is_refused(key: str, tmp_path: Path) -> None:
    def of(name: str) -> dict[str, str]:
        value = f"{{{name}: []}}" if key == "crawl_searches" else f"[{name}]"
        (tmp_path / "sites.yaml").write_text(f"sites:\n  north:\n    {key}: {value}\n")
        return {"EPIC_OMOP_HOME": str(tmp_path)}

    for typo, known in {"Pateint": "Patient", "Observations": "Observation", "encounter": "Encounter"}.items():
        with pytest.raises(ConfigurationError) as refused:
            load_settings(of(typo))
        assert (
            f"sites.yaml:3: {key}: {typo!r} is not a resource type of FHIR R4. Did you mean {known!r}?"
            in refused.value.message
        )
    load_settings(of("CarePlan"))  # of FHIR R4, and not mapped: it is exported and kept


@pytest.mark.parametrize("variable", ["WORKERS", "WORKER_MEMORY_MB", "ROLE_SUFFIX", "TIME_ZONE"])
def test_a_variable_is_named_and_told_in_our_words(variable: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings({"EPIC_OMOP_HOME": str(tmp_path), f"EPIC_OMOP_{variable}": "a lot"})
    assert f"EPIC_OMOP_{variable}: " in refused.value.message
    assert [word for word in FOREIGN if word in refused.value.message] == []


def test_several_problems_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text("sites:\n  north:\n    grups: [a]\n    time_zone: x\n    search_count: 0\n")
    with pytest.raises(ConfigurationError) as refused:
        load_settings({"EPIC_OMOP_HOME": str(tmp_path)})
    for place in (":3:", ":4:", ":5:"):
        assert place in str(refused.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "sites:\n", "sites: {}\n", "\ufeffsites: {}\n", "null\n"])
def test_a_file_without_sites(text: str, tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(text)
    assert load_settings({"EPIC_OMOP_HOME": str(tmp_path)}).sites == {}


def test_anchors_and_shared_parts(tmp_path: Path) -> None:
    shared = "x-shared: &shared {time_zone: America/Chicago, groups: [a]}\n"
    sites = "sites:\n  north: {<<: *shared, groups: [b]}\n  south: *shared\n  east:\n"
    (tmp_path / "sites.yaml").write_text(shared + sites)
    found = load_settings({"EPIC_OMOP_HOME": str(tmp_path)}).sites
    assert {name: (site.time_zone, site.groups) for name, site in found.items()} == {
        "north": ("America/Chicago", ("b",)),
        "south": ("America/Chicago", ("a",)),
        "east": ("UTC", ()),
    }


def test_a_registered_site_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text("sites:\n  north: {time_zone: America/Chicago}\n")
    file = register_site(tmp_path, "south", {"go_live_date": "2020-01-01"})
    assert yaml.safe_load(file.read_text())["sites"] == {
        "north": {"time_zone": "America/Chicago"},
        "south": {"go_live_date": "2020-01-01"},
    }
    assert file.stat().st_mode & 0o777 == 0o600


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    home = tmp_path_factory.getbasetemp() / "any-sites"
    home.mkdir(exist_ok=True)
    (home / "sites.yaml").write_bytes(content)
    with suppress(ConfigurationError):
        load_settings({"EPIC_OMOP_HOME": str(home)})


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"EPIC_OMOP_CDM_SCHEMA": "etl"}, "three different names"),
        ({"EPIC_OMOP_VOCAB_SCHEMA": "cdm"}, "three different names"),
        ({"EPIC_OMOP_CDM_SCHEMA": "pg_catalog"}, "PostgreSQL's own"),
        ({"EPIC_OMOP_ETL_SCHEMA": "information_schema"}, "PostgreSQL's own"),
    ],
)
def test_schemas_are_three_and_our_own(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_settings({"EPIC_OMOP_HOME": str(tmp_path), **variables})


@pytest.mark.parametrize("written", ["https://h.example/api/FHIR/R4", "https://h.example/api/FHIR/R4/"])
def test_a_base_url_ends_without_a_slash(written: str, tmp_path: Path) -> None:
    """Everybody who adds a path to it adds a slash."""
    site = SiteSettings(name="north", fhir_url=written, client_id="c", private_key_file=tmp_path, groups=("g",))
    assert site.fhir_url == "https://h.example/api/FHIR/R4"


def test_the_zone_of_datetimes_is_that_of_the_first_site_and_is_kept(tmp_path: Path) -> None:
    """A date in the site's zone beside a time in UTC would put two days into one row."""
    own = {"EPIC_OMOP_HOME": str(tmp_path)}
    assert load_settings(own).time_zone == "UTC", "no site yet"
    sites = tmp_path / "sites.yaml"
    sites.write_text("sites:\n  north: {time_zone: America/Chicago}\n  south: {time_zone: America/Denver}\n")
    assert load_settings(own).time_zone == "America/Chicago"
    keep_zone(tmp_path, load_settings(own).time_zone)
    sites.write_text("sites:\n  south: {time_zone: America/Denver}\n  north: {time_zone: America/Chicago}\n")
    assert load_settings(own).time_zone == "America/Chicago"
    keep_zone(tmp_path, "America/Denver")
    assert load_settings(own).time_zone == "America/Chicago"
    assert load_settings({**own, "EPIC_OMOP_TIME_ZONE": "UTC"}).time_zone == "UTC"


def test_a_home_that_was_loaded_before_zones_were_kept_stays_in_utc(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text("sites:\n  north: {time_zone: America/Chicago}\n")
    known_folder(tmp_path, "north").mkdir(parents=True)
    assert load_settings({"EPIC_OMOP_HOME": str(tmp_path)}).time_zone == "UTC"
