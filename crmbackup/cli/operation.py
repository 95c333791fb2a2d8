"""Around every run of an action: its id, hooks, log, audit, messages, pings and metrics.

    with operation(host, loaded, "backup", show.event) as run:
        result = ...                   # emits its events to run.emit
        run.done(...)

What the block raises is what is told. Nothing here changes how the run ends, but a failing `before` hook.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from crmbackup.cli.exit_codes import exit_code
from crmbackup.cli.failures import explain
from crmbackup.cli.logs import FileSink, RunLog, Sink, SyslogSink
from crmbackup.core.errors import CrmBackupError, HookFailed, Interrupted, Locked
from crmbackup.core.events import Emit, Event, Notice, Warned

if TYPE_CHECKING:
    from crmbackup.cli.telling import Telling
    from crmbackup.cli.wiring import Wiring
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.policy.model import Policy

#: What a hook may see of our environment. Everything else may hold secrets.
HOOK_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
#: How long the hook after a run may take when a signal has asked us to stop: systemd waits for 90 s.
HURRY_SECONDS = 30.0
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Operation:
    """One run. `run_id` is on all that is said of it."""

    def __init__(self, host: Wiring, loaded: LoadedPolicy | None, action: str, emit: Emit) -> None:
        self._host = host
        self._loaded = loaded
        self._show = emit
        self.action = action
        self.run_id = host.auditor.new_run()
        self.started: datetime = host.clock.now()
        self._began = host.clock.monotonic()
        #: Not of a run whose end nobody saw.
        self.seconds_known = True
        self._log = RunLog(
            _sinks(loaded.policy if loaded else None),
            loaded.policy.log.format if loaded and loaded.policy.log else "text",
            {"run": self.run_id, "policy": loaded.policy.name if loaded else "-", "action": action},
            host.clock,
            self._warn_of_log,
        )
        self._telling: Telling | None = None
        self.warnings: list[Warned] = []
        self.details: list[tuple[str, str]] = []
        self.facts: dict[str, float] = {}
        self.table_rows: dict[str, int] = {}
        self.snapshot_id = ""
        self._done = False
        self._audit_head = host.auditor.head

    def emit(self, event: Event) -> None:
        """A listener for operations: shows, logs and remembers."""
        if isinstance(event, Warned):
            self.warnings.append(event)
        self._log.event(event)
        self._show(event)

    def _warn_of_log(self, warning: Warned) -> None:
        self.warnings.append(warning)
        self._show(warning)

    def done(
        self,
        *,
        snapshot_id: str = "",
        details: Mapping[str, str] | None = None,
        facts: Mapping[str, float | None] | None = None,
        failed: bool = False,
    ) -> None:
        """What came of it, for hooks, messages and metrics. failed: an error follows, as after a failed drill.

        facts: see `notify.metrics`; None for what is not known. From here on the run has succeeded, unless an error of
        ours follows: that its output cannot be printed changes nothing.
        """
        self.snapshot_id = snapshot_id
        self.details += (details or {}).items()
        self.facts |= {name: value for name, value in (facts or {}).items() if value is not None}
        self._done = not failed

    # The course of a run

    def begin(self) -> None:
        """Say that it begins, and run the hook before it. Raises HookFailed."""
        self._log.line("info", "start", f"{self.action} started", host=self._host.host, tool=self._host.tool)
        self._show(Notice(f"run {self.run_id}", {"run_id": self.run_id}))
        self.stand_in()
        if self._telling:
            self._telling.begin()
            self._hook("before", "", 0)

    def stand_in(self) -> None:
        """Be ready for the end without a beginning."""
        if self._loaded is None:
            return
        from crmbackup.cli.telling import Telling

        self._telling = Telling(self._host, self._loaded, self.action, self.emit)

    def end(self, error: BaseException | None) -> None:
        """Run the hook after it and tell whoever is to be told. Raises nothing of what goes wrong with that."""
        known = None
        if isinstance(error, CrmBackupError) or (error is not None and not self._done):
            known = explain(error) if isinstance(error, Exception) else Interrupted("interrupted")
        code = exit_code(known) if known else 0
        self._log_end(known, code)
        if self._host.auditor.head != self._audit_head:
            # In a log that is sent to another machine, this shows later what the audit log was now.
            self._log.line("info", "audit", f"the audit log's head is {self._host.auditor.head}")
        if isinstance(known, Locked):
            # The other run is at work and will tell how it went; this one never took place.
            if self._telling:
                self._telling.abandon()
            return
        hurry = isinstance(known, Interrupted)
        try:
            self._hook("on_error" if known else "after", known.code if known else "", code)
        except HookFailed as problem:
            self.emit(Warned(problem.code, str(problem), problem.hint))
        except Interrupted as problem:
            hurry = True
            self.emit(Warned("hook-failed", f"the hook after it was not waited for: {problem}"))
        if self._telling:
            self._telling.end(self, known, code, hurry=hurry)

    @property
    def seconds(self) -> float | None:
        """How long it has taken so far, where that is known."""
        return self._host.clock.monotonic() - self._began if self.seconds_known else None

    def _log_end(self, known: CrmBackupError | None, code: int) -> None:
        seconds = self.seconds
        data: dict[str, Any] = {"exit_code": code}
        if seconds is not None:
            data["seconds"] = round(seconds, 3)
        if self.snapshot_id:
            data["snapshot_id"] = self.snapshot_id
        if known:
            more = {"code": known.code, "hint": known.hint}
            self._log.line("error", "end", f"{self.action} failed: {known}", **data, **more)
        else:
            said = f", snapshot {self.snapshot_id}" if self.snapshot_id else ""
            self._log.line("info", "end", f"{self.action} done in {seconds:.1f} s{said}", **data)

    def _hook(self, when: str, error_code: str, code: int) -> None:
        if self._loaded is None:
            return
        hooks = getattr(self._loaded.policy.hooks, self.action)
        argv = getattr(hooks, when) if hooks else None
        if argv is None:
            return
        from crmbackup.operations.hooks import run_hook

        outcome = "" if when == "before" else "failure" if when == "on_error" else "success"
        environ = {name: self._host.environ[name] for name in HOOK_ENVIRONMENT if name in self._host.environ}
        environ.setdefault("PATH", DEFAULT_PATH)
        environ |= {
            "CRMBACKUP_RUN_ID": self.run_id,
            "CRMBACKUP_POLICY": self._loaded.policy.name,
            "CRMBACKUP_ACTION": self.action,
            "CRMBACKUP_HOOK": when,
            "CRMBACKUP_OUTCOME": outcome,
            "CRMBACKUP_EXIT_CODE": "" if when == "before" else str(code),
            "CRMBACKUP_ERROR_CODE": error_code,
            "CRMBACKUP_SNAPSHOT_ID": self.snapshot_id,
        }
        name = f"hooks.{self.action}.{when}"
        seconds = hooks.timeout.total_seconds()
        if error_code == Interrupted.code:
            seconds = min(seconds, HURRY_SECONDS)
        output = run_hook(name, argv, environ, seconds, self._host.clock)
        self.emit(Notice(f"{name} done" + (f"; it printed:\n{output}" if output else ""), {"hook": name}))


def _sinks(policy: Policy | None) -> list[Sink]:
    settings = policy.log if policy else None
    if settings is None:
        return []
    found: list[Sink] = [FileSink(settings.path)] if settings.path else []
    return [*found, SyslogSink()] if settings.syslog else found


@contextmanager
def operation(host: Wiring, loaded: LoadedPolicy | None, action: str, emit: Emit) -> Iterator[Operation]:
    """One run of an action. Without a policy it has an id and an audit, and nobody to tell."""
    run = Operation(host, loaded, action, emit)
    before, host.auditor.emit = host.auditor.emit, run.emit
    try:
        run.begin()
        yield run
    except BaseException as error:
        vars(error)["run_id"] = run.run_id  # so that what is printed of it leads to its log
        run.end(error)
        raise
    else:
        try:
            run.end(None)
        except Interrupted as problem:  # between two steps, each of which has an answer of its own
            run.emit(Warned("notify-failed", f"not everybody was told: {problem}"))
    finally:
        host.auditor.emit = before


def end_of_dead(
    host: Wiring, loaded: LoadedPolicy, action: str, emit: Emit, began: datetime, error: CrmBackupError
) -> None:
    """Catalog, hook, log, messages, pings and metrics at the end of a run that was killed before it came to them."""
    from crmbackup.cli import history

    run = Operation(host, loaded, action, emit)
    run.started, run.seconds_known = began, False
    run.stand_in()
    if action == "backup":
        history.record_failure(host, loaded, None, action, None, began, error, run.emit)
    run.end(error)
