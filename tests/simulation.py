"""Hosts that back up, forget and prune one repository side by side, in simulated time, with crashes and wrong clocks.

The code is the real one: run_backup, plan_forget, run_forget, plan_prune, run_prune and Repository, over a storage in
memory. Only the database is a stand-in. Every call to the storage is a step: the host that makes it waits there for a
random time while others go on, or dies before or after it. Hosts are greenlets, so that exactly one runs at any time and
a seed gives the same history again.

After every step: no manifest in storage lacks a pack, and no policy has fewer snapshots than min_copies. At the end of
a world, with clocks set right: nothing unneeded is left, and every snapshot opens.

One of the two clocks that a mark is judged by may be wrong at a time, hosts' or storage's, by up to 40 days; both
together may not: that is what the protocol asks of the world.
"""

from __future__ import annotations

import argparse
import heapq
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from greenlet import GreenletExit, greenlet

from crmbackup.core.errors import CrmBackupError
from crmbackup.core.events import discard
from crmbackup.operations.backup import BackupJob, run_backup
from crmbackup.operations.forget import ForgetRules, careful_now, plan_forget, run_forget
from crmbackup.operations.prune import PruneRules, plan_prune, run_prune
from crmbackup.operations.state import PolicyState
from crmbackup.policy.model import LEAST_GRACE, Retention
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import read_header
from crmbackup.repository.repository import COMMIT_SECONDS, Repository
from crmbackup.repository.signing import HostKey
from crmbackup.storage.base import ObjectInfo, Storage
from crmbackup.storage.wrappers.passing import Passing
from tests.memory import MemoryStorage
from tests.simulated_source import InlineWorkers, StandIn

START = datetime(2026, 1, 1, tzinfo=UTC)
#: How long a put may be under way: what is left of the grace period when the commit was begun at the last moment.
LONGEST_PUT = LEAST_GRACE.total_seconds() - COMMIT_SECONDS - 600
POLICIES = ("crm", "shop")
RETENTION = Retention(keep_last=2, daily=2, min_copies=2)


class Violation(Exception):
    """The simulation found that a promise was broken."""


class Crashed(BaseException):
    """A job died: no handler for Exception may see this."""


@dataclass(frozen=True)
class Rules:
    """What is simulated. With anything but the defaults a safety rule is off, which must be found out."""

    grace: timedelta = LEAST_GRACE
    repository: type[Repository] = Repository


@dataclass
class World:
    """One repository, its hosts and their time. storage_off, host_off: how wrong clocks are."""

    seed: int
    rules: Rules
    scratch: Path
    now: datetime = START
    steps: int = 0
    storage_off: timedelta = timedelta()
    host_off: Counter[str] = field(default_factory=Counter)  # type: ignore[type-arg]
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.wrong_clocks = self.rng.choice(["hosts", "storage"])
        self.identity = Identity(self.rng.randbytes(32))
        self.host_key = HostKey(Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32)))
        self.storage = Watched(self)
        Repository.create(self.storage, self.identity, self.host_key, "host", START)
        self.hosts = [Host(self, f"host{number}") for number in range(4)]

    def run(self, steps: int) -> None:
        """That many steps, then the end. Raises Violation."""
        queue = [(0.0, number) for number in range(len(self.hosts))]
        heapq.heapify(queue)
        try:
            while self.steps < steps:
                at, number = heapq.heappop(queue)
                self.now = max(self.now, START + timedelta(seconds=at))
                self.steps += 1
                self._meddle()
                pause = self.hosts[number].resume()
                heapq.heappush(queue, ((self.now - START).total_seconds() + pause, number))
        finally:
            for host in self.hosts:
                host.stop()
        self._settle()

    def _meddle(self) -> None:
        if self.rng.random() < 0.002:
            off = timedelta(days=self.rng.choice([0, 0, -40, -1, 1, 40]), hours=self.rng.choice([0, -1, 1]))
            if self.wrong_clocks == "storage":
                self.storage_off = off
            else:
                self.host_off[self.rng.choice(self.hosts).name] = off  # type: ignore[assignment]

    def _settle(self) -> None:
        """All hosts are gone and all clocks right: what does a host that prunes every few days leave?"""
        self.storage_off = timedelta()
        repository = Repository.open(self.storage, identity=self.identity)
        for _ in range(4):
            self.now += 50 * timedelta(days=1)
            prune(repository, PruneRules(self.rules.grace, 1.0), Ticking(self, "nobody"))
        listing = repository.snapshots()
        if listing.problems:
            raise Violation(str(listing.problems))
        for header in listing.headers:
            repository.body(header)
        needed = {pack.pack_id for header in listing.headers for pack in header.packs}
        if listing.headers and (repository.packs().keys() != needed or repository.condemned() - needed):
            raise Violation("unneeded packs or marks of packs that are gone stay for ever")


def prune(repository: Repository, rules: PruneRules, clock: Ticking) -> None:
    plan = plan_prune(repository, rules, clock, discard, ask_storage=True)
    run_prune(repository, plan, clock, discard)


class Ticking:
    """A host's clock: wrong as the world says, save that time never stands still."""

    def __init__(self, world: World, host: str) -> None:
        self._world, self._host = world, host

    def now(self) -> datetime:
        return self._world.now + (self._world.host_off[self._host] or timedelta())

    def monotonic(self) -> float:
        return (self._world.now - START).total_seconds()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits by itself")


class Watched(MemoryStorage):
    """The storage itself. Looks at every change."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda: world.now + world.storage_off)
        self._world = world
        self._needs: dict[str, set[str]] = {}
        self._uses: Counter[str] = Counter()

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        super().put(key, data, if_absent=if_absent)
        if key.startswith("snapshots/"):
            needs = {pack.pack_id for pack in read_header(data, key).header.packs}
            lost = [name for name in needs if f"packs/{name[:2]}/{name}" not in self._objects]
            if lost:
                raise Violation(f"{key} was committed without {len(lost)} of its packs")
            self._needs[key] = needs
            self._uses.update(needs)

    def delete(self, key: str) -> None:
        super().delete(key)
        self._world.done[f"{key.split('/')[0]} deleted"] += 1
        if key.startswith("packs/") and self._uses[key[-64:]]:
            raise Violation(f"{key} was deleted, and a snapshot needs it")
        if key in self._needs:
            self._uses.subtract(self._needs.pop(key))
            policy = key.split("/")[1]
            if sum(other.split("/")[1] == policy for other in self._needs) < RETENTION.min_copies:
                raise Violation(f"{policy} was left with fewer than {RETENTION.min_copies} snapshots")


class Stepping(Passing):
    """The storage as one host sees it: it waits before each call takes effect, and again for the answer."""

    def __init__(self, inner: Storage, host: Host) -> None:
        super().__init__(inner)
        self._host = host

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._host.pause(longest=LONGEST_PUT if key.startswith("snapshots/") else None)
        super().put(key, data, if_absent=if_absent)
        self._host.pause()

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._host.pause()
        return super().get(key, offset, length)

    def stat(self, key: str) -> ObjectInfo:
        self._host.pause()
        return super().stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._host.pause()
        for info in super().list(prefix):
            yield info
            if self._host.world.rng.random() < 0.05:
                self._host.pause()

    def delete(self, key: str) -> None:
        self._host.pause()
        super().delete(key)
        self._host.pause()

    def open(self, *, read_only: bool = False) -> Storage:
        """What operations ask of a StorageSpec."""
        return self


class Host:
    """A machine that goes from one job to the next; a crash ends a job at any call."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.storage, self.clock = Stepping(world.storage, self), Ticking(world, name)
        self.databases = {policy: [0] * 5 for policy in POLICIES}
        self._thread = greenlet(self._live)

    def resume(self) -> float:
        """Let it go on to its next pause; gives how many seconds that lasts."""
        return float(self._thread.switch())

    def stop(self) -> None:
        """The machine is gone."""
        self._thread.throw(GreenletExit)

    def pause(self, longest: float | None = None) -> None:
        """Wait here. longest: in seconds. Raises Crashed when the job dies."""
        chance = self.world.rng.random()
        seconds = self.world.rng.uniform(0, 4)
        if chance < 0.004:
            seconds = self.world.rng.uniform(0, 40 * 3600)
        elif chance < 0.02:
            seconds = self.world.rng.uniform(0, 6 * 3600)
        elif chance < 0.05:
            seconds = self.world.rng.uniform(0, 900)
        self._wait(min(seconds, longest) if longest is not None else seconds)
        if self.world.rng.random() < 0.004:
            raise Crashed

    def _wait(self, seconds: float) -> None:
        assert self._thread.parent
        self._thread.parent.switch(seconds)

    def _live(self) -> None:
        while True:
            with suppress(Crashed):
                self._work()
            self._wait(self.world.rng.uniform(0, 5 * 3600))

    def _work(self) -> None:
        job = self.world.rng.choice(["backup", "backup", "backup", "prune", "prune", "forget"])
        try:
            self._job(job)
        except Crashed:
            self.world.done[f"{job} crashed"] += 1
            raise
        except CrmBackupError as error:
            self.world.done[f"{job} {error.code}"] += 1
        else:
            self.world.done[f"{job} done"] += 1

    def _job(self, job: str) -> None:
        repository = self.world.rules.repository.open(self.storage, host_key=self.world.host_key)
        policy = self.world.rng.choice(POLICIES)
        if job == "prune":
            prune(repository, PruneRules(self.world.rules.grace, 1.0), self.clock)
        elif job == "forget":
            now = careful_now(repository, self.clock, discard)
            plan = plan_forget(repository, ForgetRules(policy, RETENTION, "UTC"), now, discard)
            run_forget(repository, plan, now, discard)
        else:
            self._back_up(repository, policy)

    def _back_up(self, repository: Repository, policy: str) -> None:
        rng, database = self.world.rng, self.databases[policy]
        for _ in range(rng.randrange(3)):
            database[rng.randrange(len(database))] = rng.getrandbits(60)
        state = PolicyState(self.world.scratch / self.name, repository.document.repository_id, policy)
        state.directory.mkdir(parents=True, exist_ok=True)
        run_backup(
            BackupJob(
                policy=policy,
                engine="stand-in",
                make_source=lambda key: StandIn(database, self.clock),
                repository=repository,
                storage=self.storage,  # type: ignore[arg-type]
                state=state,
                kind=rng.choice(["full", "incremental", "incremental", "incremental"]),
                jobs=1,
                level=1,
                max_shrink=None,
                host=self.name,
                tool="simulation",
                clock=self.clock,
                emit=discard,
                make_workers=InlineWorkers,
            )
        )


@contextmanager
def known_random(seed: int) -> Iterator[None]:
    """Names and keys come from the seed, so that the same seed gives the same history in the same order."""
    rng = random.Random(seed)

    class Known(X25519PrivateKey):
        @classmethod
        def generate(cls) -> X25519PrivateKey:
            return X25519PrivateKey.from_private_bytes(rng.randbytes(32))

    with patch("os.urandom", rng.randbytes), patch("crmbackup.repository.sealing.X25519PrivateKey", Known):
        yield


def simulate(
    steps: int,
    seed: int,
    rules: Rules = Rules(),
    *,
    each: int = 20_000,
    tell: Callable[[Any], None] = lambda told: None,
) -> Counter[str]:
    """Worlds of `each` steps until there were `steps`; gives what was done how often. Raises Violation, with the seed."""
    done: Counter[str] = Counter()
    while done["steps"] < steps:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
            try:
                with known_random(seed):
                    world = World(seed, rules, Path(scratch))
                    world.run(min(each, steps - done["steps"]))
            except Violation as found:
                raise Violation(f"{found} (seed {seed}, step {world.steps}, {world.wrong_clocks} wrong)") from found
        done += world.done
        done["steps"] += world.steps
        done["worlds"] += 1
        tell(f"seed {seed}: {done['steps']:,} steps")
        seed += 1
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/simulate")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for _name, _number in sorted(simulate(asked.steps, asked.seed, tell=print).items()):
        pass
