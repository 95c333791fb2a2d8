"""Storage that goes away midway and disks that are full: the right error, the last snapshot whole, nothing half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from crmbackup.cli.exit_codes import exit_code
from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import CrmBackupError, DiskFull, StorageFull, StorageUnavailable
from crmbackup.core.events import Event, Progress, Warned, discard
from crmbackup.core.secrets import Secret
from crmbackup.operations.shipping import StorageSpec
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository
from crmbackup.storage.address import Credentials, S3Address
from crmbackup.storage.base import Storage
from crmbackup.storage.wrappers.passing import Passing
from tests.servers import free_ports
from tests.support_repo import MIB, Site
from tests.support_traps import Rename, Trap, small_disk, use_up

PACKS = 3
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Scene:
    """A small full snapshot of what the database held, and a database that has grown to some packs since."""

    site: Site
    before: ManifestHeader
    image_before: bytes
    image: bytes

    def is_as_before(self) -> None:
        assert self.site.headers() == (self.before,)
        assert self.site.restored(self.before) == self.image_before
        assert self.site.check().findings == ()

    def goes_on(self) -> None:
        taken = self.site.backup("incremental")
        assert taken.header.parent == self.before.snapshot_id
        assert self.site.restored(taken.header) == self.image
        assert self.site.check().findings == ()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    site = Site.make(tmp_path / "site")
    image_before = site.fill(rows=30)
    before = site.backup("full").header
    return Scene(site, before, image_before, site.fill(mebibytes=24 * (PACKS - 1)))


# A directory that is renamed or unmounted


@pytest.mark.parametrize("write", range(1, PACKS + 2))
def test_a_directory_that_vanishes_before_a_write(scene: Scene, tmp_path: Path, write: int) -> None:
    site, away = scene.site, tmp_path / "away"
    trap = Trap(site.spec, tmp_path / "count", write, Rename(site.repo, away))
    with pytest.raises(StorageUnavailable) as caught:
        site.backup("incremental", storage=trap)
    assert exit_code(caught.value) == 4
    assert not site.repo.exists(), "it is not made again behind the user's back"
    away.rename(site.repo)
    scene.is_as_before()
    scene.goes_on()


def test_another_directory_in_its_place_is_not_written_to(scene: Scene, tmp_path: Path) -> None:
    """As when a disk is unmounted and its mount point, an empty directory, appears."""
    site, away = scene.site, tmp_path / "away"

    def replace_it(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "ship" and not away.exists():
            site.repo.rename(away)
            site.repo.mkdir()

    with pytest.raises(StorageUnavailable):
        site.backup("incremental", emit=replace_it)
    assert list(site.repo.iterdir()) == []
    site.repo.rmdir()
    away.rename(site.repo)
    scene.is_as_before()
    scene.goes_on()


@pytest.mark.parametrize("read", [1, 2, 3])
def test_a_directory_that_vanishes_during_a_restore(scene: Scene, tmp_path: Path, read: int) -> None:
    site, away = scene.site, tmp_path / "away"
    trap = Trap(site.spec, tmp_path / "count", read, Rename(site.repo, away), "get")
    error = site.restore_fails(scene.before, storage=trap)
    assert (error.code, exit_code(error)) == ("storage-unavailable", 4)
    away.rename(site.repo)
    scene.is_as_before()


# Disks that are full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "4m") as path:
        yield path


def test_a_full_storage(disk: Path, tmp_path: Path) -> None:
    (disk / "repo").mkdir()
    site = Site.make(tmp_path / "site", repository=disk / "repo")
    image_before = site.fill(rows=2000)
    before = site.backup("full").header
    scene = Scene(site, before, image_before, site.fill(rows=20_000))
    used = sorted(disk.rglob("*"))
    with pytest.raises(StorageFull) as caught:
        site.backup("incremental")
    assert exit_code(caught.value) == 4
    assert [path for path in sorted(disk.rglob("*")) if path.is_file()] == [path for path in used if path.is_file()]
    scene.is_as_before()


@pytest.mark.parametrize("write", [1, 2], ids=["pack", "manifest"])
def test_a_storage_without_room_for_a_single_byte(disk: Path, tmp_path: Path, write: int) -> None:
    (disk / "repo").mkdir()
    site = Site.make(tmp_path / "site", repository=disk / "repo")
    image_before = site.fill(rows=30)
    scene = Scene(site, site.backup("full").header, image_before, site.fill(rows=30))

    with pytest.raises(StorageFull):
        site.backup("incremental", storage=Trap(site.spec, tmp_path / "count", write, UseUp(disk)))
    (disk / "filler").unlink()
    scene.is_as_before()
    scene.goes_on()


@dataclass(frozen=True)
class UseUp:
    """Fill a disk."""

    directory: Path

    def __call__(self) -> None:
        use_up(self.directory)


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_full_disk_of_the_local_state(scene: Scene, disk: Path, kind: str) -> None:
    site = scene.site
    _move_state(site, disk)
    filler = use_up(disk)
    with pytest.raises(DiskFull) as caught:
        site.backup(kind)  # type: ignore[arg-type]
    assert exit_code(caught.value) == 9
    filler.unlink()
    scene.is_as_before()
    scene.goes_on()


def _move_state(site: Site, disk: Path) -> None:
    state = site.root / "state"
    subprocess.run(["cp", "-a", str(state), str(disk / "state")], check=True)
    state.rename(site.root / "old-state")
    state.symlink_to(disk / "state", target_is_directory=True)


def test_a_disk_of_the_local_state_with_room_for_a_part_of_it(disk: Path, tmp_path: Path) -> None:
    """However far a run comes: it fails with the right error and committed nothing, or its snapshot is whole."""
    site = Site.make(tmp_path / "site")
    image = site.fill(rows=500)
    known, outcomes = [site.backup("full").header], []
    _move_state(site, disk)
    filler = use_up(disk)
    while "remembered" not in outcomes:
        os.truncate(filler, filler.stat().st_size - PAGE)
        events: list[Event] = []
        try:
            known.append(site.backup("full", emit=events.append).header)
            outcomes.append("committed" if any(isinstance(event, Warned) for event in events) else "remembered")
        except DiskFull:
            outcomes.append("full")
        assert site.headers() == tuple(known)
        assert site.restored(known[-1]) == image
    assert outcomes[0] == "full"
    taken = site.backup("incremental")
    assert taken.header.kind == "incremental"
    assert site.check().findings == ()


def test_a_disk_that_fills_up_while_the_first_snapshot_is_taken(disk: Path, tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    image = site.fill(rows=30, mebibytes=30)
    (disk / "state").mkdir()
    (site.root / "state").symlink_to(disk / "state", target_is_directory=True)

    def fill(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "ship":
            use_up(disk)

    with pytest.raises(DiskFull):
        site.backup("full", emit=fill)
    assert site.headers() == ()
    (disk / "filler").unlink()
    assert site.restored(site.backup("full").header) == image


class FillsAtCommit(Passing):
    """Fills a disk when the manifest is safe."""

    def __init__(self, inner: Storage, disk: Path) -> None:
        super().__init__(inner)
        self._disk = disk

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        super().put(key, data, if_absent=if_absent)
        if key.startswith("snapshots/"):
            use_up(self._disk)


@dataclass(frozen=True)
class FillingSpec:
    """Opens it."""

    spec: StorageSpec
    disk: Path

    def open(self, *, read_only: bool = False) -> Storage:
        return FillsAtCommit(self.spec.open(read_only=read_only), self.disk)


def test_a_snapshot_that_is_committed_succeeds_even_if_it_cannot_be_remembered(scene: Scene, disk: Path) -> None:
    site = scene.site
    _move_state(site, disk)
    events: list[Event] = []
    taken = site.backup("incremental", storage=FillingSpec(site.spec, disk), emit=events.append)
    assert [event.code for event in events if isinstance(event, Warned)] == ["state-not-saved"]
    assert site.restored(taken.header) == scene.image
    (disk / "filler").unlink()
    image = site.fill(rows=1)
    following = site.backup("incremental")
    assert following.header.parent == scene.before.snapshot_id, "the last one that is remembered"
    assert site.restored(following.header) == image
    assert site.restored(taken.header) == scene.image
    assert site.check().findings == ()


def test_a_full_disk_of_a_restore(scene: Scene, disk: Path) -> None:
    site = scene.site
    taken = site.backup("full").header
    with pytest.raises(DiskFull) as caught:
        site.restore(taken, disk / "out.db")
    assert exit_code(caught.value) == 9
    assert list(disk.iterdir()) == []
    site.restore(scene.before, disk / "small.db")
    assert (disk / "small.db").read_bytes() == scene.image_before
    use_up(disk)
    with pytest.raises(DiskFull):
        site.restore(scene.before, disk / "other.db")
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "small.db"]


# A server that dies


class Server:
    """An S3 server of our own that can be killed and started again with what it kept."""

    def __init__(self, directory: Path) -> None:
        (self.port,) = free_ports(1)
        self._directory = directory
        (directory / "bucket").mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sys.executable).with_name("rclone")
        options = ["--config", str(self._directory.with_name("none")), "--auth-key", "key,secret"]
        self._process = subprocess.Popen(
            [str(program), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", *options, str(self._directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"HOME": str(self._directory), "PATH": os.environ["PATH"]},
        )
        with self.storage(attempts=100) as storage:
            assert list(storage.list("nothing/")) == []

    def kill(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def spec(self, attempts: int) -> StorageSpec:
        address = S3Address("bucket", endpoint=f"http://127.0.0.1:{self.port}", connect_timeout=5, read_timeout=5)
        return StorageSpec(address, Credentials(Secret("key"), Secret("secret")), attempts=attempts)

    @contextmanager
    def storage(self, attempts: int = 2) -> Iterator[Storage]:
        storage = self.spec(attempts).open()
        try:
            yield storage
        finally:
            storage.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Remote:
    """A site whose repository is on the server."""

    site: Site
    server: Server
    before: ManifestHeader
    image_before: bytes

    def backup(self, attempts: int, emit: Callable[[Event], None] = discard) -> ManifestHeader:
        return self.site.backup("full", storage=self.server.spec(attempts), emit=emit).header

    def restored(self, header: ManifestHeader) -> bytes:
        with self.site.scratch() as place:
            self.site.restore(header, place / "out.db", storage=self.server.spec(2))
            return (place / "out.db").read_bytes()

    def headers(self) -> tuple[ManifestHeader, ...]:
        with self.server.storage() as storage:
            return Repository.open(storage, identity=self.site.identity).snapshots("crm").headers


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> Remote:
    local = Site.make(tmp_path / "site")
    with server.storage() as storage:
        made = Repository.create(storage, Identity(local.seed), local.host_key, "crm-host", SystemClock().now())
    site = Site(local.root, local.seed, local.host_key_text, made.pin)
    image_before = site.fill(rows=30)
    before = site.backup("full", storage=server.spec(2)).header
    return Remote(site, server, before, image_before)


def test_a_server_that_dies_midway_fails_the_run_and_loses_nothing(remote: Remote) -> None:
    image = remote.site.fill(mebibytes=24 * (PACKS - 1))

    def kill(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "ship":
            remote.server.kill()

    with pytest.raises(StorageUnavailable) as caught:
        remote.backup(2, kill)
    assert exit_code(caught.value) == 4
    assert "tried 2 times" in str(caught.value)
    error: CrmBackupError = remote.site.restore_fails(remote.before, storage=remote.server.spec(1))
    assert error.code == "storage-unavailable"

    remote.server.start()
    assert remote.headers() == (remote.before,)
    assert remote.restored(remote.before) == remote.image_before
    taken = remote.backup(2)
    assert remote.restored(taken) == image


def test_a_server_that_comes_back_in_time_costs_only_time(remote: Remote) -> None:
    image = remote.site.fill(mebibytes=24 * (PACKS - 1))
    killed: list[Event] = []

    def kill(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "ship" and not killed:
            killed.append(event)
            remote.server.kill()
            remote.server.start()

    taken = remote.backup(20, kill)
    assert killed
    assert remote.headers() == (remote.before, taken)
    assert remote.restored(taken) == image
    assert taken.added_size < 24 * MIB
