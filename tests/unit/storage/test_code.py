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
