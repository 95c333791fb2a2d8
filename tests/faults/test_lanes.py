"""Running what is due side by side: in processes that fail, are killed, take long, or meet each other."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crmbackup.cli.exit_codes import exit_code
from crmbackup.core.errors import CrmBackupError, Locked, SourceMissing, StorageUnavailable, VerificationFailed
from crmbackup.operations.lanes import Busy, Ended, Job, Message, Outcome, Told, Waiting, run_due
from crmbackup.operations.schedule_state import ScheduleState
from crmbackup.policy.due import FIRST_PAUSE, Record, begun
from crmbackup.policy.model import Schedule
from tests.faulty import FakeClock

START = datetime(2026, 5, 5, 12, 20, tzinfo=UTC)
HOURLY = Schedule(incremental="0 * * * *")
ALL = Schedule(full="0 * * * *", check="0 * * * *", drill="0 * * * *")
PATIENCE = 20.0


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"waited for {path.name}"
        time.sleep(0.005)


@dataclass
class Site:
    """A state directory, and what policies do. Actions leave files behind: they run in other processes."""

    root: Path
    clock: FakeClock = field(default_factory=lambda: FakeClock(START))
    jobs: list[Job] = field(default_factory=list)

    def add(
        self, policy: str, schedule: Schedule = HOURLY, does: Callable[..., object] = lambda *_: None
    ) -> ScheduleState:
        """A policy whose actions call `does(action, keys)`; an error that this returns is the outcome."""
        state = ScheduleState(self.root / "state", policy, "/srv/repository")

        def attempt(action: str, keys: tuple[str, ...], tell: Callable[[object], None]) -> Outcome:
            with (self.root / "order").open("a") as stream:
                stream.write(f"{policy} {action}\n")
            tell(f"{action} of {', '.join(keys)}")
            error = does(action, keys)
            answered = isinstance(error, VerificationFailed)
            return Outcome(error, answered) if isinstance(error, CrmBackupError) else Outcome()

        def died(action: str, error: CrmBackupError, began: datetime, tell: Callable[[object], None]) -> None:
            with (self.root / "dead").open("a") as stream:
                stream.write(f"{policy} {action} of {began:%H:%M}: {error.what}\n")

        self.jobs.append(Job(policy, schedule, state, attempt, died, exit_code))
        return state

    def run(self, parallel: int = 4) -> list[Message]:
        heard: list[Message] = []
        run_due(lambda: self.jobs, clock=self.clock, parallel=parallel, hear=heard.append)
        return heard

    def due(self) -> None:
        """Let the policies be seen, and the next full hour come."""
        assert [each for each in self.run() if not isinstance(each, Waiting)] == []
        self.clock.advance(3600)

    @property
    def order(self) -> list[str]:
        return self._lines("order")

    @property
    def dead(self) -> list[str]:
        return self._lines("dead")

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def failures(heard: list[Message]) -> dict[tuple[str, str], str]:
    return {(e.policy, e.action): e.outcome.error.code for e in heard if isinstance(e, Ended) and e.outcome.error}


def test_what_is_due_runs_once_and_is_remembered(site: Site) -> None:
    state = site.add("crm", ALL)
    site.due()
    heard = site.run()
    assert site.order == ["crm backup", "crm check", "crm drill"]
    assert [each.what for each in heard if isinstance(each, Told)] == [
        "backup of full",
        "check of check",
        "drill of drill",
    ]
    assert failures(heard) == {}
    assert state.read("backup") == Record({"full": site.clock.now()}, site.clock.now(), site.clock.now(), 0, 0, "")
    assert site.run() == []
    site.clock.advance(5 * 3600)
    site.run()
    assert len(site.order) == 6


def test_a_failing_policy_stops_no_other_and_is_tried_again_after_a_pause(site: Site) -> None:
    state = site.add("bad", does=lambda *_: StorageUnavailable("no answer"))
    site.add("good")
    site.due()
    assert failures(site.run()) == {("bad", "backup"): "storage-unavailable"}
    assert sorted(site.order) == ["bad backup", "good backup"]
    (waiting,) = site.run()
    assert waiting == Waiting("bad", "backup", site.clock.now() + FIRST_PAUSE, 4, "storage-unavailable: no answer")
    assert len(site.order) == 2
    site.clock.advance(FIRST_PAUSE.total_seconds())
    site.run()
    assert sorted(site.order) == ["bad backup", "bad backup", "good backup"]
    record = state.read("backup")
    assert record is not None
    assert (record.failures, record.exit_code) == (2, 4)


def test_a_verdict_is_told_and_not_repeated(site: Site) -> None:
    site.add("crm", Schedule(drill="0 * * * *"), does=lambda *_: VerificationFailed("rows differ"))
    site.due()
    assert failures(site.run()) == {("crm", "drill"): "verification-failed"}
    assert site.run() == []
    assert len(site.order) == 1


def test_a_process_that_is_killed_counts_as_a_failure_and_is_told(site: Site) -> None:
    state = site.add("crm", does=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    site.add("good")
    site.due()
    assert failures(site.run()) == {("crm", "backup"): "local"}
    assert sorted(site.order) == ["crm backup", "good backup"]
    assert site.dead == ["crm backup of 13:20: the backup that began on 2026-05-05 at 13:20 UTC died"]
    record = state.read("backup")
    assert record is not None
    assert (record.died, record.failures, record.exit_code) == (False, 1, 9)
    (waiting,) = site.run()
    assert isinstance(waiting, Waiting)
    assert (waiting.until, waiting.exit_code) == (site.clock.now() + FIRST_PAUSE, 9)
    assert len(site.dead) == 1


def test_what_died_with_its_machine_is_told_and_tried_again_by_the_next(site: Site) -> None:
    state = site.add("crm")
    site.due()
    record = state.read("backup")
    assert record is not None
    state.write("backup", begun(record, site.clock.now()))
    site.clock.advance(3 * 3600)
    assert failures(site.run()) == {("crm", "backup"): "local"}
    assert site.dead == ["crm backup of 13:20: the backup that began on 2026-05-05 at 13:20 UTC died"]
    assert site.order == ["crm backup"]
    record = state.read("backup")
    assert record is not None
    assert (record.failures, record.exit_code) == (0, 0)
    assert site.run() == []


def test_one_that_dies_while_it_tells_is_not_started_for_ever(site: Site) -> None:
    site.add("crm", does=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    site.jobs[0] = replace(site.jobs[0], died=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    site.due()
    assert failures(site.run()) == {("crm", "backup"): "local"}
    assert site.order == ["crm backup"]


@contextmanager
def beside(site: Site, heard: list[Message]):
    """`run_due` in another process that is at work while the body runs."""
    pid = os.fork()
    if pid == 0:
        try:
            run_due(lambda: site.jobs, clock=site.clock, parallel=4, hear=heard.append)
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def test_two_at_once_share_the_work_and_a_long_backup_keeps_nothing_else_back(site: Site) -> None:
    begun, go = site.root / "begun", site.root / "go"

    def long(action: str, keys: object) -> None:
        if action == "backup":
            begun.touch()
            wait_for(go)

    state = site.add("long", Schedule(incremental="0 * * * *", drill="0 * * * *"), does=long)
    site.due()
    with beside(site, []):
        wait_for(begun)
        try:
            site.add("other")
            ran = [each for each in site.run() if not isinstance(each, Told)]
            assert ran == [Ended("long", "drill", Outcome())], "another process's backup does not keep the drill back"
            began = site.clock.now()
            site.clock.advance(600)
            (busy,) = site.run()
            assert isinstance(busy, Busy)
            assert isinstance(busy.error, Locked)
            assert (busy.lane, busy.since, busy.stuck) == ("backup", began, False)
            # `other` was seen for the first time just now.
            site.clock.advance(25 * 3600)
            heard = site.run()
            assert [each.stuck for each in heard if isinstance(each, Busy)] == [True]
            assert Ended("other", "backup", Outcome()) in heard
        finally:
            go.touch()
    assert site.order.count("long backup") == 1
    record = state.read("backup")
    assert record is not None
    assert record.served["incremental"] == START + timedelta(hours=1)


def test_upkeep_goes_after_the_backup_that_is_due_with_it_also_when_that_fails(site: Site) -> None:
    site.add("crm", ALL, does=lambda action, _: SourceMissing("gone") if action == "backup" else None)
    site.due()
    assert failures(site.run()) == {("crm", "backup"): "source-missing"}
    assert site.order == ["crm backup", "crm check", "crm drill"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_lanes_than_allowed_are_at_work(site: Site, parallel: int) -> None:
    def count(action: str, keys: object) -> None:
        mark = site.root / f"at-work-{os.getpid()}"
        mark.touch()
        number = len(list(site.root.glob("at-work-*")))
        mark.unlink()
        assert number <= parallel

    for name in "abcde":
        site.add(name, ALL, does=count)
    site.due()
    assert failures(site.run(parallel)) == {}
    assert len(site.order) == 15


def test_what_comes_due_while_something_is_at_work_is_run_too(site: Site) -> None:
    """systemd starts no second process as long as the first one runs."""
    later = site.root / "later"

    class Ticking(FakeClock):
        """A minute is over each time somebody asks for it."""

        def monotonic(self) -> float:
            self.advance(61)
            return super().monotonic()

    site.clock = Ticking(START)
    site.add("drilled", Schedule(drill="0 12-23 * * *"), does=lambda *_: wait_for(later))
    site.add("hourly", Schedule(incremental="30 * * * *"), does=lambda *_: later.touch())
    site.run()
    site.clock.advance((START + timedelta(hours=1) - site.clock.now()).total_seconds())
    heard = site.run()
    assert failures(heard) == {}
    assert site.order == ["drilled drill", "hourly backup"]


def test_a_state_that_cannot_be_written_is_an_error_and_nothing_runs(site: Site) -> None:
    (site.root / "state").write_text("a file")
    site.add("crm")
    heard = site.run()
    assert failures(heard) == {("crm", "backup"): "local"}
    assert site.order == []


def test_a_run_whose_end_cannot_be_noted_says_so_and_is_repeated(site: Site) -> None:
    state = site.add("crm", does=lambda *_: replace_by_file(state.directory))
    site.due()
    heard = site.run()
    assert failures(heard)[("crm", "backup")] in ("local", "local-denied")
    assert Ended("crm", "backup", Outcome()) in heard, "what came of it is told too"


def replace_by_file(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))
    directory.write_text("in the way")


def test_a_damaged_record_runs_once_too_many_rather_than_once_too_few(site: Site) -> None:
    state = site.add("crm")
    site.due()
    site.run()
    for damage in (b"", b"{", b"[]", b'{"served": {"incremental": "yesterday"}}'):
        (state.directory / "backup.json").write_bytes(damage)
        before = len(site.order)
        site.run()
        site.run()
        assert len(site.order) == before + 1


def test_the_same_policy_on_two_repositories_has_two_memories(tmp_path: Path) -> None:
    one, two = (ScheduleState(tmp_path, "crm", address) for address in ("/srv/a", "s3://b/a"))
    one.write("backup", Record({"full": START}, error="äö \udcff"))
    assert one.read("backup") == Record({"full": START}, error="äö \udcff")
    assert two.read("backup") is None
    one.forget("backup")
    one.forget("backup")
    assert one.read("backup") is None


def test_whoever_is_told_may_go_and_the_work_goes_on(site: Site) -> None:
    begun, go = site.root / "begun", site.root / "go"

    def slow(action: str, keys: object) -> None:
        begun.touch()
        wait_for(go)

    site.add("crm", does=slow)
    site.due()

    def broken(message: Message) -> None:
        threading.Timer(0.05, go.touch).start()
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_due(lambda: site.jobs, clock=site.clock, parallel=4, hear=broken)
    assert site.run() == [], "it was done, and noted"
    assert site.order == ["crm backup"]
