import hashlib
import os
import pickle
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

from ctrain.errors import CorruptArtifactError, MissingArtifactError, StorageError
from ctrain.records import LiveDocument, Slot
from ctrain.storage import ArtifactStore, Root, file_sha256, open_root, write_atomically

MIB = 1 << 20


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "store")
    else:
        folder = f"/{uuid.uuid4().hex}"
        yield f"memory://{folder}"
        memory = fsspec.filesystem("memory")
        if memory.exists(folder):
            memory.rm(folder, recursive=True)


@pytest.fixture
def store(url: str) -> ArtifactStore:
    return ArtifactStore(url)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.delenv("CTRAIN_STORE", raising=False)
    return Root(tmp_path / "root")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Artifacts, on a local folder and on an object store


def test_bytes_come_back_under_their_hash(store: ArtifactStore) -> None:
    store.write("v1/weights", b"\x00weights\xff")
    assert store.read("v1/weights", sha256(b"\x00weights\xff")) == b"\x00weights\xff"
    assert store.read("v1/weights") == b"\x00weights\xff"
    assert store.exists("v1/weights")


def test_bytes_with_another_hash_are_refused_by_name(store: ArtifactStore) -> None:
    store.write("v1/weights", b"changed")
    with pytest.raises(CorruptArtifactError) as caught:
        store.read("v1/weights", sha256(b"original"))
    assert caught.value.path == store.path("v1/weights")
    assert (caught.value.expected, caught.value.found) == (sha256(b"original"), sha256(b"changed"))
    assert isinstance(caught.value, ValueError)


def test_what_is_missing_is_named(store: ArtifactStore) -> None:
    assert not store.exists("v1/none")
    with pytest.raises(MissingArtifactError) as caught:
        store.read("v1/none")
    assert caught.value.path == store.path("v1/none")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(MissingArtifactError):
        list(store.chunks("v1/none"))


def test_a_second_write_replaces_the_first_whole(store: ArtifactStore) -> None:
    store.write("live.json", b"a long first document")
    store.write("live.json", b"short")
    assert store.read("live.json") == b"short"
    assert store.names() == ["live.json"]


@pytest.mark.parametrize("size", [0, 1, MIB, 2 * MIB + 3])
def test_chunks_are_the_file_in_pieces_of_a_mebibyte(store: ArtifactStore, size: int) -> None:
    data = os.urandom(size)
    store.write("weights", data)
    pieces = list(store.chunks("weights"))
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces[:-1]] == [MIB] * (len(pieces) - 1)
    assert all(pieces)


def test_names_are_sorted_and_a_folder_that_is_not_there_has_none(store: ArtifactStore) -> None:
    for name in ("b/x", "a/x", "a/y", "c"):
        store.write(name, b"1")
    assert store.names() == ["a", "b", "c"]
    assert store.names("a") == ["x", "y"]
    assert store.names("none") == []


def test_a_store_travels_as_its_url(store: ArtifactStore) -> None:
    store.write("x", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.read("x")) == (store.url, b"1")


# Local writes


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "live.json"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["live.json"]


def test_a_reader_beside_many_writes_sees_only_whole_files(tmp_path: Path) -> None:
    store, bodies = ArtifactStore(str(tmp_path)), [bytes([n]) * 50_000 for n in range(4)]
    store.write("live", bodies[0])
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(store.write, "live", body) for body in bodies * 10]
        while not all(write.done() for write in writes):
            assert store.read("live") in bodies
        for write in writes:
            write.result()
    assert store.names() == ["live"]


def test_the_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(MIB + 1)
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == sha256(data)


# The root


@pytest.mark.parametrize("path", ["root", "./root", "../root", ""])
def test_a_relative_root_is_refused_with_the_remedy(path: str) -> None:
    with pytest.raises(StorageError, match=r"is relative.*CTRAIN_ROOT"):
        Root(Path(path))


def test_a_root_in_the_folder_of_a_ray_session_is_refused() -> None:
    folder = "/tmp/ray/session_2026-01-01/runtime_resources/working_dir_files/_ray_pkg_1/root"
    with pytest.raises(StorageError, match="deleted with the session"):
        Root(Path(folder))


def test_the_root_is_the_argument_else_the_environment_else_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CTRAIN_ROOT", raising=False)
    monkeypatch.delenv("CTRAIN_STORE", raising=False)
    assert open_root().path == tmp_path / ".ctrain"
    monkeypatch.setenv("CTRAIN_ROOT", "/srv/ctrain")
    assert open_root().path == Path("/srv/ctrain")
    assert open_root("~/own").path == tmp_path / "own"
    monkeypatch.setenv("CTRAIN_ROOT", "srv")
    with pytest.raises(StorageError, match="relative"):
        open_root()


def test_models_code_and_live_documents_go_to_the_store_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTRAIN_STORE", "memory://bucket")
    monkeypatch.delenv("CTRAIN_JOURNAL", raising=False)
    root = open_root(str(tmp_path))
    assert root.models.path("v1/manifest.json") == "memory://bucket/models/v1/manifest.json"
    assert (root.code.url, root.live.url) == ("memory://bucket/code", "memory://bucket/live")
    assert root.pipeline("p").journal_url() == f"sqlite:///{tmp_path}/p/journal.db"
    monkeypatch.setenv("CTRAIN_JOURNAL", "postgresql://db")
    assert root.pipeline("p").journal_url() == "postgresql://db"


# The operator's token


def test_the_token_is_made_once_for_the_owner_alone(root: Root) -> None:
    token = root.token()
    assert len(token) == 64
    assert root.token() == token
    assert Root(root.path).token() == token
    assert (root.path / "token").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in root.path.iterdir()] == ["token"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_token_that_others_may_read_is_refused_with_the_remedy(root: Root, mode: int) -> None:
    root.token()
    (root.path / "token").chmod(mode)
    with pytest.raises(StorageError, match=f"mode {mode:04o}.*chmod 600 {root.path}/token"):
        root.token()
    (root.path / "token").chmod(0o600)
    assert root.token()


def test_first_calls_at_once_get_one_token(root: Root) -> None:
    for _ in range(20):
        barrier = Barrier(4)

        def first(barrier: Barrier = barrier) -> str:
            barrier.wait()
            return root.token()

        with ThreadPoolExecutor(4) as pool:
            tokens = {call.result() for call in [pool.submit(first) for _ in range(4)]}
        assert tokens == {(root.path / "token").read_text()}
        assert [entry.name for entry in root.path.iterdir()] == ["token"]
        (root.path / "token").unlink()


# The live document


def test_a_live_document_comes_back_as_it_was_written(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, store=url)
    champion, challenger = Slot("a1", "v7", sha256(b"7")), Slot("b2", "v8", sha256(b"8"))
    document = LiveDocument(
        "flights-late", 3, 12, champion, challenger, None, "r1", 0.05, "challenger", (0.01, 0.02, 0.05)
    )
    root.write_live(document)
    assert root.read_live("flights-late") == document
    newer = LiveDocument("flights-late", 3, 13, challenger, previous=champion)
    root.write_live(newer)
    assert root.read_live("flights-late") == newer
    assert root.live.names() == ["flights-late.json"]


def test_a_pipeline_that_no_controller_ever_wrote_has_no_live_document(root: Root) -> None:
    assert root.read_live("none") is None
