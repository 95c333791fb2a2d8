"""Disks that are full, gone, closed to us, or full of surprises; writers that die."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from crmbackup.core.errors import (
    CrmBackupError,
    ObjectNotFound,
    StorageDenied,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
)
from crmbackup.storage.base import Storage
from crmbackup.storage.local import STALE_SECONDS, LocalStorage, storage_error
from crmbackup.storage.ranges import beyond_end

PROCESSES = multiprocessing.get_context("spawn")


def _calls(storage: Storage) -> list[Callable[[], object]]:
    return [
        lambda: storage.put("k", b"data"),
        lambda: storage.put("new/k", b"data", if_absent=True),
        lambda: storage.get("k"),
        lambda: storage.stat("k"),
        lambda: list(storage.list("")),
        lambda: storage.delete("k"),
    ]


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


class TestVanishedRoot:
    def test_nothing_is_made_in_its_place(self, tmp_path: Path) -> None:
        root = tmp_path / "disk"
        storage = LocalStorage(root, create=True)
        storage.put("k", b"data")
        root.rename(tmp_path / "elsewhere")
        for call in _calls(storage):
            with pytest.raises(StorageUnavailable, match="no longer"):
                call()
        assert not root.exists()
        (tmp_path / "elsewhere").rename(root)
        assert storage.get("k") == b"data"

    def test_another_directory_in_its_place_is_not_it(self, tmp_path: Path) -> None:
        """As under an unmounted disk."""
        root = tmp_path / "disk"
        storage = LocalStorage(root, create=True)
        storage.put("k", b"data")
        root.rename(tmp_path / "elsewhere")
        root.mkdir()
        for call in _calls(storage):
            with pytest.raises(StorageUnavailable, match="no longer"):
                call()
        assert list(root.iterdir()) == []

    def test_a_file_is_no_root(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for create in (False, True):
            with pytest.raises(StorageMisconfigured):
                LocalStorage(tmp_path / "file", create=create)
        with pytest.raises(StorageMisconfigured):
            LocalStorage(tmp_path / "file" / "below", create=True)

    def test_a_root_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to("disk")
        LocalStorage(tmp_path / "link", create=True).put("a/b", b"data")
        assert _files(tmp_path / "disk") == ["a/b"]

    def test_what_is_made_is_private(self, tmp_path: Path) -> None:
        LocalStorage(tmp_path / "x" / "y", create=True).put("a/b", b"data")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
        assert modes == {"x": 0o700, "y": 0o700, "a": 0o700, "b": 0o600}


class TestStrangeFiles:
    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        root = tmp_path / "root"
        storage = LocalStorage(root, create=True)
        (root / "dir").symlink_to(outside)
        (root / "file").symlink_to(outside / "secret")
        assert list(storage.list("")) == []
        for key in ("dir/secret", "file"):
            with pytest.raises(ObjectNotFound):
                storage.get(key)
            with pytest.raises(ObjectNotFound):
                storage.stat(key)
            storage.delete(key)
        for if_absent in (False, True):
            with pytest.raises(StorageMisconfigured, match="dir/new"):
                storage.put("dir/new", b"data", if_absent=if_absent)
        storage.put("file", b"data")
        assert storage.get("file") == b"data"
        assert _files(outside) == ["secret"]
        assert (outside / "secret").read_bytes() == b"secret"

    def test_what_is_no_object_is_not_seen(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "lost+found").mkdir()
        (tmp_path / "lost+found" / "x").write_bytes(b"")
        (tmp_path / "a b").write_bytes(b"")
        (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"")
        (tmp_path / "dir").mkdir()
        storage = LocalStorage(tmp_path)
        storage.put("x", b"data")
        assert [info.key for info in storage.list("")] == ["x"]
        for key in ("fifo", "dir"):
            with pytest.raises(ObjectNotFound):
                storage.get(key)
            with pytest.raises(ObjectNotFound):
                storage.stat(key)
            storage.delete(key)
        assert (tmp_path / "dir").is_dir()

    @pytest.mark.parametrize("if_absent", [False, True])
    def test_a_key_that_is_the_directory_of_another(self, tmp_path: Path, if_absent: bool) -> None:
        storage = LocalStorage(tmp_path)
        storage.put("a/b", b"data")
        with pytest.raises(CrmBackupError):
            storage.put("a", b"data", if_absent=if_absent)
        with pytest.raises(StorageMisconfigured):
            storage.put("a/b/c", b"data", if_absent=if_absent)
        assert _files(tmp_path) == ["a/b"]

    def test_names_that_are_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(StorageMisconfigured):
            LocalStorage(tmp_path).put("a" * 300, b"data")
        assert _files(tmp_path) == []

    def test_emptied_directories_may_go_at_any_time(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        storage.put("a/b/c", b"data")
        storage.delete("a/b/c")
        (tmp_path / "a" / "b").rmdir()
        (tmp_path / "a").rmdir()
        storage.put("a/b/c", b"again")
        assert storage.get("a/b/c") == b"again"


class TestDeadWriters:
    def test_what_they_left_is_not_seen_and_goes_after_a_day(self, tmp_path: Path) -> None:
        for place in ("", "packs", "packs/ab"):
            (tmp_path / place).mkdir(exist_ok=True)
            for name, age in (("~old", STALE_SECONDS + 60), ("~young", STALE_SECONDS - 600)):
                path = tmp_path / place / name
                path.write_bytes(b"part of an object")
                moment = path.stat().st_mtime - age
                os.utime(path, (moment, moment))
        storage = LocalStorage(tmp_path)
        assert list(storage.list("")) == []
        storage.put("packs/ab/x", b"data")
        assert _files(tmp_path) == ["packs/ab/x", "packs/ab/~young", "packs/~old", "packs/~young", "~old", "~young"]
        storage.put("x", b"data")
        assert "~old" not in _files(tmp_path)
        assert [info.key for info in storage.list("")] == ["packs/ab/x", "x"]

    @pytest.mark.parametrize("if_absent", [False, True])
    def test_a_killed_writer_leaves_whole_objects_only(self, tmp_path: Path, if_absent: bool) -> None:
        reader = LocalStorage(tmp_path)
        writer = PROCESSES.Process(target=_write_for_ever, args=(tmp_path, if_absent))
        writer.start()
        try:
            while len(list(reader.list("w/"))) < 20:
                assert writer.is_alive()
        finally:
            writer.kill()
            writer.join()
            writer.close()
        for info in reader.list("w/"):
            data = reader.get(info.key)
            assert hashlib.sha256(data[32:]).digest() == data[:32]
            assert len(data) == info.size == 300_032


def _write_for_ever(root: Path, if_absent: bool) -> None:
    storage = LocalStorage(root)
    number = 0
    while True:
        body = os.urandom(300_000)
        storage.put(f"w/{number % 7}/{number}", hashlib.sha256(body).digest() + body, if_absent=if_absent)
        number += 1


def _in_process(function: Callable[..., object], *arguments: object) -> object:
    """Its result from a process of its own, whose limits and rights it may spoil. Raises what it raises."""
    with PROCESSES.Pool(1) as pool:
        return pool.apply(function, arguments)


def _put_with_small_quota(root: Path) -> None:
    storage = LocalStorage(root)
    storage.put("small", bytes(1000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    storage.put("large", bytes(1_000_000))


def test_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="large"):
        _in_process(_put_with_small_quota, tmp_path)
    assert _files(tmp_path) == ["small"]


def _without_rights(root: Path, call: int) -> None:
    storage = LocalStorage(root)
    root.chmod(0o000)
    if os.getuid() == 0:
        os.setuid(65534)
    _calls(storage)[call]()


@pytest.mark.parametrize("call", range(6))
def test_no_rights(tmp_path: Path, call: int) -> None:
    root = tmp_path / "root"
    LocalStorage(root, create=True).put("k", b"data")
    try:
        with pytest.raises(StorageDenied):
            _in_process(_without_rights, root, call)
    finally:
        root.chmod(0o700)
    assert _files(root) == ["k"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EACCES, StorageDenied),
        (errno.EPERM, StorageDenied),
        (errno.EROFS, StorageDenied),
        (errno.EISDIR, StorageMisconfigured),
        (errno.ENAMETOOLONG, StorageMisconfigured),
        (errno.EIO, StorageUnavailable),
        (errno.ESTALE, StorageUnavailable),
        (errno.EMFILE, StorageUnavailable),
        (errno.ETIMEDOUT, StorageUnavailable),
    ],
)
def test_what_the_system_says_is_told_in_our_terms(number: int, kind: type[CrmBackupError]) -> None:
    error = storage_error(OSError(number, os.strerror(number)), "write packs/x to /srv")
    assert type(error) is kind
    assert error.what == "cannot write packs/x to /srv"
    assert error.why == os.strerror(number)
    assert error.hint


def test_a_short_read_says_what_was_asked() -> None:
    assert "5 bytes from byte 3 of k" in str(beyond_end("k", 3, 5, 7))
    assert "from byte 3 of k" in str(beyond_end("k", 3, None))


def test_a_repository_that_was_moved_to_where_no_hard_links_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this host knows of the address is of the old file system."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    storage = LocalStorage(tmp_path / "repository", create=True)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageMisconfigured, match="cannot make hard links") as caught:
        storage.put("k", b"data", if_absent=True)
    assert "init POLICY --join" in caught.value.hint
    assert _files(tmp_path) == []
