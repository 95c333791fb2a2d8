"""crmbackup run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from crmbackup.cli.options import output_options, policies_argument
from crmbackup.cli.render import Show, StatelessShow, make_show, printable, when

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Wiring
    from crmbackup.core.errors import CrmBackupError
    from crmbackup.core.events import Event
    from crmbackup.operations.lanes import Job, Message, Outcome
    from crmbackup.operations.schedule_state import ScheduleState
    from crmbackup.policy.loader import LoadedPolicy

Action = Callable[["Wiring", "LoadedPolicy", tuple[str, ...], Show], None]


def _backup(host: Wiring, loaded: LoadedPolicy, keys: tuple[str, ...], show: Show) -> None:
    from crmbackup.cli.backup import backup

    backup(host, loaded, "full" if "full" in keys else None, allow_shrink=False, show=show)


def _check(host: Wiring, loaded: LoadedPolicy, _: tuple[str, ...], show: Show) -> None:
    from crmbackup.cli.check import check
    from crmbackup.cli.wiring import Keys

    check(host, loaded, None, Keys(), (None, None), show)


def _prune(host: Wiring, loaded: LoadedPolicy, _: tuple[str, ...], show: Show) -> None:
    """What retention does not keep goes first, then the packs that nobody needs."""
    from crmbackup.cli import forget as forgetting
    from crmbackup.cli import prune as pruning
    from crmbackup.cli.wiring import Keys

    forgetting.forget(host, loaded, Keys(), forgetting.Asked(yes=True), show)
    pruning.prune(host, loaded, None, pruning.Asked(yes=True), show)


def _drill(host: Wiring, loaded: LoadedPolicy, _: tuple[str, ...], show: Show) -> None:
    from crmbackup.cli.drill import drill
    from crmbackup.cli.wiring import Keys

    drill(host, loaded, keys=Keys(), wanted=None, operator=None, trigger="schedule", show=show)


#: What runs when an action of `policy.due.ACTIONS` is due. It raises CrmBackupError kinds when it fails.
ACTIONS: Mapping[str, Action] = {"backup": _backup, "prune": _prune, "check": _check, "drill": _drill}


@click.command("run")
@policies_argument
@click.option("--due", is_flag=True, help="Run what the schedules call for by now, and what was missed.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="How many policies may be at work at once; backups and upkeep of one count apart.",
)
@output_options
def command(policies: tuple[str, ...], due: bool, parallel: int, as_json: bool, verbose: bool) -> None:
    """Run whatever is due: backups, checks and drills of the named policies, or of all there are.

    Made to be called often, by cron, a timer or anything: it does what is due by now and ends. What was missed is made
    up for once. What failed is tried again after a pause. Two at once share the work. The exit code is that of the worst
    failure, a failed backup before anything else. Prints nothing when all is well and nobody watches.
    """
    from crmbackup.cli.wiring import wiring

    if not due:
        raise click.UsageError("Say --due: run what is due by now.")
    with make_show(as_json=as_json, verbose=verbose) as show:
        code = run_policies(wiring(), policies, parallel=parallel, show=show)
    if code:
        raise click.exceptions.Exit(code)


def run_policies(host: Wiring, names: Sequence[str], *, parallel: int, show: Show) -> int:
    """Run what is due by the host's clock; gives the exit code. Raises UsageError, PolicyNotFound, LocalError."""
    from crmbackup.operations.lanes import run_due

    hearing = _Hearing(show)
    jobs: list[Job] = []

    def load() -> list[Job]:
        jobs[:] = _jobs(host, names, hearing)
        return jobs

    run_due(load, clock=host.clock, parallel=parallel, hear=hearing.hear)
    if not hearing.heard:
        following = _next(jobs, host)
        show.result("idle", following, lambda: click.echo(_idle(following)), quiet=True)
    return hearing.worst if hearing.codes else 0


def _jobs(host: Wiring, names: Sequence[str], hearing: _Hearing) -> list[Job]:
    """The policies that have a schedule. Those that cannot be loaded are told, and the others go on."""
    from crmbackup.cli.exit_codes import exit_code
    from crmbackup.cli.policies import schedule_state
    from crmbackup.core.errors import UsageError
    from crmbackup.operations.lanes import Job

    loaded = [each for name in names or [""] for each in _load(host, [name] if name else [], hearing)]
    jobs = [
        Job(each.policy.name, each.policy.schedule, schedule_state(host, each), attempt, attempt.died, exit_code)
        for each, attempt in ((each, _Attempt(host, each)) for each in loaded)
        if each.policy.schedule
    ]
    if loaded and not jobs:
        raise UsageError(
            "nothing is scheduled",
            why="no policy here has a schedule",
            hint="give one a schedule: docs/policy.md describes the keys",
        )
    return jobs


def _load(host: Wiring, names: Sequence[str], hearing: _Hearing) -> Iterator[LoadedPolicy]:
    from crmbackup.cli.policies import broken_state, load_alone, policy_files
    from crmbackup.core.errors import CrmBackupError

    try:
        paths = policy_files(host.cwd, names)
    except CrmBackupError as error:
        if not names:
            raise
        hearing.unusable(names[0], error)
        return
    for path in paths:
        # A policy that is broken is told like any failure: at once, and then with growing pauses.
        state = broken_state(host, path)
        try:
            loaded = load_alone(host.cwd, path)
        except CrmBackupError as error:
            hearing.broken(path.stem, state, error, host.clock.now())
            continue
        state.forget("policy")
        yield loaded


def _next(jobs: Sequence[Job], host: Wiring) -> dict[str, object]:
    """What comes next of all that is scheduled."""
    from crmbackup.policy.due import upcoming

    now = host.clock.now()
    found = [(at, job.policy, key) for job in jobs for at, key, _ in upcoming(job.schedule, now)]
    at, policy, key = min(found, default=(None, None, None))
    return {"next": at, "policy": policy, "key": key}


def _idle(following: Mapping[str, Any]) -> str:
    if following["next"] is None:
        return "Nothing is due"
    return f"Nothing is due; next is {following['policy']}: {following['key']} at {when(following['next'])}"


@dataclass(frozen=True)
class _Attempt:
    """Runs an action of one policy. An error that is a verdict answers the schedule: a second look would say the same."""

    host: Wiring
    loaded: LoadedPolicy

    def __call__(self, action: str, keys: tuple[str, ...], tell: Callable[[object], None]) -> Outcome:
        from crmbackup.cli.failures import explain
        from crmbackup.core.errors import IntegrityError, ObjectivesMissed, UsageError, VerificationFailed
        from crmbackup.operations.lanes import Outcome

        try:
            if action not in ACTIONS:
                raise UsageError(f"schedule.{action} is due, and this version of crmbackup cannot do it")
            ACTIONS[action](self.host, self.loaded, keys, _TaskShow(tell))
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            known = explain(error)
            verdict = isinstance(known, IntegrityError | ObjectivesMissed | VerificationFailed)
            return Outcome(known, answered=verdict and action != "backup")
        return Outcome()

    def died(self, action: str, error: CrmBackupError, began: datetime, tell: Callable[[object], None]) -> None:
        """What the end of an attempt does, for one that died before its end."""
        from crmbackup.cli.operation import end_of_dead

        end_of_dead(self.host, self.loaded, action, _TaskShow(tell).event, began, error)


@dataclass(frozen=True)
class _Result:
    """What an action gave to `Show.result`; text as printed."""

    kind: str
    data: dict[str, Any]
    text: str
    quiet: bool


class _TaskShow(StatelessShow):
    """Sends what an action shows to the process that prints."""

    def __init__(self, tell: Callable[[object], None]) -> None:
        self._tell = tell

    def event(self, event: Event) -> None:
        from crmbackup.core.events import Notice, Warned

        if isinstance(event, Notice | Warned):
            self._tell(event)

    def result(self, kind: str, data: dict[str, Any], text: Callable[[], None], *, quiet: bool = False) -> None:
        with redirect_stdout(io.StringIO()) as printed:
            text()
        self._tell(_Result(kind, data, printed.getvalue(), quiet))


@dataclass
class _Hearing:
    """Shows what the lanes say, and keeps count of what failed."""

    show: Show
    heard: bool = False
    #: (action, exit code) of what failed now or waits to be tried again.
    codes: list[tuple[str, int]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    @property
    def worst(self) -> int:
        """The exit code of the first failed backup, else of whatever failed first."""
        backups = [code for action, code in self.codes if action == "backup"]
        return (backups or [code for _, code in self.codes])[0]

    def unusable(self, name: str, error: CrmBackupError) -> None:
        """A policy that cannot be had at all; found again at each look, told once."""
        if name not in self._known:
            self._known.add(name)
            self.heard = True
            self._failed(name, "policy", error)

    def broken(self, name: str, state: ScheduleState, error: CrmBackupError, now: datetime) -> None:
        """A policy file that cannot be loaded."""
        from crmbackup.cli.exit_codes import exit_code
        from crmbackup.operations.lanes import Waiting
        from crmbackup.policy.due import Record, begun, ended, retry_at

        if name in self._known:
            return
        record = state.read("policy") or Record()
        until = retry_at(record, now)
        if until is None:
            self.unusable(name, error)
            record = begun(record, now)
            code = exit_code(error)
            state.write("policy", ended(record, (), now, exit_code=code, error=error.code, answered=False))
        else:
            self._known.add(name)
            self.hear(Waiting(name, "policy", until, exit_code(error), error.code))

    def hear(self, message: Message) -> None:
        """Any message of the lanes."""
        from crmbackup.core.events import Notice, Warned
        from crmbackup.operations.lanes import Busy, Ended, Told, Waiting

        self.heard = True
        if isinstance(message, Told):
            self._told(f"{message.policy}: {message.action}", message.what)
        elif isinstance(message, Ended):
            if message.outcome.error:
                self._failed(message.policy, message.action, message.outcome.error)
        elif isinstance(message, Waiting):
            self.codes.append((message.action, message.exit_code))
            again = f"is tried again at {when(message.until)}, after {message.error}"
            self.show.event(Notice(f"{message.policy}: {message.action}: {again}"))
        elif isinstance(message, Busy):
            since = f", since {when(message.since)}" if message.since else ""
            self.show.event(Notice(f"{message.policy}: {message.lane}: {message.error}{since}"))
            if message.stuck:
                text = f"{message.policy}: {message.lane} has been at work for more than a day: {message.error}{since}"
                self.show.event(Warned("run-stuck", text, "look what that process waits for; end it if need be"))

    def _told(self, whose: str, what: object) -> None:
        if isinstance(what, _Result):
            text = f"{whose}\n{what.text}".rstrip("\n")
            data = {**what.data, "scheduled": whose}
            self.show.result(what.kind, data, text=lambda: click.echo(text), quiet=what.quiet)
        else:
            event: Any = what
            self.show.event(replace(event, text=f"{whose}: {event.text}"))

    def _failed(self, policy: str, action: str, error: CrmBackupError) -> None:
        from crmbackup.cli.exit_codes import exit_code

        code = exit_code(error)
        self.codes.append((action, code))
        data = {"policy": policy, "action": action, "code": error.code, "exit_code": code}
        data |= {"message": error.what, "why": error.why, "hint": error.hint}

        def text() -> None:
            click.echo(f"crmbackup: {policy}: {action}: {error.code}: {printable(str(error), lines=True)}", err=True)
            if error.hint:
                click.echo(f"  hint: {printable(error.hint, lines=True)}", err=True)

        self.show.result("failed", data, text)
