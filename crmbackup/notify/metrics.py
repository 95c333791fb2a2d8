"""Metrics for Prometheus, as the textfile collector of its node_exporter reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from crmbackup.core.files import local_error, write_durably
from crmbackup.notify.ledger import Ledger

MODE = 0o644
LABELS = ("policy", "database", "repo")
#: Attribute of an action's record -> metric, which has a label more: `action`.
ACTION_METRICS = {
    "attempted": ("crmbackup_last_attempt_timestamp_seconds", "When the last run of the action ended, however it did."),
    "exit_code": ("crmbackup_last_exit_code", "The exit code of the last run of the action; 0 is good."),
    "seconds": ("crmbackup_duration_seconds", "How long the last run of the action took."),
}
#: Fact of a ledger -> metric.
FACT_METRICS = {
    "captured": ("crmbackup_last_success_timestamp_seconds", "The moment that the newest good snapshot holds."),
    "snapshot_bytes": ("crmbackup_snapshot_bytes", "Size of the database at the newest snapshot."),
    "added_bytes": ("crmbackup_added_bytes", "What the newest snapshot added to the repository."),
    "snapshots": ("crmbackup_snapshots", "How many snapshots the repository holds."),
    "oldest": ("crmbackup_oldest_snapshot_timestamp_seconds", "The moment that the oldest snapshot holds."),
    "verified": ("crmbackup_last_verify_success_timestamp_seconds", "When a check last found the repository whole."),
    "drilled": ("crmbackup_last_drill_success_timestamp_seconds", "When the last drill that passed began."),
    "drill_rto": ("crmbackup_drill_rto_seconds", "How long the restore took in the last drill."),
    "drill_rpo": ("crmbackup_drill_rpo_seconds", "How old the newest snapshot was when the last drill began."),
}
TABLE_ROWS = ("crmbackup_table_rows", "Rows of a table at the newest snapshot.")
BUILD_INFO = ("crmbackup_build_info", "The version of crmbackup that wrote this; always 1.")


def render(ledgers: Iterable[Ledger], version: str) -> bytes:
    """The text form of all metrics of these policies. What is not known has no series."""
    registry = CollectorRegistry()
    actions = {name: _gauge(registry, metric, "action") for name, metric in ACTION_METRICS.items()}
    facts = {name: _gauge(registry, metric) for name, metric in FACT_METRICS.items()}
    rows = _gauge(registry, TABLE_ROWS, "table")
    build = _gauge(registry, BUILD_INFO, "version")
    for ledger in ledgers:
        labels = (ledger.policy, ledger.database, ledger.place)
        for action, record in sorted(ledger.actions.items()):
            for name, gauge in actions.items():
                value = getattr(record, name)
                if value is not None:
                    gauge.labels(*labels, action).set(value)
        for name, gauge in facts.items():
            if name in ledger.facts:
                gauge.labels(*labels).set(ledger.facts[name])
        for table, count in sorted(ledger.table_rows.items()):
            rows.labels(*labels, table).set(count)
        build.labels(*labels, version).set(1)
    return generate_latest(registry)


def _gauge(registry: CollectorRegistry, metric: tuple[str, str], *more: str) -> Gauge:
    name, text = metric
    return Gauge(name, text, (*LABELS, *more), registry=registry)


def write(path: Path, ledgers: Iterable[Ledger], version: str) -> None:
    """Replace the file in one step; the collector never sees half of it. Raises LocalError."""
    write_durably(path, render(ledgers, version), mode=MODE)
    try:
        path.chmod(MODE)  # whatever the umask of cron or a service is, the exporter runs as somebody else
    except OSError as error:
        raise local_error(error, f"let others read {path}") from error
