"""Small signed objects beside the snapshots: pins and the outcome of drills.

    pins/<policy>/<snapshot id>                          keep this snapshot, whatever the rules say
    drills/<policy>/<start of the drill>-<drill id>      which snapshot was drilled, and how it went

They lie in the repository, so that every host sees them and none is lost with a machine. Each is signed by a listed
host or by the owner, and valid only at the key that its own values give, in the repository that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from crmbackup.core.canonical import canonical_json
from crmbackup.core.clock import from_text, to_text
from crmbackup.core.errors import ObjectDamaged, ObjectNotFound, RepositoryError, RepositoryTooNew, UntrustedSignature
from crmbackup.repository.repository import Repository
from crmbackup.repository.signing import DRILL, PIN, SigningKey, decode_signed, encode_signed, is_signed

Record = TypeVar("Record", "SnapshotPin", "DrillRecord")
PINS: Final = "pins/"
DRILLS: Final = "drills/"
FORMAT = 1


@dataclass(frozen=True)
class SnapshotPin:
    """Somebody wants a snapshot kept. until: to then, None for as long as nobody takes the pin away.

    why, by, host: for people; anyone who can read the storage can read them.
    """

    policy: str
    snapshot_id: str
    until: datetime | None
    why: str
    by: str | None
    host: str
    created: datetime

    @property
    def key(self) -> str:
        """Where it lies: one for each snapshot."""
        return pin_key(self.policy, self.snapshot_id)

    def holds(self, now: datetime) -> bool:
        """Whether it is not over."""
        return self.until is None or self.until > now


@dataclass(frozen=True)
class DrillRecord:
    """How a drill ended. passed: restore and validation both; objectives: "met", "missed", "not-set" or "not-run".

    rto in seconds, None when nothing was restored. report_sha256: of the signed report, which stays with the host.
    """

    policy: str
    drill_id: str
    snapshot_id: str
    started: datetime
    finished: datetime
    passed: bool
    objectives: str
    rto: float | None
    report_sha256: str
    host: str

    @property
    def key(self) -> str:
        """Where it lies: sorted by policy, then by time."""
        return drill_key(self.policy, self.started, self.drill_id)

    @property
    def verdict(self) -> str:
        """In one word: "passed", "late" (the data is right, an objective was missed) or "failed"."""
        if not self.passed:
            return "failed"
        return "late" if self.objectives == "missed" else "passed"


@dataclass(frozen=True)
class Pins:
    """The pins of one policy by snapshot id. doubtful: of these something lies there that cannot be trusted, and why."""

    valid: Mapping[str, SnapshotPin]
    doubtful: Mapping[str, RepositoryError]

    def names(self) -> frozenset[str]:
        """Ids of all snapshots that have a pin of either kind."""
        return frozenset(self.valid) | frozenset(self.doubtful)


def pin_key(policy: str, snapshot_id: str) -> str:
    """The storage key of a snapshot's pin."""
    return f"{PINS}{policy}/{snapshot_id}"


def drill_key(policy: str, started: datetime, drill_id: str) -> str:
    """The storage key of a drill's record."""
    return f"{DRILLS}{policy}/{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{drill_id}"


def put_pin(repository: Repository, pin: SnapshotPin, author: SigningKey) -> None:
    """Write a pin, in place of an older one of the same snapshot."""
    fields = {
        "policy": pin.policy,
        "snapshot_id": pin.snapshot_id,
        "until": to_text(pin.until) if pin.until else None,
        "why": pin.why,
        "by": pin.by,
        "host": pin.host,
        "created": to_text(pin.created),
    }
    _put(repository, pin.key, PIN, fields, author)


def find_pins(repository: Repository, policy: str) -> Pins:
    """All pins of a policy."""
    valid: dict[str, SnapshotPin] = {}
    doubtful: dict[str, RepositoryError] = {}
    for info in list(repository.storage.list(f"{PINS}{policy}/")):
        try:
            pin = _read_pin(_get(repository, info.key, PIN, "pin"), info.key)
        except ObjectNotFound:
            continue  # taken away since it was listed
        except RepositoryError as problem:
            doubtful[info.key.rsplit("/", 1)[1]] = problem
        else:
            valid[pin.snapshot_id] = pin
    return Pins(valid, doubtful)


def put_drill(repository: Repository, record: DrillRecord, author: SigningKey) -> None:
    """Write how a drill ended."""
    fields = {
        "policy": record.policy,
        "drill_id": record.drill_id,
        "snapshot_id": record.snapshot_id,
        "started": to_text(record.started),
        "finished": to_text(record.finished),
        "passed": record.passed,
        "objectives": record.objectives,
        "rto": record.rto,
        "report_sha256": record.report_sha256,
        "host": record.host,
    }
    _put(repository, record.key, DRILL, fields, author)


def find_drills(repository: Repository, policy: str) -> Iterator[tuple[DrillRecord | None, RepositoryError | None]]:
    """Drills of a policy, the newest first, each read when it is asked for; instead of one that cannot be trusted, why."""
    for info in reversed(list(repository.storage.list(f"{DRILLS}{policy}/"))):
        try:
            yield _read_drill(_get(repository, info.key, DRILL, "drill"), info.key), None
        except ObjectNotFound:
            continue
        except RepositoryError as problem:
            yield None, problem


def read_drill(repository: Repository, key: str) -> DrillRecord | None:
    """One record; None where there is none. Raises ObjectDamaged, RepositoryTooNew, UntrustedSignature."""
    try:
        return _read_drill(_get(repository, key, DRILL, "drill"), key)
    except ObjectNotFound:
        return None


def _put(repository: Repository, key: str, domain: bytes, fields: Mapping[str, object], author: SigningKey) -> None:
    public, sign = author
    body = {
        **fields,
        "format": FORMAT,
        "repository_id": repository.document.repository_id,
        "signer": public.hex(),
    }
    repository.storage.put(key, encode_signed(domain, body, sign))


def _get(repository: Repository, key: str, domain: bytes, what: str) -> dict[str, Any]:
    """The values of a record by somebody trusted. Raises ObjectDamaged, RepositoryTooNew, UntrustedSignature."""
    try:
        data = repository.storage.get(key)
        body, signature = decode_signed(data)
        if isinstance(body["format"], int) and body["format"] > FORMAT:
            raise RepositoryTooNew(f"the {what} {key} has a newer format", hint="install a newer crmbackup")
        signer = bytes.fromhex(body["signer"])
        own = body["repository_id"] == repository.document.repository_id
        signed = is_signed(domain + canonical_json(body), signature, signer)
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"the {what} {key} cannot be read", why=f"{type(error).__name__}: {error}") from error
    if not own or not signed or not (signer == repository.document.owner or repository.document.trusts(signer)):
        raise UntrustedSignature(
            f"the {what} {key} cannot be trusted",
            why="another repository's"
            if not own
            else "its signer is not listed"
            if signed
            else "its signature is wrong",
            hint="find out who could write to the storage",
        )
    return body


def _read_pin(body: Mapping[str, Any], key: str) -> SnapshotPin:
    try:
        pin = SnapshotPin(
            policy=str(body["policy"]),
            snapshot_id=str(body["snapshot_id"]),
            until=from_text(body["until"]) if body["until"] is not None else None,
            why=str(body["why"]),
            by=None if body["by"] is None else str(body["by"]),
            host=str(body["host"]),
            created=from_text(body["created"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"the pin {key} cannot be read", why=f"{type(error).__name__}: {error}") from error
    return _placed(pin, key)


def _read_drill(body: Mapping[str, Any], key: str) -> DrillRecord:
    try:
        record = DrillRecord(
            policy=str(body["policy"]),
            drill_id=str(body["drill_id"]),
            snapshot_id=str(body["snapshot_id"]),
            started=from_text(body["started"]),
            finished=from_text(body["finished"]),
            passed=body["passed"] is True,
            objectives=str(body["objectives"]),
            rto=None if body["rto"] is None else float(body["rto"]),
            report_sha256=str(body["report_sha256"]),
            host=str(body["host"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"the drill {key} cannot be read", why=f"{type(error).__name__}: {error}") from error
    return _placed(record, key)


def _placed(record: Record, key: str) -> Record:
    if record.key != key:
        raise ObjectDamaged(f"{key} is not the object of that name", why=f"it belongs at {record.key}")
    return record
