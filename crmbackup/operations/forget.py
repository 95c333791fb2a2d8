"""Removing snapshots that the retention rules do not keep. Their packs are for `prune` to collect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from crmbackup.core.clock import Clock
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.policy.model import Retention
from crmbackup.policy.retention import Candidate, Decision, decide, has_rules
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.packs import StoredPacks
from crmbackup.repository.records import Pins, SnapshotPin, find_drills, find_pins
from crmbackup.repository.references import mark
from crmbackup.repository.repository import Repository
from crmbackup.storage.probe import storage_now

#: Clocks of host and storage that differ by more are worth a warning, in seconds.
_CLOCKS_DIFFER = 600.0


@dataclass(frozen=True)
class ForgetRules:
    """What the policy says. drop_flawed: also remove snapshots that are not whole, if enough whole ones are there.

    damaged: names of packs that a check on this host found damaged; snapshots that need one of them are not whole.
    drop_after: also remove snapshots that are dated later, if enough good ones are there.
    """

    policy: str
    retention: Retention
    timezone: str
    drop_flawed: bool = False
    damaged: Collection[str] = ()
    drop_after: datetime | None = None


@dataclass(frozen=True)
class Verdict:
    """One snapshot and what becomes of it."""

    header: ManifestHeader
    decision: Decision


@dataclass(frozen=True)
class ForgetPlan:
    """What a run would do. verdicts: the newest first. unneeded: packs that no snapshot of any policy would need then,
    how many and of how many bytes. any_rule: false where the policy has none and all is kept.
    """

    policy: str
    verdicts: tuple[Verdict, ...]
    any_rule: bool
    unneeded_packs: int
    unneeded_bytes: int

    @property
    def keep(self) -> tuple[Verdict, ...]:
        """Those that stay."""
        return tuple(each for each in self.verdicts if each.decision.keep)

    @property
    def remove(self) -> tuple[Verdict, ...]:
        """Those that go."""
        return tuple(each for each in self.verdicts if not each.decision.keep)


def plan_forget(repository: Repository, rules: ForgetRules, now: datetime, emit: Emit) -> ForgetPlan:
    """Decide for every trusted snapshot of the policy. Changes nothing; needs no key, but a trusted repository.json.

    Manifests that cannot be trusted or read are warned of; they are never removed and count for nothing.
    """
    listing = repository.snapshots()
    for problem in listing.problems:
        emit(Warned(problem.code, str(problem), problem.hint))
    stored = repository.packs()
    headers = {header.snapshot_id: header for header in listing.headers if header.policy == rules.policy}
    pins = find_pins(repository, rules.policy)
    for snapshot_id, problem in pins.doubtful.items():
        if snapshot_id in headers:
            emit(
                Warned(
                    problem.code, str(problem), f"{snapshot_id} is kept for now; pin it anew, or `crmbackup unpin` it"
                )
            )
    candidates = [
        Candidate(
            snapshot_id=header.snapshot_id,
            captured=header.captured,
            full=header.kind == "full",
            flaw=_flaw(header, stored, rules.damaged),
            pin=_pinned(pins, header.snapshot_id, now),
        )
        for header in headers.values()
    ]
    countable = {c.snapshot_id: headers[c.snapshot_id] for c in candidates if not c.flaw and c.captured <= now}
    decisions = decide(
        candidates,
        rules.retention,
        now=now,
        timezone=rules.timezone,
        proved=_proved(repository, rules.policy, countable, emit),
        drop_flawed=rules.drop_flawed,
        drop_after=rules.drop_after,
    )
    verdicts = tuple(Verdict(headers[each.candidate.snapshot_id], each) for each in decisions)
    gone = {each.header.key for each in verdicts if not each.decision.keep}
    needed, loose = bytearray(len(stored)), bytearray(len(stored))
    for header in listing.headers:
        mark(loose if header.key in gone else needed, stored, header.packs)
    unneeded = [stored.at(position).size for position in range(len(stored)) if loose[position] > needed[position]]
    return ForgetPlan(rules.policy, verdicts, has_rules(rules.retention), len(unneeded), sum(unneeded))


def run_forget(repository: Repository, plan: ForgetPlan, now: datetime, emit: Emit) -> Sequence[ManifestHeader]:
    """Remove what the plan says, the oldest first; gives what was removed. Raises StorageError.

    Each removal is whole by itself: a run that is stopped has removed some and harmed none. A snapshot that was pinned
    since the plan was made stays.
    """
    pins = find_pins(repository, plan.policy)
    removed = []
    for each in reversed(plan.remove):
        header = each.header
        if _pinned(pins, header.snapshot_id, now):
            emit(Notice(f"{header.snapshot_id} stays: it was pinned meanwhile"))
            continue
        repository.storage.delete(header.key)
        # Only now: with its pin gone first, a run stopped in between would leave a snapshot unprotected.
        if header.snapshot_id in pins.valid:
            repository.storage.delete(pins.valid[header.snapshot_id].key)
        removed.append(header)
        reason = each.decision.reasons[0]
        data: dict[str, object] = {"snapshot_id": header.snapshot_id, "policy": header.policy, "reason": reason}
        emit(Notice(f"snapshot {header.snapshot_id} is removed: {reason}", data))
    return removed


def careful_now(repository: Repository, clock: Clock, emit: Emit) -> datetime:
    """The earlier of what this host and the storage take for the present moment.

    Pins end and future snapshots become countable as time goes on, so of two clocks the slower one deletes less. Needs
    the right to write.
    """
    return both_clocks(repository, clock, emit)[0]


def both_clocks(repository: Repository, clock: Clock, emit: Emit) -> tuple[datetime, datetime]:
    """What this host and the storage take for the present moment, the earlier first."""
    here = clock.now()
    there = storage_now(repository.storage).astimezone(UTC)
    if abs((here - there).total_seconds()) > _CLOCKS_DIFFER:
        emit(
            Warned(
                "clocks-differ",
                f"the clocks of this host and of the storage are {_apart(here - there)} apart",
                "set the one that is wrong; until then the earlier time counts",
            )
        )
    return min(here, there), max(here, there)


def _apart(difference: timedelta) -> str:
    minutes = int(abs(difference.total_seconds())) // 60
    return f"{minutes // 60} h {minutes % 60} min"


def _flaw(header: ManifestHeader, stored: StoredPacks, damaged: Collection[str]) -> str:
    missing = stored.lacking(header.packs)
    if missing:
        return f"{missing} of {len(header.packs)} packs missing or cut"
    spoilt = sum(pack.pack_id in damaged for pack in header.packs) if damaged else 0
    return f"{spoilt} of {len(header.packs)} packs damaged" if spoilt else ""


def _pinned(pins: Pins, snapshot_id: str, now: datetime) -> str:
    """What a pin that holds says, empty without one. One that cannot be trusted holds: better too much is kept."""
    pin = pins.valid.get(snapshot_id)
    if pin:
        return pin_text(pin) if pin.holds(now) else ""
    return "pinned by an object that cannot be trusted" if snapshot_id in pins.doubtful else ""


def pin_text(pin: SnapshotPin) -> str:
    """A pin in a few words."""
    until = f" until {pin.until:%Y-%m-%d %H:%M} UTC" if pin.until else ""
    return f"pinned{until}: {pin.why}"


def _proved(repository: Repository, policy: str, headers: dict[str, ManifestHeader], emit: Emit) -> set[str]:
    """The newest of the snapshots that passed a drill, if any. Reads no more records than that takes."""
    best: ManifestHeader | None = None
    for record, problem in find_drills(repository, policy):
        if problem:
            emit(Warned(problem.code, str(problem), problem.hint))
        if record is None:
            continue
        if best and record.started < best.captured:
            break  # a drill cannot have proved a snapshot that was not taken yet
        header = headers.get(record.snapshot_id)
        if header and record.passed and (best is None or header.captured > best.captured):
            best = header
    return {best.snapshot_id} if best else set()
