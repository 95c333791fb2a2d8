"""A drill: restore into an isolated place, prove that it is the snapshot, and write down how it went.

It uses the repository and the identity only, nothing of what this host remembers: what a new host would have.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from crmbackup.core.canonical import canonical_json
from crmbackup.core.clock import Clock
from crmbackup.core.errors import CrmBackupError, IntegrityError, SnapshotNotFound, StorageError
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.core.files import local_error, write_durably
from crmbackup.engines.base import CheckOutcome, IsolatedTarget, Target, TargetEngine
from crmbackup.operations.assertions import check_assertion
from crmbackup.operations.compare import compare_schema, compare_tables, compare_virtual
from crmbackup.operations.dates import is_ahead, settled, warn_of_future, warn_of_passed
from crmbackup.operations.manifests import SnapshotBody, read_body
from crmbackup.operations.restore import RestoreResult, plan_restore, run_restore
from crmbackup.operations.shipping import StorageSpec
from crmbackup.operations.workers import ProcessWorkers
from crmbackup.policy.model import Assertion
from crmbackup.reports import drill as reports
from crmbackup.reports.html import render_html
from crmbackup.reports.signing import sign_report, signature_of
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.records import DrillRecord, put_drill
from crmbackup.repository.repository import Repository, Snapshots, find_snapshot
from crmbackup.repository.signing import SigningKey


@dataclass(frozen=True)
class DrillJob:
    """Everything that one drill needs, resolved.

    open_repository: with the identity; called within the drill, so that fetching keys is timed. wanted: an id, "latest"
    or "random"; window: for random, only snapshots younger than this. directory: where to restore to. rto, rpo in
    seconds. foreign_keys: "fail" or "report", as in the policy. policy_sha256: of the policy file, None without one. operator: who asked for it.
    """

    policy: str
    open_repository: Callable[[], Repository]
    storage: StorageSpec
    make_target: Callable[[str], TargetEngine]
    wanted: str
    window: timedelta | None
    directory: Path
    reports: Path
    assertions: Sequence[Assertion]
    foreign_keys: str
    rto: float | None
    rpo: float | None
    policy_sha256: str | None
    operator: str | None
    trigger: str
    jobs: int
    host: str
    tool: str
    signer: Callable[[Repository], SigningKey]
    verify_command: str
    clock: Clock
    emit: Emit
    rng: random.Random


@dataclass(frozen=True)
class DrillResult:
    """A drill that is over. Paths of the signed JSON and of the page."""

    report: reports.DrillReport
    json_path: Path
    html_path: Path
    report_sha256: str
    error: CrmBackupError | None


@dataclass
class _Drill:
    """What is known so far; also of a drill that fails midway."""

    job: DrillJob
    id: str
    started: datetime
    repository: Repository | None = None
    header: ManifestHeader | None = None
    body: SnapshotBody | None = None
    restored: RestoreResult | None = None
    target: reports.TargetInfo | None = None
    timings: list[reports.PhaseTiming] = field(default_factory=list)
    objectives: reports.Objectives = field(default_factory=reports.Objectives)
    tables: list[reports.TableResult] = field(default_factory=list)
    schema: reports.SchemaResult | None = None
    checks: list[reports.CheckResult] = field(default_factory=list)
    assertions: list[reports.AssertionResult] = field(default_factory=list)
    engine_version: str | None = None
    left_out: Sequence[tuple[str, str]] = ()
    compared: bool = False
    error: CrmBackupError | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started, began = self.job.clock.now(), self.job.clock.monotonic()
        try:
            yield
        finally:
            self.timings.append(reports.PhaseTiming(name, started, self.job.clock.monotonic() - began))


def run_drill(job: DrillJob) -> DrillResult:
    """One drill. A failure is a report too; only what prevents the report itself is raised (LocalError, KeyProblem)."""
    _require_reports(job.reports)
    drill = _Drill(job, os.urandom(8).hex(), job.clock.now())
    began = job.clock.monotonic()
    place: IsolatedTarget | None = None
    try:
        with drill.phase("keys"):
            drill.repository = job.open_repository()
        with drill.phase("locate"):
            header = _locate(drill, drill.repository)
            body = drill.body = read_body(drill.repository.body(header), header.packs)
        engine = job.make_target(header.engine)
        with ExitStack() as stack:
            with drill.phase("prepare"):
                place = stack.enter_context(engine.isolated(job.directory, body.layout, body.properties, job.emit))
            drill.target = _target_info(job, place)
            with drill.phase("restore"):
                plan = plan_restore(drill.repository, header, place.target, drill.started)
                drill.restored = run_restore(
                    plan, drill.repository, job.storage, jobs=job.jobs, clock=job.clock, emit=job.emit
                )
            took = job.clock.monotonic() - began
            drill.objectives = replace(drill.objectives, rto_target_s=job.rto, rto_actual_s=took)
            _validate(drill, body, place.target)
    except CrmBackupError as error:
        drill.error = error
    if drill.target and place:
        drill.target = replace(drill.target, destroyed=place.gone())
    if drill.repository is None:
        # Without the repository there is no key to sign with: the failure itself is all there is to say.
        assert drill.error is not None
        raise drill.error
    return _write(drill, drill.repository)


def _require_reports(directory: Path) -> None:
    """Make the directory of reports: a drill may take hours, and one that cannot be reported is none. Raises LocalError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise local_error(error, f"write reports to {directory}") from error


def _locate(drill: _Drill, repository: Repository) -> ManifestHeader:
    job = drill.job
    listing = repository.snapshots(job.policy)
    # One that is dated in the future has no age.
    past = [header for header in listing.headers if not is_ahead(header, drill.started)]
    newest = past[-1] if past else None
    left_out = "" if len(past) == len(listing.headers) else ", without those that are dated in the future"
    drill.objectives = reports.Objectives(
        rto_target_s=job.rto,
        rpo_target_s=job.rpo,
        rpo_actual_s=max(0.0, (drill.started - newest.captured).total_seconds()) if newest else None,
        rpo_basis=f"age of the newest complete snapshot when the drill began{left_out}" if newest else None,
    )
    for problem in listing.problems:
        drill.checks.append(reports.CheckResult("manifest", ok=False, detail=str(problem)))
    drill.header = _choose(job, listing, drill.started)
    warn_of_future(drill.header, drill.started, job.emit)
    if job.wanted in ("latest", "random"):
        warn_of_passed(listing.headers, drill.started, job.emit)
    return drill.header


def _choose(job: DrillJob, listing: Snapshots, now: datetime) -> ManifestHeader:
    found = settled(listing.headers, now)
    if job.wanted != "random":
        return find_snapshot(found if job.wanted == "latest" else listing.headers, job.wanted)
    young = [header for header in found if job.window is None or now - header.captured <= job.window]
    if not young:
        raise SnapshotNotFound(
            "there is no complete snapshot to choose from",
            why="none is within drill.window" if listing.headers else "",
            hint="widen drill.window, or drill --snapshot latest",
        )
    return job.rng.choice(young)


def _target_info(job: DrillJob, place: IsolatedTarget) -> reports.TargetInfo:
    return reports.TargetInfo(
        kind=place.kind,
        host=job.host,
        directory=place.place,
        isolation=tuple(place.isolation),
        empty_before=place.empty_before,
    )


def _validate(drill: _Drill, body: SnapshotBody, target: Target) -> None:
    job = drill.job
    drill.checks.append(reports.CheckResult("image_digest", ok=True, detail=f"the whole image is {body.digest}"))
    with drill.phase("verify"):
        with ProcessWorkers(job.jobs) as workers:
            seen = target.verify(workers, body.tables, body.properties, job.emit)
        drill.engine_version = seen.engine_version
        drill.checks += [_accepted(check, job) for check in seen.checks]
        drill.checks += compare_virtual(body.tables, seen.tables)
        drill.left_out = seen.left_out
        drill.tables = compare_tables(body.tables, seen.tables, dict(seen.left_out))
        if body.schema:
            drill.schema = compare_schema(body.schema, seen)
    with drill.phase("assertions"):
        drill.assertions = [check_assertion(each, target.query) for each in job.assertions]
    drill.compared = True


def _accepted(check: CheckOutcome, job: DrillJob) -> reports.CheckResult:
    """A check as the report has it: broken references may be accepted by the policy, which the report then says."""
    if check.name != "foreign_key_check" or check.ok or job.foreign_keys == "fail":
        return reports.CheckResult(check.name, check.ok, check.detail)
    job.emit(Notice(f"rows without parents, accepted by drill.foreign_keys: {check.detail}"))
    return reports.CheckResult(check.name, ok=True, detail=f"accepted by drill.foreign_keys: report; {check.detail}")


def _write(drill: _Drill, repository: Repository) -> DrillResult:
    job = drill.job
    report = _report(drill, repository)
    public, sign = job.signer(repository)
    document = sign_report(report, public, sign)
    name = f"{drill.started:%Y%m%dT%H%M%SZ}-{job.policy}-{drill.id}"
    json_path, html_path = job.reports / f"{name}.json", job.reports / f"{name}.html"
    signature = signature_of(document)
    write_durably(json_path, canonical_json(document) + b"\n", mode=0o644)
    page = render_html(report, signature, job.verify_command.replace("REPORT", shlex.quote(str(json_path)), 1))
    write_durably(html_path, page.encode("utf-8"), mode=0o644)
    _record(drill, repository, report, signature.report_sha256, (public, sign))
    return DrillResult(report, json_path, html_path, signature.report_sha256, drill.error)


def _record(
    drill: _Drill, repository: Repository, report: reports.DrillReport, report_sha256: str, author: SigningKey
) -> None:
    """Say in the repository what was drilled and how it went: retention keeps what was proved, on every host."""
    if drill.header is None:
        return
    record = DrillRecord(
        policy=drill.job.policy,
        drill_id=drill.id,
        snapshot_id=drill.header.snapshot_id,
        started=drill.started,
        finished=report.finished_at,
        passed=report.passed,
        objectives=report.verdicts.objectives,
        rto=drill.objectives.rto_actual_s,
        report_sha256=report_sha256,
        host=drill.job.host,
    )
    try:
        with closing(drill.job.storage.open()) as storage:
            put_drill(Repository(storage, repository.document), record, author)
    except StorageError as error:
        drill.job.emit(
            Warned(
                "drill-not-recorded",
                f"the repository does not know of this drill: {error}",
                "let this host write below drills/; until then retention does not protect what the drill proved, and status "
                "and monitor do not see it",
            )
        )


def _report(drill: _Drill, repository: Repository) -> reports.DrillReport:
    job, header, body = drill.job, drill.header, drill.body
    restored: reports.Outcome = "passed" if drill.restored else "failed"
    if not drill.compared:
        validation: reports.Outcome = "not-run"
    elif not drill.tables:
        # An encrypted database: its pages are all there is to compare, and they are equal.
        validation = "passed" if all(check.ok for check in drill.checks + drill.assertions) else "failed"
    else:
        validation = reports.judge_validation(drill.tables, drill.schema, drill.checks, drill.assertions)
    error = drill.error
    damaged = (str(error),) if isinstance(error, IntegrityError) and error.code != "pack-missing" else ()
    missing = (str(error),) if isinstance(error, IntegrityError) and error.code == "pack-missing" else ()
    done = drill.restored
    return reports.DrillReport(
        drill=reports.DrillInfo(
            id=drill.id,
            quarter=reports.quarter_of(drill.started),
            type="restore and compare",
            trigger=job.trigger,
            policy=job.policy,
            tool_version=job.tool,
            policy_sha256=job.policy_sha256,
            previous_report_sha256=_previous(job),
        ),
        people=reports.People(operator=job.operator),
        source=reports.SourceInfo(
            repository=repository.storage.location,
            repository_id=repository.document.repository_id,
            snapshot_id=header.snapshot_id if header else None,
            kind=header.kind if header else None,
            captured_at=header.captured if header else None,
            parent=header.parent if header else None,
            engine=header.engine if header else None,
            engine_version=body.engine_version if body else None,
            position=json.dumps(body.position, sort_keys=True) if body else None,
            host=header.host if header else None,
            signer=repository.document.signer_name(bytes.fromhex(header.signer)) if header else None,
        ),
        target=replace(drill.target, engine_version=drill.engine_version) if drill.target else None,
        verdicts=reports.Verdicts(restored, validation, reports.judge_objectives(drill.objectives)),
        started_at=drill.started,
        finished_at=job.clock.now(),
        timings=tuple(drill.timings),
        objectives=drill.objectives,
        repository=reports.RepositoryReading(
            objects_read=(done.packs if done else 0) + (2 if body else 1),
            bytes_read=done.stored if done else 0,
            frames_verified=done.frames if done else 0,
            missing=missing,
            damaged=damaged,
        ),
        tables=tuple(drill.tables),
        schema=drill.schema,
        checks=tuple(drill.checks),
        assertions=tuple(drill.assertions),
        not_covered=tuple(_not_covered(drill)),
        error=reports.DrillError(error.code, str(error), error.hint or None) if error else None,
    )


def _not_covered(drill: _Drill) -> Iterator[reports.NotCovered]:
    body = drill.body
    for name, reason in body.not_covered if body else ():
        yield reports.NotCovered(name, reason)
    for name, reason in drill.left_out:
        yield reports.NotCovered(name, reason)
    yield reports.NotCovered("files beside the database", "uploads, attachments and configuration are not in snapshots")


def _previous(job: DrillJob) -> str | None:
    """The digest of this policy's last report in the directory, so that reports form a chain."""
    found = report_paths(job.reports, job.policy)
    try:
        return str(json.loads(found[-1].read_bytes())["report_sha256"]) if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def report_paths(directory: Path, policy: str) -> list[Path]:
    """The reports of a policy's drills, the oldest first. A directory that is not there has none."""
    names = f"{'?' * 16}-{policy}-{'?' * 16}.json"  # time and id have fixed lengths, policies any
    return sorted(directory.glob(names)) if directory.is_dir() else []
