"""kill -9 at any moment: the last committed snapshot stays restorable, nothing survives, the next run goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from crmbackup.core.errors import CrmBackupError, LocalError, StorageFull, StorageUnavailable
from crmbackup.core.events import Event, Notice, discard
from crmbackup.repository.chunks import pack_key
from crmbackup.repository.manifest import ManifestHeader
from tests.support_repo import Site, wait_until
from tests.support_traps import Kill, KillSelf, Raise, Trap, session, start

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.symlink"}
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: Each test takes every STRIDE-th moment, so that the work spreads over several processes.
STRIDE = 6


def changes_a_file(event: str, arguments: tuple[object, ...]) -> bool:
    return event in CHANGES or (event == "open" and bool(int(str(arguments[2] or 0)) & FOR_WRITING))


def backup_until(site: Site, kind: str, at: int, who: str, result: Path) -> None:
    """Take a snapshot; kill the main process or a worker just before it changes a file for the `at`-th time."""
    main, seen = os.getpid(), 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if (os.getpid() == main) == (who == "main") and changes_a_file(event, arguments):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        site.backup(kind)  # type: ignore[arg-type]
    except CrmBackupError as error:
        result.write_text(error.code)
    else:
        result.write_text(str(seen))


@dataclass(frozen=True)
class Scene:
    """A site before the run that is killed. image: what the database holds."""

    site: Site
    kind: str
    before: ManifestHeader | None
    image_before: bytes
    image: bytes

    def copy(self, root: Path) -> Scene:
        return Scene(self.site.copy(root), self.kind, self.before, self.image_before, self.image)

    def is_sound(self) -> None:
        """After a crash: what was committed is whole, and the next run is none the worse."""
        site = self.site
        headers = site.headers()
        assert site.check().findings == ()
        for header in headers:
            assert site.restored(header) == (self.image_before if header == self.before else self.image)
        assert headers[:1] == ((self.before,) if self.before else headers[:1])
        taken = site.backup("incremental").header
        assert site.restored(taken) == self.image
        assert site.headers() == (*headers, taken)
        assert not (site.state.directory / "pending.jsonl").exists()
        following = site.backup("incremental")
        assert (following.header.kind, following.added) == ("incremental", 0)
        assert site.check().findings == ()


def make_scene(root: Path, kind: str) -> Scene:
    site = Site.make(root)
    image_before = site.fill(rows=30)
    before = None if kind == "first" else site.backup("full").header
    image = image_before if kind == "first" else site.fill(rows=5)
    return Scene(site, "full" if kind == "first" else kind, before, image_before, image)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    made: dict[str, Scene] = {}

    def get(kind: str) -> Scene:
        if kind not in made:
            made[kind] = make_scene(tmp_path_factory.mktemp("crash") / kind, kind)
        return made[kind]

    return get


@pytest.mark.parametrize("first_moment", range(1, STRIDE + 1))
@pytest.mark.parametrize("kind", ["first", "full", "incremental"])
def test_a_run_killed_before_any_change_of_a_file(
    scenes: Callable[[str], Scene], tmp_path: Path, kind: str, first_moment: int
) -> None:
    original = scenes(kind)
    result = tmp_path / "result"
    moment = first_moment
    while not result.exists():
        scene = original.copy(tmp_path / str(moment))
        process = start(backup_until, scene.site, scene.kind, moment, "main", result)
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        wait_until(lambda pid=process.pid: session(pid) == [], "the workers to end")
        scene.is_sound()
        moment += STRIDE
    # The last run came to its end: so every moment up to there was tried.
    assert int(result.read_text()) < moment
    assert moment > STRIDE + first_moment, "the run changes more files than one"


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_worker_killed_before_any_change_of_a_file(scenes: Callable[[str], Scene], tmp_path: Path, kind: str) -> None:
    """As the kernel does when memory runs out: the run fails, says so, and commits nothing."""
    original = scenes(kind)
    for moment in range(1, 100):
        scene = original.copy(tmp_path / str(moment))
        result = scene.site.root / "result"
        process = start(backup_until, scene.site, scene.kind, moment, "worker", result)
        process.join()
        assert process.exitcode == 0
        assert session(process.pid or 0) == []
        if result.read_text() != "local":
            break
        assert scene.site.headers() == (scene.before,)
        scene.is_sound()
    assert moment > 3
    assert result.read_text().isdigit()


# Writes to storage of a run with several packs

PACKS = 3
MEBIBYTES = 60  # 24 MiB in each pack


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, bytes]:
    site = Site.make(tmp_path_factory.mktemp("crash") / "large")
    return site, site.fill(rows=30, mebibytes=MEBIBYTES)


def run_into(site: Site, trap_at: int, after: bool) -> None:
    """A full that dies at its `trap_at`-th write to storage, wherever that happens."""
    done = trap_at - 1 if trap_at <= PACKS else PACKS
    kill = Kill(os.getpid(), (site.state.directory / "pending.jsonl", done))
    site.backup("full", storage=Trap(site.spec, site.root / "count", trap_at, kill, after=after))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", range(1, PACKS + 2))
def test_a_run_killed_at_any_write_to_storage_is_continued(
    large: tuple[Site, bytes], tmp_path: Path, write: int, after: bool
) -> None:
    site, image = large[0].copy(tmp_path / "site"), large[1]
    process = start(run_into, site, write, after)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    wait_until(lambda: session(process.pid or 0) == [], "the workers to end")

    committed = after and write == PACKS + 1
    left = {path.name: path.stat().st_size for path in site.pack_paths()}
    assert len(left) == min(PACKS, write if after else write - 1)
    assert len(site.headers()) == committed
    assert site.check().findings == ()

    notices: list[Event] = []
    taken = site.backup("full", emit=notices.append)
    noted = 0 if committed else min(write - 1, PACKS)
    assert (noted > 0) == any("interrupted run" in event.text for event in notices if isinstance(event, Notice))
    names = {pack.pack_id for pack in taken.header.packs}
    assert len(names & left.keys()) == noted, "what the dead run had noted is used, and nothing else"
    assert len(names - left.keys()) == PACKS - noted
    assert taken.added == sum(pack.size for pack in taken.header.packs if pack.pack_id not in left)
    assert len(site.headers()) == committed + 1
    assert site.restored(taken.header) == image
    result = site.check()
    assert (result.findings, result.unreferenced) == ((), len(left) - noted if not committed else 0)
    # Packs that were once reused are no leftovers any more.
    again = site.backup("full")
    assert not {pack.pack_id for pack in again.header.packs} & {*names, *left}


@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("write", range(1, PACKS + 2))
def test_a_run_whose_storage_fails_at_any_write_is_continued(
    large: tuple[Site, bytes], tmp_path: Path, write: int, after: bool
) -> None:
    site, image = large[0].copy(tmp_path / "site"), large[1]
    error = StorageUnavailable("the answer is lost") if after else StorageFull("the storage is full")
    trap = Trap(site.spec, site.root / "count", write, Raise(error), after=after)
    with pytest.raises(type(error)):
        site.backup("full", storage=trap)
    committed = after and write == PACKS + 1
    assert len(site.headers()) == committed
    assert site.check().findings == ()
    taken = site.backup("full")
    assert site.restored(taken.header) == image
    assert site.check().findings == ()


@pytest.mark.parametrize("write", range(1, PACKS + 1))
def test_a_worker_killed_at_a_write_is_told_as_such(large: tuple[Site, bytes], tmp_path: Path, write: int) -> None:
    site = large[0].copy(tmp_path / "site")
    with pytest.raises(LocalError, match="worker"):
        site.backup("full", storage=Trap(site.spec, site.root / "count", write, KillSelf()), jobs=2)
    assert site.headers() == ()
    assert site.restored(site.backup("full").header) == large[1]


# Reading


def restore_into(site: Site, header: ManifestHeader, target: Path, read: int) -> None:
    site.restore(header, target, storage=Trap(site.spec, site.root / "count", read, Kill(os.getpid()), "get"))


def test_a_killed_restore_leaves_no_target_and_can_be_repeated(large: tuple[Site, bytes], tmp_path: Path) -> None:
    site, image = large[0].copy(tmp_path / "site"), large[1]
    header = site.backup("full").header
    for read in range(1, 7):
        target = tmp_path / f"{read}.db"
        (site.root / "count").unlink(missing_ok=True)
        process = start(restore_into, site, header, target, read)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        wait_until(lambda pid=process.pid: session(pid) == [], "the workers to end")
        assert not target.exists()
    assert read == 6, "repository.json, the manifest and three packs are read"
    assert target.read_bytes() == image


def test_a_restore_whose_worker_dies_says_so_and_leaves_nothing(large: tuple[Site, bytes], tmp_path: Path) -> None:
    site = large[0].copy(tmp_path / "site")
    header = site.backup("full").header
    trap = Trap(site.spec, site.root / "count", 4, KillSelf(), "get")
    error = site.restore_fails(header, storage=trap)
    assert (error.code, "worker" in error.what) == ("local", True)


def test_a_run_interrupted_by_its_listener_leaves_no_process(large: tuple[Site, bytes], tmp_path: Path) -> None:
    """What a signal handler does: an exception out of nowhere, in the main process."""
    site = large[0].copy(tmp_path / "site")

    def interrupt(event: Event) -> None:
        if site.pack_paths():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.backup("full", emit=interrupt, jobs=2)
    assert site.headers() == ()
    taken = site.backup("full", emit=discard)
    assert site.object_path(pack_key(taken.header.packs[0].pack_id)).exists()
    assert site.restored(taken.header) == large[1]
