"""Running what is due, for several policies side by side.

Each policy has two lanes: backups, and upkeep. What is in one lane goes one after the other, in a process of its own, under
the lane's lock: so a drill that takes a day keeps back neither the hourly backup of its policy nor any other policy,
a crash stops nothing else, and two `crmbackup run` at once do not do the same work. The process that was called looks again
every minute until nothing runs any more: systemd starts no second one meanwhile.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypedDict

from crmbackup.core.clock import Clock
from crmbackup.core.errors import CrmBackupError, Interrupted, LocalError, Locked
from crmbackup.operations.schedule_state import ScheduleState
from crmbackup.operations.workers import worker_died
from crmbackup.policy.due import Record, begun, ended, first_seen, judge, scheduled
from crmbackup.policy.model import Schedule

#: Lane -> actions, in the order in which they go. Upkeep waits for a backup that is due: a drill is of the newest snapshot.
LANES = {"backup": ("backup",), "upkeep": ("prune", "check", "drill")}
LOOK_SECONDS = 60.0
#: No backup, check or drill of a sane system takes so long.
STUCK = timedelta(days=1)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. answered: it did what it was for, whatever it found; else it is tried again after a pause."""

    error: CrmBackupError | None = None
    answered: bool = True


@dataclass(frozen=True)
class Told:
    """What an action has to say: an event, or a result."""

    policy: str
    action: str
    what: object


@dataclass(frozen=True)
class Ended:
    """An attempt is over."""

    policy: str
    action: str
    outcome: Outcome


@dataclass(frozen=True)
class Waiting:
    """An action is due, and failed a short while ago: it is tried again at `until`."""

    policy: str
    action: str
    until: datetime
    exit_code: int
    error: str


@dataclass(frozen=True)
class Busy:
    """Another process works in the lane, on an action that it began at `since` if that is known.

    stuck: for so long that somebody should look.
    """

    policy: str
    lane: str
    error: Locked
    since: datetime | None
    stuck: bool


class _Noted(TypedDict):
    exit_code: int
    error: str


Message = Told | Ended | Waiting | Busy
Hear = Callable[[Message], None]


@dataclass(frozen=True)
class Job:
    """One policy. attempt: runs an action for the keys that are due, raises nothing. died: tells of an attempt that died,
    with the moment at which it began, raises nothing. code: of an error, for the record.
    """

    policy: str
    schedule: Schedule
    state: ScheduleState
    attempt: Callable[[str, tuple[str, ...], Callable[[object], None]], Outcome]
    died: Callable[[str, CrmBackupError, datetime, Callable[[object], None]], None]
    code: Callable[[CrmBackupError], int]


@dataclass
class _Lane:
    """A lane that is at work."""

    job: Job
    name: str
    process: ForkProcess
    messages: Connection


@dataclass
class _Run:
    clock: Clock
    parallel: int
    hear: Hear
    running: dict[tuple[Path, str], _Lane] = field(default_factory=dict)
    #: Lanes that were begun since the last look, or cannot be: not again before the next one.
    tried: set[tuple[Path, str]] = field(default_factory=set)
    #: Lanes whose process died since the last look: the next one tells, but not again if it dies too.
    died: set[tuple[Path, str]] = field(default_factory=set)


def run_due(load: Callable[[], Sequence[Job]], *, clock: Clock, parallel: int, hear: Hear) -> None:
    """Run everything that is due, at most `parallel` lanes at once, until nothing is due or at work.

    load: gives the policies; called at each look. The caller must have no threads. What fails is heard, not raised.
    """
    run = _Run(clock, parallel, hear)
    try:
        while True:
            jobs, looked = load(), clock.monotonic()
            run.tried.clear()
            run.died.clear()
            left = LOOK_SECONDS
            while left > 0:
                _begin(run, jobs)
                if not run.running:
                    return
                while left > 0 and not _listen(run, left):
                    left = LOOK_SECONDS - (clock.monotonic() - looked)
    except Interrupted:
        for lane in run.running.values():
            lane.process.terminate()  # it cleans up, notes that it was stopped, and ends
        raise
    finally:
        while run.running:  # also when nobody can be told any more: the work goes on
            with suppress(OSError):
                _listen(run, LOOK_SECONDS)


def _begin(run: _Run, jobs: Sequence[Job]) -> None:
    """Start every lane that has something to do, as far as there is room."""
    for job in jobs:
        for lane in LANES:
            key = (job.state.directory, lane)
            if key in run.running or key in run.tried or len(run.running) >= run.parallel:
                continue
            if lane != "backup" and (job.state.directory, "backup") in run.running:
                continue
            try:
                wanted = _wants(run, job, lane)
            except CrmBackupError as error:
                wanted = False
                run.hear(Ended(job.policy, lane, Outcome(error, answered=False)))
            run.tried.add(key)
            if wanted:
                run.running[key] = _start(run, job, lane)


def _wants(run: _Run, job: Job, lane: str) -> bool:
    """Whether an action of the lane is due. Keys that are new to the host are noted. Raises LocalError, UsageError."""
    wanted = False
    now = run.clock.now()
    for action in LANES[lane]:
        if not scheduled(job.schedule, action):
            continue
        record = job.state.read(action)
        if record is None or first_seen(job.schedule, action, record, now) is not record:
            with suppress(Locked), job.state.locked(lane):
                record = first_seen(job.schedule, action, job.state.read(action), now)
                job.state.write(action, record)
        if record is None:
            continue
        due = judge(job.schedule, action, record, now)
        if record.died:
            try:
                with job.state.locked(lane):  # nobody is at work on it: it is to be told
                    wanted = True
            except Locked:
                wanted = wanted or bool(due.keys and due.wait is None)
        elif due.wait is None:
            wanted = wanted or bool(due.keys)
        else:
            run.hear(Waiting(job.policy, action, due.wait, record.exit_code or 0, record.error))
    return wanted


def _start(run: _Run, job: Job, lane: str) -> _Lane:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, lane, run.clock, sending), name=f"{job.policy} {lane}")
    process.start()
    sending.close()
    return _Lane(job, lane, process, receiving)


def _listen(run: _Run, seconds: float) -> bool:
    """Hear what the lanes have to say, waiting for so long at the most; gives whether one of them ended."""
    over = False
    lanes = {lane.messages: key for key, lane in run.running.items()}
    for messages in connection.wait(list(lanes), seconds):
        key = lanes[messages]  # type: ignore[index]
        lane = run.running[key]
        try:
            message: Message | None = lane.messages.recv()
        except EOFError:
            message = None
        if message is not None:
            run.hear(message)
            continue
        over = True
        lane.messages.close()
        lane.process.join()
        del run.running[key]
        if lane.process.exitcode and key not in run.died and _since(lane.job, lane.name):
            run.died.add(key)
            run.tried.discard(key)
        elif lane.process.exitcode:
            run.hear(Ended(lane.job.policy, lane.name, Outcome(worker_died(), answered=False)))
    return over


# In a process of its own


def _work(job: Job, lane: str, clock: Clock, messages: Connection) -> None:
    def tell(message: Message) -> None:
        with suppress(OSError):  # whoever called is gone; the work is not
            messages.send(message)

    try:
        with job.state.locked(lane):
            for message in _actions(job, lane, clock, tell):
                tell(message)
    except Locked as error:
        since = _since(job, lane)
        tell(Busy(job.policy, lane, error, since, stuck=bool(since and clock.now() - since > STUCK)))
    except CrmBackupError as error:
        tell(Ended(job.policy, lane, Outcome(error, answered=False)))


def _actions(job: Job, lane: str, clock: Clock, tell: Hear) -> Iterator[Ended]:
    """Run the actions of a lane that are due: by now, another process may have done so."""
    for action in LANES[lane]:
        record = job.state.read(action) if scheduled(job.schedule, action) else None
        if record and record.died:
            error, record = _note_death(job, action, record, tell)
            yield Ended(job.policy, action, Outcome(error, answered=False))
        due = judge(job.schedule, action, record, clock.now()) if record else None
        if record is None or due is None or not due.keys or due.wait:
            continue
        record = begun(record, clock.now())
        job.state.write(action, record)
        outcome = job.attempt(action, due.keys, _teller(job, action, tell))
        record = ended(record, due.keys, clock.now(), **_noted(job, outcome.error), answered=outcome.answered)
        try:
            job.state.write(action, record)
        except CrmBackupError as problem:
            # Without the note it will be done once more; that is told, and so is what came of it.
            yield Ended(job.policy, action, Outcome(problem, answered=False))
        yield Ended(job.policy, action, outcome)


def _note_death(job: Job, action: str, record: Record, tell: Hear) -> tuple[CrmBackupError, Record]:
    """Tell of an attempt that was killed, or whose machine stopped: it could not do so itself."""
    assert record.started is not None
    error = LocalError(
        f"the {action} that began on {record.started:%Y-%m-%d at %H:%M} UTC died",
        why="its process was killed, perhaps for lack of memory, or the machine stopped",
        hint="look into the kernel's log (dmesg); fewer limits.jobs need less memory",
    )
    job.died(action, error, record.started, _teller(job, action, tell))
    # It is tried again as if it had been told at once, however long nobody looked.
    record = ended(record, (), record.started, **_noted(job, error), answered=False)
    job.state.write(action, record)
    return error, record


def _teller(job: Job, action: str, tell: Hear) -> Callable[[object], None]:
    return lambda what: tell(Told(job.policy, action, what))


def _noted(job: Job, error: CrmBackupError | None) -> _Noted:
    return {"exit_code": job.code(error), "error": f"{error.code}: {error}"} if error else {"exit_code": 0, "error": ""}


def _since(job: Job, lane: str) -> datetime | None:
    """When the action that is at work in a lane began."""
    with suppress(CrmBackupError):
        records = [job.state.read(action) for action in LANES[lane]]
        return max((record.started for record in records if record and record.started and record.died), default=None)
    return None
