"""A small host with a database and a repository, for tests of what is kept there.

site = Site.make(tmp_path)
site.fill(rows=50)
taken = site.backup("full")
site.restore(taken.header, target)
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import apsw

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import CrmBackupError
from crmbackup.core.events import Emit, discard
from crmbackup.engines.base import Workers
from crmbackup.engines.sqlite.engine import SqliteSource
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.target import SqliteTarget, SqliteTargetEngine
from crmbackup.operations.backup import BackupJob, BackupResult, run_backup
from crmbackup.operations.check import CheckResult, run_check
from crmbackup.operations.restore import RestoreResult, plan_restore, run_restore
from crmbackup.operations.shipping import StorageSpec
from crmbackup.operations.state import PolicyState
from crmbackup.operations.workers import ProcessWorkers
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Pin, Repository
from crmbackup.repository.signing import HostKey
from crmbackup.storage.address import LocalAddress
from crmbackup.storage.base import Storage

MIB = 1024 * 1024
PASSPHRASE = "correct horse battery staple"
PATIENCE = 30.0


class OpensStorage(Protocol):
    """What operations ask of a StorageSpec."""

    def open(self, *, read_only: bool = False) -> Storage: ...


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that happens outside of this process."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.001)


@dataclass(frozen=True)
class Site:
    """A host, its database and a repository, all below `root`. Can be sent to other processes."""

    root: Path
    seed: bytes
    host_key_text: str
    pin: Pin
    policy: str = "crm"

    @classmethod
    def make(cls, root: Path, *, passphrase: str | None = None, repository: Path | None = None) -> Site:
        """A new repository without snapshots. `repository`: where, if not below `root`; a link is left there then."""
        root.mkdir(parents=True, exist_ok=True)
        if repository:
            (root / "repo").symlink_to(repository, target_is_directory=True)
        else:
            (root / "repo").mkdir()
        identity, host_key = Identity.generate(), HostKey.generate()
        storage = StorageSpec(LocalAddress(root / "repo")).open()
        made = Repository.create(storage, identity, host_key, "crm-host", SystemClock().now())
        if passphrase:
            made.keep_wrapped_identity(passphrase)
        return cls(root, identity._seed, host_key.to_text(), made.pin)

    def copy(self, root: Path) -> Site:
        """The same site as it is now, below another directory."""
        shutil.copytree(self.root, root)
        return replace(self, root=root)

    def for_policy(self, policy: str) -> Site:
        return replace(self, policy=policy)

    @property
    def database(self) -> Path:
        return self.root / f"{self.policy}.db"

    @property
    def repo(self) -> Path:
        return self.root / "repo"

    @property
    def spec(self) -> StorageSpec:
        return StorageSpec(LocalAddress(self.repo), attempts=2)

    @property
    def identity(self) -> Identity:
        return Identity(self.seed)

    @property
    def host_key(self) -> HostKey:
        return HostKey.from_text(self.host_key_text)

    @property
    def state(self) -> PolicyState:
        return PolicyState(self.root / "state", self.pin.repository_id, self.policy)

    # The database

    def fill(self, *, rows: int = 0, mebibytes: int = 0) -> bytes:
        """Add rows, and bulk that compresses well; gives the bytes of the database file, which a restore must give."""
        with closing(apsw.Connection(str(self.database))) as db:
            db.pragma("synchronous", "off")
            db.execute(
                "CREATE TABLE IF NOT EXISTS contacts (id INTEGER PRIMARY KEY, name TEXT, photo BLOB);"
                "CREATE TABLE IF NOT EXISTS bulk (id INTEGER PRIMARY KEY, content BLOB)"
            )
            db.execute("BEGIN")
            values = ((f"näme {number}", os.urandom(200)) for number in range(rows))
            db.executemany("INSERT INTO contacts (name, photo) VALUES (?, ?)", values)
            db.executemany("INSERT INTO bulk (content) VALUES (zeroblob(?))", [(MIB,)] * mebibytes)
            db.execute("COMMIT")
        return self.database.read_bytes()

    # The operations

    def open(self, *, key: bool = True, pin: bool = True, storage: OpensStorage | None = None) -> Repository:
        """The repository as this host opens it, for writing too; with `key` also as its owner does."""
        return Repository.open(
            (storage or self.spec).open(),
            identity=self.identity if key else None,
            host_key=self.host_key,
            pin=self.pin if pin else None,
        )

    def backup(
        self,
        kind: Literal["full", "incremental"] = "incremental",
        *,
        storage: OpensStorage | None = None,
        state: PolicyState | None = None,
        emit: Emit = discard,
        jobs: int = 1,
        damaged: Collection[str] = (),
        make_workers: Callable[[int], AbstractContextManager[Workers]] = ProcessWorkers,
    ) -> BackupResult:
        """One locked run, without the identity, as on a host."""
        storage = storage or self.spec
        source = Source(self.database, 5.0, encrypted=False)
        repository = self.open(key=False, storage=storage)
        state = state or self.state
        job = BackupJob(
            policy=self.policy,
            engine="sqlite",
            make_source=lambda key: SqliteSource(source, "tables", key),
            repository=repository,
            storage=storage,  # type: ignore[arg-type]
            state=state,
            kind=kind,
            jobs=jobs,
            level=1,
            max_shrink=None,
            host="crm-host",
            tool="crmbackup test",
            clock=SystemClock(),
            emit=emit,
            damaged=damaged,
            make_workers=make_workers,
        )
        with closing(repository.storage), state.locked():
            return run_backup(job)

    def restore(
        self,
        header: ManifestHeader,
        target: Path,
        *,
        storage: OpensStorage | None = None,
        identity: Identity | None = None,
    ) -> RestoreResult:
        """Open with the identity alone, as on a new host, and restore."""
        storage = storage or self.spec
        with closing(storage.open(read_only=True)) as opened:
            repository = Repository.open(opened, identity=identity or self.identity)
            plan = plan_restore(repository, header, SqliteTarget(target), SystemClock().now())
            return run_restore(
                plan,
                repository,
                storage,  # type: ignore[arg-type]
                jobs=1,
                clock=SystemClock(),
                emit=discard,
            )

    def restored(self, header: ManifestHeader) -> bytes:
        """The bytes that a restore gives. It leaves nothing behind."""
        with self.scratch() as place:
            self.restore(header, place / "out.db")
            assert [path.name for path in place.iterdir()] == ["out.db"]
            return (place / "out.db").read_bytes()

    def restore_fails(self, header: ManifestHeader, **how: object) -> CrmBackupError:
        """The error of a restore that must fail and must leave nothing: no target, no temporary file."""
        with self.scratch() as place:
            try:
                self.restore(header, place / "out.db", **how)  # type: ignore[arg-type]
            except CrmBackupError as error:
                assert list(place.iterdir()) == []
                return error
            raise AssertionError("a damaged snapshot was restored")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        place = self.root / "scratch"
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place)

    def check(self, *, key: bool = True, read: bool = True, suspects: Collection[str] = ()) -> CheckResult:
        """The whole repository, all policies."""
        with closing(self.spec.open(read_only=True)) as opened:
            return run_check(
                Repository.open(opened, identity=self.identity if key else None),
                self.spec,
                policy=None,
                part=(1, 1) if read else None,
                jobs=1,
                clock=SystemClock(),
                emit=discard,
                make_target=lambda name: SqliteTargetEngine(),
                suspects=suspects,
            )

    def headers(self) -> tuple[ManifestHeader, ...]:
        """The complete, trusted snapshots of this policy, in order."""
        return self.open().snapshots(self.policy).headers

    # Looking at files

    def object_path(self, key: str) -> Path:
        return self.repo / key

    def pack_paths(self) -> list[Path]:
        return sorted(path for path in self.repo.glob("packs/*/*") if not path.name.startswith("~"))

    def pack_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.pack_paths())
