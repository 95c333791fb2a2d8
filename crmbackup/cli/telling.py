"""Who is told of a run of a policy: messages, pings, metrics. What goes wrong here is a warning, never more."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit, urlunsplit

from crmbackup.core.errors import CrmBackupError, Interrupted, LocalError, NotifyFailed, SecretUnavailable
from crmbackup.core.events import Emit, Warned
from crmbackup.core.secrets import Secret, SecretRef, resolve
from crmbackup.notify.decide import Receiver, forget_others, messages, note_told, record_run
from crmbackup.notify.ledger import Ledger, Ledgers
from crmbackup.notify.report import Kind, Past, RunReport, body, title
from crmbackup.notify.sending import Delivery, Sending, send
from crmbackup.policy.alerts import Unattended
from crmbackup.storage.address import format_address

if TYPE_CHECKING:
    from crmbackup.cli.operation import Operation
    from crmbackup.cli.wiring import Wiring
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.policy.model import Policy

#: The longest a start ping may take; it is sent while the run is at work already.
START_SECONDS = 20.0
#: What is left for telling when somebody wants us to stop.
HURRY_SECONDS = 5.0
TONES: dict[Kind, str] = {"failure": "failure", "warning": "warning", "recovery": "success", "success": "success"}


class Telling:
    """Everybody who is told of one run."""

    def __init__(self, host: Wiring, loaded: LoadedPolicy, action: str, emit: Emit) -> None:
        self._host = host
        self._loaded = loaded
        self._policy = loaded.policy
        self._path = path_of(loaded)
        self._action = action
        self._emit = emit
        self._told = action in get_args(Unattended)
        self._starting: tuple[list[str], Sending] | None = None
        self._forgetful = False

    # At its beginning

    def begin(self) -> None:
        """Send start pings, without waiting for them, and note in the audit log that the policy changed."""
        try:
            self._note_policy()
        except LocalError as problem:
            self._warn_of_ledger(problem)
        if self._told:
            with self._harmless():
                self._starting = self._start(self._pings("/start", None), START_SECONDS)

    def _note_policy(self) -> None:
        with ledgers(self._host).opened(self._policy.name, self._path) as ledger:
            old, new = ledger.policy_sha256, self._loaded.sha256
            if old != new:
                data = {"path": str(self._path), "old": old, "new": new}
                self._host.auditor.record("policy-changed", self._policy.name, data)
                ledger.policy_sha256 = new

    def _warn_of_ledger(self, problem: LocalError) -> None:
        """Once for a run: each part of it would find the same."""
        if not self._forgetful:
            self._emit(Warned(problem.code, f"this host cannot note how runs end: {problem}", problem.hint))
        self._forgetful = True

    def abandon(self) -> None:
        """Of a run that did not take place nothing is told."""
        if self._starting:
            self._starting[1].abandon()
            self._starting = None

    # At its end

    def end(self, run: Operation, known: CrmBackupError | None, code: int, *, hurry: bool) -> None:
        """Tell how it went. Takes at most `notify.timeout` and a second. hurry: somebody wants us to stop."""
        if not self._told:
            return
        report = _report(run, self._policy.name, self._host.host, self._place, known, code)
        limit = self._policy.notify.timeout.total_seconds()
        with self._harmless():
            self._end_of_start(HURRY_SECONDS if hurry else limit)
        with self._harmless():
            self._tell(report, run, min(limit, HURRY_SECONDS) if hurry else limit)

    def _tell(self, report: RunReport, run: Operation, seconds: float) -> None:
        now = self._host.clock.now().timestamp()
        receivers = receivers_of(self._policy)
        ledger, was_failing, past = self._write_down(report, run, now)
        record = ledger.action(self._action)
        repeat = self._policy.notify.repeat.total_seconds()
        chosen = messages(record, was_failing, report, [each for each, _ in receivers], now, repeat)
        if report.error_code == Interrupted.code and sys.stdin.isatty():
            chosen = []  # whoever pressed Ctrl-C knows
        text = body(report, past, self._host.auditor.head)
        names = {receiver.key: (name, ref) for (receiver, ref), name in zip(receivers, self._names(), strict=True)}
        deliveries: list[Delivery] = []
        arrived: dict[int, tuple[Receiver, Kind]] = {}
        for receiver, kind in chosen:
            name, reference = names[receiver.key]
            url = self._secret(name, reference)
            if url:
                arrived[len(deliveries)] = (receiver, kind)
                tone = TONES.get(kind, "failure" if report.outcome == "failure" else "info")
                deliveries.append(Delivery(_shown(name, url), "apprise", url, title(report, kind), text, tone))
        deliveries += self._pings(f"/{report.exit_code}" if report.exit_code else "", text)
        for index in self._sent(deliveries, seconds):
            arrived.pop(index, None)
        if not self._forgetful and (arrived or record.told or record.warned):
            with ledgers(self._host).opened(self._policy.name, self._path) as ledger:
                record = ledger.action(self._action)
                for receiver, kind in arrived.values():
                    note_told(record, report, receiver, kind, now)
                forget_others(record, report, [each for each, _ in receivers])

    def _write_down(self, report: RunReport, run: Operation, now: float) -> tuple[Ledger, bool, Past]:
        """Bring ledger and metrics up to date; gives the ledger, whether the action was failing, and its past."""
        metrics = self._policy.notify.metrics
        ledger, was_failing, past = Ledger(self._policy.name), False, Past()
        try:
            with ledgers(self._host).opened(self._policy.name, self._path) as ledger:
                record = ledger.action(self._action)
                was_failing = record.failing_since is not None
                good, since, failures = record.succeeded, record.failing_since, record.failures
                record_run(record, report, now)
                if report.outcome == "failure":
                    since, failures = record.failing_since, record.failures
                past = Past(_moment(good), _moment(since), failures)
                describe(ledger, self._policy)
                ledger.facts |= run.facts
                if run.table_rows or metrics is None or not metrics.table_rows:
                    ledger.table_rows = run.table_rows if metrics and metrics.table_rows else {}
        except LocalError as problem:
            # Without memory everybody is told, rather twice than never.
            self._warn_of_ledger(problem)
            record_run(ledger.action(self._action), report, now)
            return ledger, was_failing, past
        if metrics:
            with self._harmless():
                write_metrics(self._host, ledger.textfile)
        return ledger, was_failing, past

    # Sending

    def _end_of_start(self, within: float) -> None:
        if self._starting:
            names, sending = self._starting
            self._starting = None
            self._complain(names, sending.results(within))

    def _sent(self, deliveries: list[Delivery], seconds: float) -> list[int]:
        """Send them; gives the indexes of those that did not arrive, which are warned of."""
        started = self._start(deliveries, seconds)
        if started is None:
            return []
        names, sending = started
        return self._complain(names, sending.results())

    def _start(self, deliveries: list[Delivery], seconds: float) -> tuple[list[str], Sending] | None:
        if not deliveries:
            return None
        return [delivery.name for delivery in deliveries], _send(self._host, deliveries, seconds)

    def _complain(self, names: Sequence[str], results: Sequence[str]) -> list[int]:
        bad = [index for index, why in enumerate(results) if why]
        for index in bad:
            self._emit(Warned("notify-failed", f"{names[index]} was not reached: {results[index]}"))
        return bad

    def _pings(self, suffix: str, text: str | None) -> list[Delivery]:
        found = []
        for index, ping in enumerate(self._policy.notify.pings):
            name = f"notify.pings[{index}]"
            url = self._secret(name, ping.url) if self._action in ping.actions else None
            if url:
                body_text = text if ping.body else None
                found.append(Delivery(_shown(name, url), "ping", _extended(url, suffix), body=body_text))
        return found

    def _names(self) -> list[str]:
        return [f"notify.apprise[{index}]" for index in range(len(self._policy.notify.apprise))]

    def _secret(self, name: str, reference: SecretRef) -> Secret | None:
        try:
            return resolve(reference, self._host.environ)
        except SecretUnavailable as error:
            self._emit(Warned("notify-failed", f"{name} was not told: {error}", error.hint))
            return None

    @property
    def _place(self) -> str:
        return format_address(self._policy.repository.address())

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong inside is a warning."""
        try:
            yield
        except Interrupted as problem:
            self._emit(Warned("notify-failed", f"not everybody was told: {problem}"))
            self.abandon()
        except CrmBackupError as problem:
            self._emit(Warned(problem.code, str(problem), problem.hint))
        except Exception as problem:  # noqa: BLE001 - a fault of ours here must not turn a good backup into a bad one
            self._emit(Warned("notify-failed", f"not everybody was told: internal error, {type(problem).__name__}"))


def ledgers(host: Wiring) -> Ledgers:
    """What this host remembers of its policies' runs."""
    return Ledgers(host.paths.health, host.clock)


def try_all(host: Wiring, loaded: LoadedPolicy) -> list[tuple[str, str]]:
    """Send a test to every receiver and check; gives for each its name and why it was not reached, or an empty text.

    Raises NotifyFailed when nothing can be sent at all.
    """
    settings = loaded.policy.notify
    results: list[tuple[str, str]] = []
    deliveries: list[Delivery] = []
    text = f"This is a test of the policy {loaded.policy.name} on {host.host}, sent by `crmbackup notify test`."
    references = [(f"notify.apprise[{index}]", each.url, "apprise") for index, each in enumerate(settings.apprise)]
    references += [(f"notify.pings[{index}]", each.url, "ping") for index, each in enumerate(settings.pings)]
    for name, reference, kind in references:
        try:
            url = resolve(reference, host.environ)
        except SecretUnavailable as error:
            results.append((name, str(error)))
            continue
        sent = url if kind == "apprise" else _extended(url, "/log")
        title = f"crmbackup {loaded.policy.name}: test"
        deliveries.append(Delivery(_shown(name, url), kind, sent, title, text if kind == "apprise" else None))
    if deliveries:
        sending = _send(host, deliveries, settings.timeout.total_seconds())
        results += zip((delivery.name for delivery in deliveries), sending.results(), strict=True)
    return results


def _send(host: Wiring, deliveries: Sequence[Delivery], seconds: float) -> Sending:
    try:
        return send(deliveries, host.environ, seconds, host.clock)
    except OSError as error:
        raise NotifyFailed("nobody was told", why=error.strerror or str(error)) from error


def path_of(loaded: LoadedPolicy) -> Path:
    """The policy's file under one name, however it was called. Links stay: those of deployments change."""
    return Path(os.path.abspath(loaded.path))  # noqa: PTH100 - resolve() would follow them


def describe(ledger: Ledger, policy: Policy) -> None:
    """Write what the policy says of its metrics into its ledger."""
    source, metrics = policy.source, policy.notify.metrics
    ledger.database = str(source.path) if source.type == "sqlite" else urlsplit(source.url).path.lstrip("/")
    ledger.place = format_address(policy.repository.address())
    ledger.textfile = str(metrics.textfile) if metrics else None


def write_metrics(host: Wiring, textfile: str | None) -> None:
    """Write the metrics of all policies that share a textfile. Raises LocalError, NotifyFailed."""
    if textfile is None:
        return
    from crmbackup import __version__

    try:
        from crmbackup.notify import metrics
    except ImportError as error:
        raise NotifyFailed(
            "the metrics were not written",
            why=f"this host lacks a package ({error})",
            hint="pip install 'crmbackup[notify]'",
        ) from error
    metrics.write(Path(textfile), ledgers(host).sharing(textfile), __version__)


def receivers_of(policy: Policy) -> list[tuple[Receiver, SecretRef]]:
    """The receivers of messages. What tells them apart is where their addresses are kept, never the addresses."""
    return [
        (Receiver(hashlib.sha256(repr((each.url, each.on)).encode()).hexdigest()[:16], frozenset(each.on)), each.url)
        for each in policy.notify.apprise
    ]


def _report(run: Operation, policy: str, host: str, place: str, known: CrmBackupError | None, code: int) -> RunReport:
    return RunReport(
        policy=policy,
        action=run.action,
        run_id=run.run_id,
        host=host,
        place=place,
        started=run.started,
        seconds=run.seconds,
        outcome="failure" if known else "warning" if run.warnings else "success",
        exit_code=code,
        error_code=known.code if known else "",
        error_text=str(known) if known else "",
        error_hint=known.hint if known else "",
        warnings=tuple((each.code, each.text) for each in run.warnings),
        details=tuple(run.details),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _extended(url: Secret, suffix: str) -> Secret:
    """The address of a check with /start or an exit code behind its path."""
    parts = urlsplit(url.reveal())
    return Secret(urlunsplit(parts._replace(path=parts.path.rstrip("/") + suffix)))


def _shown(name: str, url: Secret) -> str:
    """A receiver for messages: with the scheme of its address, which says what it is and is no secret."""
    scheme = url.reveal().partition("://")[0]
    return f"{name} ({scheme})" if scheme.isalnum() and len(scheme) <= 16 else name
