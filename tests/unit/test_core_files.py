"""Durable files: the old content or the new, never a part, and nothing left behind."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import DiskFull, LocalDenied, LocalError
from crmbackup.core.files import local_error, make_private_directory, sync_directory, write_durably


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_is_private(tmp_path: Path) -> None:
    write_durably(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert mode(tmp_path / "key") == 0o600


def test_the_mode_can_be_chosen_and_is_never_wider(tmp_path: Path) -> None:
    write_durably(tmp_path / "report", b"x", mode=0o640)
    assert mode(tmp_path / "report") == 0o640


def test_a_file_is_replaced_and_nothing_is_left_behind(tmp_path: Path) -> None:
    for content in (b"first", b"", b"third" * 10_000):
        write_durably(tmp_path / "state", content)
        assert (tmp_path / "state").read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_replacing_a_link_leaves_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "link").symlink_to("target")
    write_durably(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"target"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_a_file_that_cannot_be_replaced_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "child").touch()
    with pytest.raises(LocalError, match=r"cannot write .*taken: "):
        write_durably(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_missing_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"cannot write .*: No such file or directory"):
        write_durably(tmp_path / "absent" / "file", b"x")


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    # A real refusal of the kernel in a process of its own: no file may grow beyond 64 KiB there.
    target = tmp_path / "state"
    target.write_bytes(b"old")
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        from crmbackup.core.errors import LocalError
        from crmbackup.core.files import write_durably
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
        try:
            write_durably(Path(sys.argv[1]), bytes(1 << 20))
        except LocalError as error:
            print(error.code)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # whoever measures coverage writes files at the end
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, cwd=root)
    assert (done.stdout, done.stderr) == ("local\n", "")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_readers_see_the_old_or_the_new_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = {bytes([number]) * 50_000 for number in range(4)}
    write_durably(path, bytes([0]) * 50_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            for content in sorted(contents):
                write_durably(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            assert path.read_bytes() in contents
            assert writer.is_alive() or done.is_set()
    finally:
        writer.join()


def test_a_private_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o700
    assert mode(tmp_path / "a" / "b") == 0o700
    make_private_directory(tmp_path / "a" / "b")


def test_a_file_in_the_way_of_a_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(LocalError, match="cannot create the directory"):
        make_private_directory(tmp_path / "a")
    with pytest.raises(LocalError, match="cannot create the directory"):
        make_private_directory(tmp_path / "a" / "b")


def test_syncing_a_directory_needs_a_directory(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, LocalDenied),
        (errno.EPERM, LocalDenied),
        (errno.EROFS, LocalDenied),
        (errno.EIO, LocalError),
        (errno.ENOENT, LocalError),
    ],
)
def test_what_the_system_says_becomes_an_error_of_ours(number: int, kind: type[LocalError]) -> None:
    error = local_error(OSError(number, os.strerror(number)), "write /srv/x")
    assert type(error) is kind
    assert str(error) == f"cannot write /srv/x: {os.strerror(number)}"


def test_an_error_without_a_number_keeps_its_text() -> None:
    assert str(local_error(OSError("odd"), "read x")) == "cannot read x: odd"


@given(content=st.binary(max_size=5_000))
def test_what_was_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "roundtrip"
    write_durably(path, content)
    assert path.read_bytes() == content
