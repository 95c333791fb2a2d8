"""The rows of the catalog, as callers see them. All moments are aware; they come back in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Run:
    """One run of one command, whether or not it came to anything. Sizes in bytes.

    outcome is a word of the caller's, such as "done" or "failed"; error_code is the `code` of a CrmBackupError. kind
    is that of the snapshot ("full" or "incremental"). bytes_read counts what was read of the source, bytes_added what
    the repository grew by.
    """

    run_id: str
    policy: str
    command: str
    started_at: datetime
    outcome: str
    host: str
    finished_at: datetime | None = None
    repository_id: str | None = None
    kind: str | None = None
    error_code: str | None = None
    error_text: str | None = None
    snapshot_id: str | None = None
    bytes_read: int | None = None
    bytes_added: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """One snapshot in a repository. `size` and `added` in bytes, `packs` a count, `key` the manifest's object key."""

    repository_id: str
    snapshot_id: str
    policy: str
    kind: str
    captured_at: datetime
    finished_at: datetime
    size: int
    added: int
    packs: int
    host: str
    key: str
    parent: str | None = None


@dataclass(frozen=True)
class Drill:
    """One drill and its three verdicts. `report_path` is where the signed report was written to."""

    drill_id: str
    policy: str
    started_at: datetime
    finished_at: datetime
    restore: str
    validation: str
    objectives: str
    repository_id: str | None = None
    snapshot_id: str | None = None
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    report_path: str | None = None
    report_sha256: str | None = None


Row = Run | Snapshot | Drill
#: By the name of the class.
KINDS: Mapping[str, type[Row]] = {kind.__name__: kind for kind in (Run, Snapshot, Drill)}
