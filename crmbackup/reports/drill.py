"""What a drill found, as frozen values.

Three verdicts are kept apart on purpose: whether the restore ran (`restore`), whether the restored data equals the
snapshot (`validation`), and whether it was fast and recent enough (`objectives`). None stands for what is not known;
nothing here is filled with a guess. All moments are aware. Texts may be anything a database or a person can name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

SCHEMA_VERSION = 1

#: "left-out": it would act by itself, so the drill did not bring it back; `detail` says why.
TableStatus = Literal["match", "mismatch", "missing", "unexpected", "unreadable", "left-out"]
Outcome = Literal["passed", "failed", "not-run"]
ObjectivesOutcome = Literal["met", "missed", "not-set", "not-run"]


@dataclass(frozen=True)
class DrillInfo:
    """Which drill this is. `quarter` is like "2026-Q3"; the hashes are hex SHA-256.

    policy_sha256 is of the policy as it was used; previous_report_sha256 chains the reports of one policy.
    """

    id: str
    quarter: str
    type: str
    trigger: str
    policy: str
    tool_version: str
    policy_sha256: str | None = None
    previous_report_sha256: str | None = None


@dataclass(frozen=True)
class People:
    """Who stands behind the drill."""

    operator: str | None = None
    witness: str | None = None
    approver: str | None = None


@dataclass(frozen=True)
class SourceInfo:
    """What was restored. Only the repository's address is known when a drill fails before it found a snapshot.

    kind, parent, captured_at, position, engine, engine_version, host and signer are as the snapshot's manifest says.
    """

    repository: str
    repository_id: str | None = None
    snapshot_id: str | None = None
    kind: str | None = None
    captured_at: datetime | None = None
    parent: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    position: str | None = None
    host: str | None = None
    signer: str | None = None


@dataclass(frozen=True)
class TargetInfo:
    """Where it was restored to. `isolation` lists, in words, what kept it apart from production."""

    kind: str
    host: str
    directory: str
    isolation: tuple[str, ...] = ()
    engine_version: str | None = None
    empty_before: bool | None = None
    destroyed: bool | None = None


@dataclass(frozen=True)
class PhaseTiming:
    """One part of the drill. Phases may overlap."""

    phase: str
    started_at: datetime
    seconds: float


@dataclass(frozen=True)
class Objectives:
    """Seconds that the policy allows and seconds that it took. rpo_basis says, in words, what the RPO was measured by."""

    rto_target_s: float | None = None
    rto_actual_s: float | None = None
    rpo_target_s: float | None = None
    rpo_actual_s: float | None = None
    rpo_basis: str | None = None


@dataclass(frozen=True)
class RepositoryReading:
    """What was read from the repository. `missing` and `damaged` hold object keys."""

    objects_read: int
    bytes_read: int
    frames_verified: int
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableResult:
    """One table, as the snapshot recorded it (expected) and as it was read from the restored database (actual)."""

    name: str
    kind: str
    status: TableStatus
    expected_rows: int | None = None
    actual_rows: int | None = None
    expected_checksum: str | None = None
    actual_checksum: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class ObjectCount:
    """How many schema objects of one kind (table, index, view, trigger ...) there are."""

    kind: str
    expected: int
    actual: int


@dataclass(frozen=True)
class SchemaResult:
    """The comparison of the database's definition. `differences` are sentences, one per object that differs."""

    expected_digest: str
    actual_digest: str | None
    objects: tuple[ObjectCount, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the restored definition is the one that was backed up."""
        return self.expected_digest == self.actual_digest and not self.differences


@dataclass(frozen=True)
class CheckResult:
    """One check of the whole restored database, such as "integrity_check", "foreign_key_check", "image_digest"."""

    name: str
    ok: bool
    detail: str | None = None


@dataclass(frozen=True)
class AssertionResult:
    """One question of the policy to the restored database. `error` is set when it could not be asked."""

    name: str
    sql: str
    expected: str | None
    actual: str | None
    ok: bool
    error: str | None = None


@dataclass(frozen=True)
class NotCovered:
    """Something that this drill does not prove, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Verdicts:
    """The three answers."""

    restore: Outcome
    validation: Outcome
    objectives: ObjectivesOutcome


@dataclass(frozen=True)
class DrillError:
    """Why the drill could not go on: `code` of a CrmBackupError and its text."""

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class DrillReport:
    """All evidence of one drill."""

    drill: DrillInfo
    people: People
    source: SourceInfo
    target: TargetInfo | None
    verdicts: Verdicts
    started_at: datetime
    finished_at: datetime
    timings: tuple[PhaseTiming, ...] = ()
    objectives: Objectives = field(default_factory=Objectives)
    repository: RepositoryReading | None = None
    tables: tuple[TableResult, ...] = ()
    schema: SchemaResult | None = None
    checks: tuple[CheckResult, ...] = ()
    assertions: tuple[AssertionResult, ...] = ()
    not_covered: tuple[NotCovered, ...] = ()
    error: DrillError | None = None

    @property
    def passed(self) -> bool:
        """Whether the data came back and is right. Objectives are judged apart."""
        return self.verdicts.restore == "passed" and self.verdicts.validation == "passed"


def judge_validation(
    tables: Sequence[TableResult],
    schema: SchemaResult | None,
    checks: Sequence[CheckResult],
    assertions: Sequence[AssertionResult],
) -> Outcome:
    """The verdict "failed" if anything differs, "not-run" if no table was compared, else "passed"."""
    compared = [table for table in tables if table.status != "left-out"]
    right = [table.status == "match" for table in compared]
    right += [check.ok for check in checks]
    right += [assertion.ok for assertion in assertions]
    if schema is not None:
        right.append(schema.ok)
    if not all(right):
        return "failed"
    return "passed" if compared else "not-run"


def judge_objectives(objectives: Objectives) -> ObjectivesOutcome:
    """The verdict "missed" if one is over its target, "not-run" if one that has a target was not measured, else "met".

    Without any target it is "not-set".
    """
    pairs = [
        (objectives.rto_target_s, objectives.rto_actual_s),
        (objectives.rpo_target_s, objectives.rpo_actual_s),
    ]
    wanted = [(target, actual) for target, actual in pairs if target is not None]
    if not wanted:
        return "not-set"
    if any(actual is not None and actual > target for target, actual in wanted):
        return "missed"
    return "not-run" if any(actual is None for _, actual in wanted) else "met"


def quarter_of(moment: datetime) -> str:
    """The calendar quarter in UTC, like "2026-Q3"."""
    moment = moment.astimezone(UTC)
    return f"{moment.year}-Q{(moment.month + 2) // 3}"
