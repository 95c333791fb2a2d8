"""One host with one policy for `tests/faults/test_month.py`, woken as by cron, and all that is known of it from outside."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import crmbackup
from crmbackup.cli import init
from crmbackup.cli.engines import is_server
from crmbackup.cli.render import StatelessShow
from crmbackup.cli.run import run_policies
from crmbackup.cli.wiring import Keys, Wiring
from crmbackup.core.events import Event, Warned
from crmbackup.engines.base import RestoreOptions
from crmbackup.operations import shipping
from crmbackup.operations.restore import plan_restore, run_restore
from crmbackup.policy.loader import LoadedPolicy
from crmbackup.repository.records import SnapshotPin, put_pin
from crmbackup.repository.repository import find_snapshot
from crmbackup.storage.base import Storage
from crmbackup.storage.open import open_storage
from tests.receivers import Mailbox, Webhook
from tests.support_month import (
    GRACE,
    PARTS,
    PLAN,
    QUARTER,
    RETENTION,
    ZONE,
    Dated,
    Journal,
    SetClock,
    Snap,
    changed,
    kept,
    quarters,
    read_snap,
)
from tests.support_month_sources import Content, Crm, Source

DAYS = 31
ACTIONS = {"full": "backup", "incremental": "backup", "prune": "prune", "check": "check", "drill": "drill"}
RESULTS = {"snapshot": "backup", "prune-plan": "prune", "check": "check", "drill": "drill"}
#: What has another name in messages: forgetting is the first half of pruning.
NAMES = {"prune": "forget"}
#: No pause after a failure is longer.
PATIENCE = timedelta(hours=7)
#: Of the times at which nothing is due, so many are tried.
IDLE = 0.01


class Heard(StatelessShow):
    """What one run said."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.warned: list[str] = []
        self.code = 0

    def event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warned.append(event.code)

    def result(self, kind: str, data: dict[str, Any], text: Callable[[], None], *, quiet: bool = False) -> None:
        if kind == "failed":
            self.failed[data["action"]] = data["code"]
        elif kind in RESULTS:
            assert data["scheduled"] == f"crm: {RESULTS[kind]}"
            self.results[RESULTS[kind]] = data

    @property
    def done(self) -> set[str]:
        return self.results.keys() - self.failed.keys()


@dataclass
class Place:
    """Where the repository is. settings: lines of the policy's section. away_code: of the error while it is away."""

    settings: tuple[str, ...]
    away: Callable[[], None]
    back: Callable[[], None]
    away_code: str


class Month:
    """A host with one policy, and all that is known of it from outside."""

    def __init__(self, root: Path, first: date, source: Source, place: Place, mails: Mailbox, web: Webhook) -> None:
        self.root = root
        self.source = source
        self.place = place
        self._first = first
        self._plan = list(quarters(first, DAYS))
        self.clock = SetClock(self._plan[0][0])
        self.journal = Journal(root / "journal")
        self.deadly = root / "deadly"
        self.crm = Crm(source, seed=first.month)
        self._chance = random.Random(first.month)
        self._receivers = (mails, web)
        #: What the mail server and the web server must have got, the oldest first.
        self.mails: list[str] = []
        self.hooks: list[str] = []
        #: The repository cannot be reached, so it cannot be looked at either.
        self.away = False
        self.snaps: dict[str, Snap] = {}
        self.held: dict[str, Content] = {}
        self.present: set[str] = set()
        self.pins: dict[str, datetime | None] = {}
        self.proved: set[str] = set()
        self.damaged: set[str] = set()
        self.gone: set[str] = set()
        #: By pack: until when some snapshot needed it.
        self.needed: dict[str, datetime] = {}
        #: For each check that went through: packs that snapshots need, and packs that were read.
        self.checks: list[tuple[set[str], set[str]]] = []
        self.identity = root / "identity.txt"
        self._last = self._plan[0][0] - QUARTER
        self._before = 0
        self._write_policy(mails, web)

    # The host

    def _write_policy(self, mails: Mailbox, web: Webhook) -> None:
        (self.root / "mail").write_text(mails.url)
        (self.root / "hook").write_text(f"json://127.0.0.1:{web.port}/told")
        days = {
            key: "*" if len(on) == 7 else ",".join(str((day + 1) % 7) for day in on) for key, (on, _) in PLAN.items()
        }
        schedule = [
            f'{key}: "{times[0][1]} {",".join(str(hour) for hour, _ in times)} * * {days[key]}"'
            for key, (_, times) in PLAN.items()
        ]
        rules = {**RETENTION, "within": f"{RETENTION['within'].total_seconds() / 3600:.0f}h"}
        sections = {
            "source": self.source.settings,
            "repository": (*self.place.settings, "retries: 1", f"identity: {{file: {self.identity}}}"),
            "schedule": [f"timezone: {ZONE}", *schedule],
            "retention": [f"{rule}: {number}" for rule, number in rules.items()],
            "prune": [f"grace: {GRACE.days}d"],
            "check": [f"parts: {PARTS}"],
            "objectives": ["rpo: 40h", "rto: 1h"],
            "limits": ["jobs: 1"],
            "notify": [
                "timeout: 10m",  # so that no message comes too late on a busy machine
                "apprise:",
                f"  - {{url: {{file: {self.root / 'mail'}}}, on: [failure, recovery, warning, drill]}}",
                f"  - {{url: {{file: {self.root / 'hook'}}}}}",
            ],
        }
        lines = ["version: 1", "name: crm"]
        for name, settings in sections.items():
            lines += [f"{name}:", *(f"  {setting}" for setting in settings)]
        self.policy = self.root / "crm.yaml"
        self.policy.write_text("\n".join(lines) + "\n")

    @property
    def host(self) -> Wiring:
        """A process has one; each run is another process."""
        own = {"CRMBACKUP_CONFIG_DIR": str(self.root / "config"), "CRMBACKUP_STATE_DIR": str(self.root / "state")}
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(self.root), "LOGNAME": "cron", **own}
        return Wiring(environ, self.root, self.clock)

    @property
    def loaded(self) -> LoadedPolicy:
        return self.host.load(str(self.policy))

    def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The database, the repository, and the first look at the policy."""

        def opened(*values: Any, **more: Any) -> Storage:
            return Dated(open_storage(*values, **more), self.clock, self.journal, self.deadly)

        for module in pkgutil.walk_packages(crmbackup.__path__, "crmbackup."):
            importlib.import_module(module.name)  # here, and not in each of some hundred processes
        monkeypatch.setattr(shipping, "open_storage", opened)
        self.crm.begin()
        host = self.host
        place = host.policy_place(self.loaded)
        init._create(host, place, Keys(), init._Wanted(self.identity, None, wrap=False, shown=False))
        self.well(*self._plan[0])

    @contextmanager
    def storage(self) -> Iterator[Storage]:
        """The storage itself, not seen by the journal."""
        spec = self.host.policy_place(self.loaded).spec
        with closing(open_storage(spec.address, spec.credentials, clock=self.clock)) as found:
            yield found

    # Time

    def at(self, week: int, weekday: int, hour: int, minute: int = 0) -> datetime:
        """A moment in the n-th week that begins within the month; weekday 0 is Monday."""
        monday = self._first + timedelta(days=(7 - self._first.weekday()) % 7)
        day = monday + timedelta(days=7 * week + weekday)
        return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(ZONE)).astimezone(UTC)

    def wake(self, at: datetime) -> Heard:
        """`crmbackup run --due` at that moment. What the repository holds then is what it has to."""
        assert at > self._last
        self._last = at
        self.clock.set(at)
        self._before = len(self.journal.entries())
        self._need(at)
        heard = Heard()
        heard.code = run_policies(self.host, [str(self.policy)], parallel=4, show=heard)
        if not self.away:
            self._look(heard)
        return heard

    def _told(self) -> None:
        """Everybody has heard all that he should, and nothing twice."""
        mails, web = self._receivers
        assert mails.subjects == self.mails, (mails.subjects[-5:], self.mails[-5:])
        heard = [request.json["title"] for request in web.requests]
        assert heard == self.hooks, (heard[-5:], self.hooks[-5:])

    def until(self, end: datetime) -> None:
        """All that comes before that moment, and goes well."""
        for at, due in self.plan(end):
            self.well(at, due)

    @property
    def end(self) -> datetime:
        """The last moment of the month."""
        return self._plan[-1][0] + QUARTER

    def plan(self, end: datetime) -> Iterator[tuple[datetime, frozenset[str]]]:
        """What is due from here to there, and some moments at which nothing is: all of them when the clock is changed."""
        for at, due in self._plan:
            if self._last < at < end and (due or changed(at) or self._chance.random() < IDLE):
                yield at, due

    def well(self, at: datetime, due: frozenset[str]) -> Heard:
        """Wake when these keys are due and nothing is in the way."""
        actions = {ACTIONS[key] for key in due}
        kind = "full" if "full" in due or not self.snaps else "incremental"
        if "backup" in actions:
            self.crm.work()
        if "drill" in actions:
            self.mails.append("crmbackup crm: drill passed")
        heard = self.wake(at)
        assert (heard.done, heard.failed, heard.code) == (actions, {}, 0), at
        if "backup" in actions:
            assert heard.results["backup"]["kind"] == kind, at
        if not due:
            assert len(self.journal.entries()) == self._before, "a run with nothing to do asks no storage"
        self._told()
        return heard

    def fails(self, at: datetime, code: str, *actions: str, told: Sequence[str]) -> Heard:
        """Wake when these actions fail, and others only as they did before; told: those that receivers hear of."""
        for action in told:
            self.tell(f"{NAMES.get(action, action)} FAILED ({code})")
        heard = self.wake(at)
        assert heard.failed.keys() >= set(actions)
        assert set(heard.failed.values()) == {code}
        assert heard.code
        self._told()
        return heard

    def recovers(self, *actions: str, since: datetime | None = None) -> Heard:
        """What failed is tried again by itself, as soon as its pause is over. since: when its cause was mended."""
        for action in actions:
            self.tell(f"{NAMES.get(action, action)} works again")
        done: set[str] = set()
        self._last = since or self._last
        end = self._last + PATIENCE
        while done != set(actions):
            assert self._last < end
            heard = self.wake(self._last + QUARTER)
            assert not heard.failed
            done |= heard.done
        self._told()
        return heard

    def tell(self, text: str) -> None:
        """Both receivers will hear of it, once."""
        self.mails.append(f"crmbackup crm: {text}")
        self.hooks.append(f"crmbackup crm: {text}")

    # The repository

    def _need(self, at: datetime) -> None:
        for snap in self.present:
            self.needed.update(dict.fromkeys(self.snaps[snap].packs, at))

    def _look(self, heard: Heard) -> None:
        """What lies there is what was there, and the new snapshot, without what the rules do not keep."""
        with self.storage() as storage:
            keys = {info.key.rpartition("-")[2]: info.key for info in storage.list("snapshots/crm/")}
            new = keys.keys() - self.snaps.keys()
            self.snaps.update((snap, read_snap(storage.get(keys[snap]))) for snap in new)
        assert len(new) == ("backup" in heard.done)
        self.held.update((snap, self.source.content()) for snap in new)
        self.present |= new
        if "prune" in heard.done:
            everyone = [self.snaps[snap] for snap in self.present]
            whole = [snap.id for snap in everyone if not snap.packs & self.damaged]
            pinned = [snap for snap, until in self.pins.items() if until is None or until > self._last]
            self.present = kept(everyone, whole=whole, pinned=pinned, proved=self.proved)
        assert keys.keys() == self.present
        done = self.journal.entries()[self._before :]
        for entry in done:
            if entry.what == "delete" and entry.key.startswith("packs/"):
                self._gone(entry.key[-64:], entry.at)
        if "drill" in heard.done:
            assert heard.results["drill"]["passed"]
            self.proved.add(heard.results["drill"]["snapshot_id"])
        if "check" in heard.results and "drill" not in heard.results:
            read = {entry.key[-64:] for entry in done if entry.what == "read" and entry.key.startswith("packs/")}
            wanted = {pack for snap in self.present for pack in self.snaps[snap].packs}
            self.checks.append((wanted, read))
            assert self.damaged <= read, "what was found damaged is looked at each time"

    def orphaned(self, pack: str) -> datetime:
        """Since when no snapshot needs a pack; one that none ever did counts from when it was old enough."""
        return self.needed.get(pack) or self.journal.put_at(f"packs/{pack[:2]}/{pack}") + GRACE

    def _gone(self, pack: str, at: datetime) -> None:
        assert at - self.orphaned(pack) >= GRACE
        assert pack not in {name for snap in self.present for name in self.snaps[snap].packs}
        self.gone.add(pack)

    def newest(self) -> Snap:
        return max((self.snaps[snap] for snap in self.present), key=lambda snap: snap.captured)

    def pin(self, snap: Snap, until: datetime | None) -> None:
        """As `crmbackup pin` does."""
        host = self.host
        repository = host.open_keeper(host.policy_place(self.loaded), Keys())
        record = SnapshotPin("crm", snap.id, until, "the test", None, host.host, self.clock.now())
        put_pin(repository, record, host.author(repository))
        self.pins[snap.id] = until

    def damage(self) -> tuple[str, bytes]:
        """One bit of a pack that the last full and all snapshots since need; gives its key and what it was."""
        full = max((snap for snap in self.snaps.values() if snap.kind == "full"), key=lambda snap: snap.captured)
        shared = full.packs & self.newest().packs
        with self.storage() as storage:
            packs = {info.key: info.size for info in storage.list("packs/") if info.key[-64:] in shared}
            key = max(packs, key=lambda key: packs[key])
            data = storage.get(key)
            spoilt = bytearray(data)
            spoilt[len(data) // 2] ^= 1
            storage.put(key, bytes(spoilt))
        return key, data

    def mend(self, key: str, data: bytes) -> None:
        """Bring an object back from a copy."""
        with self.storage() as storage:
            storage.put(key, data)

    def restore(self, snap: str) -> Content:
        """What a snapshot gives back."""
        host = self.host
        place = host.policy_place(self.loaded)
        to = self.source.target("restored")
        target = host.engines.target(to, RestoreOptions(create=is_server(to)), self.loaded)
        target.check()
        repository = host.open_reader(place, Keys(), need_identity=True)
        header = find_snapshot(repository.snapshots("crm").headers, snap)
        plan = plan_restore(repository, header, target, self.clock.now())
        run_restore(plan, repository, place.spec, jobs=2, clock=self.clock, emit=lambda _: None)
        try:
            return self.source.content("restored")
        finally:
            self.source.drop("restored")
