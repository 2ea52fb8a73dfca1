"""The code's part of a fingerprint: all that decides rows changes it, and nothing else does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import code_hash as module
from pipeline.core.code_hash import code_hash, import_closure
from pipeline.load.fingerprints import rows_code_hash

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "pipeline.load.worker"
#: What stands in a hash's input, written so that versions of Python write it again in different ways.
SOURCE = '''
"""About the module."""
from pipeline.other import name

def rule(row: dict, width: int = 3) -> str:
    """About the rule."""
    # a comment
    return f"{row['a']!r:>{width}} {'x' + 'y'}" "z"
'''


def project(folder: Path, **modules: str) -> Path:
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "__init__.py").write_text("")
    for name, text in ({"entry": SOURCE, "other": "name = 1\n", "apart": "value = 1\n"} | modules).items():
        (folder / "pipeline" / f"{name}.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("changed", "is_other"),
    [
        ({"entry": SOURCE.replace("# a comment", "# another")}, False),
        ({"entry": SOURCE.replace("About the rule.", "What the rule does.")}, False),
        ({"entry": SOURCE.replace('"""About the module."""', "")}, False),
        ({"entry": SOURCE.replace("def rule(row: dict,", "def rule(\n    row: dict,")}, False),
        ({"apart": "value = 2\n"}, False),
        ({"other": "name = 2\n"}, True),
        ({"entry": SOURCE.replace("width: int = 3", "width: int = 4")}, True),
        ({"entry": SOURCE.replace("!r", "!s")}, True),
        ({"entry": SOURCE.replace(">{width}", "<{width}")}, True),
        ({"entry": SOURCE.replace('"z"', '"w"')}, True),
        ({"other": "def later():\n    from pipeline.apart import value\n"}, True),
        ({"entry": SOURCE.replace('"z"', 'r"\\x7a"')}, True),
    ],
)
def test_what_changes_the_hash(tmp_path: Path, changed: dict[str, str], is_other: bool) -> None:
    before, after = project(tmp_path / "before"), project(tmp_path / "after", **changed)
    same = code_hash(before, ["pipeline.entry"]) == code_hash(after, ["pipeline.entry"])
    assert same is not is_other


@pytest.mark.parametrize(
    "text", ["from .apart import value\n", "from . import apart\n", "import pipeline.apart as far\n"]
)
def test_every_form_of_an_import_is_followed(tmp_path: Path, text: str) -> None:
    root = project(tmp_path, entry=text)
    before = code_hash(root, ["pipeline.entry"])
    assert "pipeline.apart" in import_closure(root, ["pipeline.entry"])
    (root / "pipeline" / "apart.py").write_text("value = 2\n")
    assert code_hash(root, ["pipeline.entry"]) != before


def test_modules_alone_and_data_count(tmp_path: Path) -> None:
    root = project(tmp_path)
    data = tmp_path / "facts.csv"
    data.write_text("a")
    hashes = {code_hash(root, ["pipeline.entry"], alone=["pipeline.apart"], data=[data])}
    data.write_text("b")
    hashes.add(code_hash(root, ["pipeline.entry"], alone=["pipeline.apart"], data=[data]))
    (root / "pipeline" / "apart.py").write_text("value = 2\n")
    hashes.add(code_hash(root, ["pipeline.entry"], alone=["pipeline.apart"], data=[data]))
    assert len(hashes) == 3


def test_a_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pipeline\.absent"):
        code_hash(project(tmp_path), ["pipeline.absent"])


def test_the_closure_holds_what_decides_rows_and_no_settings(tmp_path: Path) -> None:
    closure = set(import_closure(ROOT, [ENTRY]))
    assert {
        "omop_schema.cdm_fields",
        "pipeline.core.mapping_options",
        "pipeline.fhir.datetimes",
        "pipeline.sql_on_fhir.compiler",
        "pipeline.transform.events",
        "pipeline.transform.rules.dates",
    } <= closure
    assert not closure & {
        "pipeline.core.settings",
        "pipeline.transform.mapping_check.check",
        "pipeline.landing.store",
        "pipeline.load.load",
        "pipeline.load.processes",
        "omop_schema.cdm",
    }
    found = rows_code_hash(tmp_path)
    assert len(found) == 64
    rows_code_hash.cache_clear()
    assert rows_code_hash(tmp_path) == found, "as it is kept"
    (tmp_path / "code_hash").write_text("other 0")
    rows_code_hash.cache_clear()
    assert rows_code_hash(tmp_path) == found, "what is kept of other files does not count"
    assert (tmp_path / "code_hash").stat().st_mode & 0o077 == 0


def _other_pythons() -> list[str]:
    named = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13)]
    found = [path for path in named if path] + [
        str(path) for path in Path.home().glob(".pyenv/versions/3.1[123]*/bin/python")
    ]
    return [
        path for path in found if subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0
    ]


#: A nested field at the end of a layout, and a character that newer versions of Unicode alone know.
UNLIKE = """
x = f'{a!r:>{w}} {"q"}' + 'it\\'s "q"' + 'é\\n\U0001fae8\u200b' + b'x'.decode()
def f(*a, **k): return (*a, 1), a[1:2, *a], lambda x, /, y=1, *, z: (yield), (-1)**2, 1e400
def g(): return f'{x:{y}}' f'{x:{y}{z}}' f'{{}}' f''
"""


def test_every_python_gives_the_same_value(tmp_path: Path) -> None:
    others = _other_pythons()
    if not others:
        pytest.skip("no other Python (3.11 to 3.13) is on this machine")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import code_hash;"
        " print([code_hash.code_hash(Path(root), [entry]) for root, entry in zip(sys.argv[2::2], sys.argv[3::2])])"
    )
    unlike = project(tmp_path, entry=UNLIKE)
    arguments = ["-c", code, str(Path(module.__file__).parent), str(ROOT), ENTRY, str(unlike), "pipeline.entry"]
    found = {
        python: subprocess.run([python, "-I", *arguments], capture_output=True, text=True, check=True).stdout
        for python in [sys.executable, *others]
    }
    assert len(set(found.values())) == 1, found
