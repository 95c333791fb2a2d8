"""Recording runs in the catalog. The catalog is a cache: failing to write it is a warning, never a failed run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crmbackup.cli.wiring import Wiring
from crmbackup.core.errors import CrmBackupError, Interrupted, KeyProblem, LocalError
from crmbackup.core.events import Emit, Warned

if TYPE_CHECKING:
    from crmbackup.catalog.records import Drill, Row, Snapshot
    from crmbackup.operations.backup import BackupResult
    from crmbackup.operations.drill import DrillResult
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.reports.drill import DrillReport
    from crmbackup.repository.manifest import ManifestHeader
    from crmbackup.repository.repository import Repository


def snapshot_row(header: ManifestHeader) -> Snapshot:
    """A manifest's header as the catalog keeps it."""
    from crmbackup.catalog.records import Snapshot

    return Snapshot(
        repository_id=header.repository_id,
        snapshot_id=header.snapshot_id,
        policy=header.policy,
        kind=header.kind,
        parent=header.parent,
        captured_at=header.captured,
        finished_at=header.finished,
        size=header.source_size,
        added=header.added_size,
        packs=len(header.packs),
        host=header.host,
        key=header.key,
    )


def record_backup(host: Wiring, loaded: LoadedPolicy, result: BackupResult, emit: Emit) -> None:
    """A committed snapshot and the run that made it."""
    from crmbackup.catalog.records import Run

    header = result.header
    run = Run(
        run_id=host.auditor.run_id,
        policy=header.policy,
        repository_id=header.repository_id,
        command="backup",
        kind=header.kind,
        started_at=header.started,
        finished_at=header.finished,
        outcome="done",
        error_code=None,
        error_text=None,
        snapshot_id=header.snapshot_id,
        bytes_read=result.read,
        bytes_added=result.added,
        host=host.host,
    )
    _record(host, loaded, emit, run, snapshot_row(header))


def record_failure(
    host: Wiring,
    loaded: LoadedPolicy | None,
    repository: Repository | None,
    command: str,
    kind: str | None,
    started: datetime,
    error: CrmBackupError,
    emit: Emit,
) -> None:
    """A run that failed."""
    from crmbackup.catalog.records import Run

    run = Run(
        run_id=host.auditor.run_id,
        policy=loaded.policy.name if loaded else "",
        repository_id=repository.document.repository_id if repository else "",
        command=command,
        kind=kind,
        started_at=started,
        finished_at=host.clock.now(),
        outcome="failed",
        error_code=error.code,
        error_text=str(error),
        snapshot_id=None,
        bytes_read=0,
        bytes_added=0,
        host=host.host,
    )
    _record(host, loaded, emit, run)


def _record(host: Wiring, loaded: LoadedPolicy | None, emit: Emit, *rows: Row) -> None:
    try:
        host.record(loaded, *rows)
    except (LocalError, KeyProblem) as error:
        emit(
            Warned(
                error.code, f"the catalog was not updated: {error}", "`crmbackup catalog rebuild` brings it up to date"
            )
        )


def _drill_row(report: DrillReport, path: Path, digest: str) -> Drill:
    from crmbackup.catalog.records import Drill

    return Drill(
        drill_id=report.drill.id,
        policy=report.drill.policy,
        repository_id=report.source.repository_id or "",
        snapshot_id=report.source.snapshot_id,
        started_at=report.started_at,
        finished_at=report.finished_at,
        restore=report.verdicts.restore,
        validation=report.verdicts.validation,
        objectives=report.verdicts.objectives,
        rto_seconds=report.objectives.rto_actual_s,
        rpo_seconds=report.objectives.rpo_actual_s,
        report_path=str(path),
        report_sha256=digest,
    )


def record_drill(host: Wiring, loaded: LoadedPolicy | None, result: DrillResult, emit: Emit) -> None:
    """A drill, passed or not."""
    _record(host, loaded, emit, _drill_row(result.report, result.json_path, result.report_sha256))


def drill_rows(host: Wiring, loaded: LoadedPolicy, repository: Repository, emit: Emit) -> list[Drill]:
    """What the genuine drill reports in the report directory tell; others are warned of."""
    directory = host.reports(loaded)
    rows = []
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        try:
            report, digest = _genuine(path, repository)
        except Interrupted:
            raise
        except (CrmBackupError, OSError) as error:
            emit(Warned("report-ignored", f"{path} is left out: {error}"))
            continue
        if report.source.repository_id == repository.document.repository_id:
            rows.append(_drill_row(report, path, digest))
    return rows


def _genuine(path: Path, repository: Repository) -> tuple[DrillReport, str]:
    """A report that somebody signed whom the repository lists, and its digest. Raises CrmBackupError, OSError."""
    from crmbackup.reports.signing import read_document, signature_of, verify_report

    trusted = {repository.document.owner, *(signer.public for signer in repository.document.signers)}
    document = read_document(path.read_bytes())
    return verify_report(document, trusted), signature_of(document).report_sha256
