import inspect
import pickle
import sys
from pathlib import Path

import pytest

from ctrain.errors import UserCodeError
from ctrain.storage import Root
from ctrain.storage.code import load_attribute, pack_code, store_code


def test_packing_is_deterministic_and_leaves_out_hidden_files_and_tests(tmp_path: Path) -> None:
    for name in ("m.py", ".env/a.py", "tests/test_m.py", "data.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    first = pack_code(tmp_path)
    (tmp_path / "m.py").touch()
    assert pack_code(tmp_path) == first
    assert b"tests/" not in first
    assert b".env" not in first
    assert b"data.parquet" not in first


def store_versions(tmp_path: Path, *versions: dict[str, str]) -> tuple[Root, list[str]]:
    """Store one project, changed from version to version; gives the root and the hashes."""
    root, project = Root(tmp_path / "root"), tmp_path / "project"
    hashes = []
    for files in versions:
        for name, text in files.items():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text(text)
        hashes.append(store_code(root, project))
    return root, hashes


def test_two_versions_of_a_module_are_resident_at_once(tmp_path: Path) -> None:
    root, project = Root(tmp_path / "root"), tmp_path / "project"
    project.mkdir()
    hashes = []
    for value in (1, 2):
        (project / "sibling_of_m.py").write_text(f"value = {value}")
        (project / "m_of_user.py").write_text("from sibling_of_m import value\ndef give(): return value")
        hashes.append(store_code(root, project))
    first, second = (load_attribute(root, sha, "m_of_user:give") for sha in hashes)
    assert (first(), second()) == (1, 2)
    with pytest.raises(UserCodeError, match="it has: give"):
        load_attribute(root, hashes[0], "m_of_user:take")
    assert load_attribute(root, "", "math:pi") == load_attribute(root, hashes[0], "math:pi")


LAZY = """
def absolute():
    from lazy_helper import VALUE
    return VALUE

def plain():
    import lazy_package.deep
    return lazy_package.deep.VALUE

def renamed():
    import lazy_package.deep as deep
    return deep.VALUE

def relative():
    from lazy_package.relative import give
    return give()
"""
RELATIVE = """
def give():
    from . import deep
    from .deep import VALUE
    return deep.VALUE if deep.VALUE == VALUE else None
"""


@pytest.mark.parametrize("way", ["absolute", "plain", "renamed", "relative"])
def test_an_import_inside_a_function_finds_its_own_version_when_it_runs_later(
    tmp_path: Path, way: str
) -> None:
    constant = {"lazy_helper.py": "VALUE = {}", "lazy_package/deep.py": "VALUE = {}"}
    first, second = ({name: text.format(value) for name, text in constant.items()} for value in (1, 2))
    fixed = {"lazy.py": LAZY, "lazy_package/__init__.py": "", "lazy_package/relative.py": RELATIVE}
    root, hashes = store_versions(tmp_path, fixed | first, second)
    one, two = (load_attribute(root, sha256, f"lazy:{way}") for sha256 in hashes)
    assert (one(), two(), one()) == (1, 2, 1)
    assert not {"lazy", "lazy_helper", "lazy_package"} & sys.modules.keys()


def test_private_modules_keep_their_source_and_pickle_by_name(tmp_path: Path) -> None:
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Thing:\n    size: int\n"
    root, (sha256,) = store_versions(tmp_path, {"things_of_user.py": text})
    thing = load_attribute(root, sha256, "things_of_user:Thing")
    assert inspect.getsource(thing).endswith("class Thing:\n    size: int\n")
    assert pickle.loads(pickle.dumps(thing(3))) == thing(3)


def test_a_folder_that_is_no_package_does_not_hide_an_installed_one(tmp_path: Path) -> None:
    files = {
        "numpy/start.py": "",
        "ctrain/__init__.py": "raise RuntimeError",
        "scripts_of_user/run.py": "VALUE = 4",
        "uses.py": "import ctrain, numpy\nfrom scripts_of_user.run import VALUE\npi = numpy.pi + VALUE",
    }
    root, (sha256,) = store_versions(tmp_path, files)
    assert load_attribute(root, sha256, "uses:pi") == pytest.approx(7.14159, abs=1e-4)


def test_a_module_that_is_missing_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    files = {"half/__init__.py": "", "wants.py": "import half.other"}
    root, (sha256,) = store_versions(tmp_path, files)
    for path in ("half.other:x", "wants:x"):
        with pytest.raises(UserCodeError, match=r"no module named 'half\.other'"):
            load_attribute(root, sha256, path)
    with pytest.raises(UserCodeError, match="no module named 'nowhere_at_all'"):
        load_attribute(root, sha256, "nowhere_at_all:x")
