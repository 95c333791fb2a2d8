"""Collecting packs that no snapshot needs, while other hosts write. docs/design.md section 8 has the protocol and why.

1. A pack that no manifest names and that is older than the grace period is condemned: a mark is put.
2. A mark that has been there for the grace period, by two clocks, is ripe: if no manifest names its pack, the pack is
   deleted, and then the mark.

A mark is never taken away while its pack is there: no new snapshot may use that pack any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from crmbackup.core.clock import Clock
from crmbackup.core.errors import ObjectDamaged, ObjectNotFound, StorageDenied, TooMuchToDelete
from crmbackup.core.events import Emit, Notice, PhaseEnded, PhaseStarted, Progress, Warned
from crmbackup.repository.chunks import PackInfo, pack_key
from crmbackup.repository.marks import Mark, list_marks, put_mark
from crmbackup.repository.references import find_references
from crmbackup.repository.repository import Repository
from crmbackup.storage.base import Storage
from crmbackup.storage.probe import storage_now

#: After so many refusals and not one deletion it is not the lock of some packs, but the right to delete that is missing.
_TRIES = 100


@dataclass(frozen=True)
class PruneRules:
    """grace: see `policy.model.Prune`. max_delete: share (0..1) of all stored bytes that one run may mark or delete.

    disregard: keys of manifests that cannot be read and are lost for good.
    """

    grace: timedelta
    max_delete: float
    disregard: tuple[str, ...] = ()


@dataclass(frozen=True)
class Doomed:
    """A pack that is condemned, with all its marks."""

    pack: PackInfo
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Amount:
    """Packs, and their bytes."""

    packs: int
    size: int


@dataclass(frozen=True)
class PrunePlan:
    """What a run would do.

    delete: ripe. condemn: to be marked, for the first time or because their marks are dated in the future. swept: marks
    of packs that are gone. waiting: marked, not ripe; next_ripe: when the first of them can be deleted, by this host's
    clock. locked: ripe, but the storage keeps them; unlocked: when the first of them can go, by the storage's clock. young: unneeded, but too young to be marked. held: marked, but some snapshot needs them. stored: all packs.
    """

    rules: PruneRules
    snapshots: int
    stored: Amount
    delete: tuple[Doomed, ...]
    condemn: tuple[PackInfo, ...]
    swept: tuple[Mark, ...]
    waiting: Amount
    next_ripe: datetime | None
    locked: Amount
    unlocked: datetime | None
    young: Amount
    held: int

    @property
    def deletes(self) -> Amount:
        """What would be deleted now."""
        return amount(each.pack for each in self.delete)

    @property
    def condemns(self) -> Amount:
        """What would be marked now."""
        return amount(self.condemn)

    @property
    def changes(self) -> bool:
        """Whether a run would do anything."""
        return bool(self.delete or self.condemn or self.swept)


def amount(packs: Iterable[PackInfo]) -> Amount:
    """How many, and of how many bytes."""
    sizes = [pack.size for pack in packs]
    return Amount(len(sizes), sum(sizes))


def plan_prune(repository: Repository, rules: PruneRules, clock: Clock, emit: Emit, *, ask_storage: bool) -> PrunePlan:
    """Look what is needed and what is not. Needs no key.

    ask_storage: find out what time the storage has, by writing an object. Without that right, for a plan that is only
    shown, this host's clock stands in. Raises ObjectDamaged when a manifest cannot be read, and with it what it needs.
    """
    # The order matters: both moments, then the marks, then the packs, then the manifests. A mark that is ripe at these
    # moments was there for the grace period before the manifests are listed.
    now = clock.now()
    there = storage_now(repository.storage).astimezone(UTC) if ask_storage else now
    marks: dict[str, list[Mark]] = defaultdict(list)
    for mark in list_marks(repository.storage):
        marks[mark.pack_id].append(mark)
    stored = repository.packs()
    references = find_references(repository, stored, rules.disregard)
    for problem in references.problems:
        emit(Warned(problem.code, str(problem), "what it names is not deleted; find out who wrote it"))
    if references.unreadable:
        key, problem = references.unreadable[0]
        more = f", and {len(references.unreadable) - 1} more" if len(references.unreadable) > 1 else ""
        raise ObjectDamaged(
            f"nothing is deleted: nobody knows which packs manifest {key} needs{more}",
            why=str(problem),
            hint="install a newer crmbackup if it is too new; bring it back from a copy; or, if it is lost for good, "
            f"`--disregard {key}` lets go of what only it needs",
        )
    loose = [position for position, needed in enumerate(references.needed) if not needed]
    if loose and not references.snapshots:
        emit(Warned("nothing-collected", "there is no complete snapshot: no pack is deleted", "take one first"))
        loose = []
    sorted_out = _Sorter(rules.grace, now, there)
    for position in loose:
        pack = stored.at(position)
        sorted_out.take(pack, stored.modified(position), marks.get(pack.pack_id, []))
    free, locked, unlocked = _unlocked(repository.storage, sorted_out.delete, there)
    marked = {name: stored.position(name) for name in marks}
    return PrunePlan(
        rules=rules,
        snapshots=references.snapshots,
        stored=Amount(len(stored), stored.size),
        delete=tuple(free),
        condemn=tuple(sorted_out.condemn),
        swept=tuple(mark for name, each in marks.items() for mark in each if marked[name] < 0),
        waiting=amount(sorted_out.waiting),
        next_ripe=sorted_out.next_ripe,
        locked=amount(locked),
        unlocked=unlocked,
        young=amount(sorted_out.young),
        held=sum(position >= 0 and references.needed[position] for position in marked.values()),
    )


def _unlocked(
    storage: Storage, ripe: Iterable[Doomed], there: datetime
) -> tuple[list[Doomed], list[PackInfo], datetime | None]:
    """Those that the storage lets go, those that it keeps, and when the first of these can go."""
    free: list[Doomed] = []
    locked: list[PackInfo] = []
    unlocked: datetime | None = None
    for each in ripe:
        try:
            until = storage.kept_until(pack_key(each.pack.pack_id))
        except ObjectNotFound:
            until = None  # another run was quicker
        if until is None or until <= there:
            free.append(each)
        else:
            locked.append(each.pack)
            unlocked = min(unlocked, until) if unlocked else until
    return free, locked, unlocked


class _Sorter:
    """Puts each pack that no manifest names where it belongs."""

    def __init__(self, grace: timedelta, now: datetime, there: datetime) -> None:
        """now: by this host's clock; there: by the storage's."""
        self._grace, self._now, self._there = grace, now, there
        self.delete: list[Doomed] = []
        self.condemn: list[PackInfo] = []
        self.waiting: list[PackInfo] = []
        self.young: list[PackInfo] = []
        self.next_ripe: datetime | None = None

    def take(self, pack: PackInfo, modified: datetime, marks: list[Mark]) -> None:
        """One pack. modified: when it was stored, by the storage's clock."""
        dated = [mark for mark in marks if not mark.from_the_future(self._now, self._there)]
        if marks and not dated:
            self.condemn.append(pack)
        elif not marks:
            old = self._there - modified >= self._grace
            (self.condemn if old else self.young).append(pack)
        elif all(mark.ripe(self._grace, self._now, self._there) for mark in dated):
            self.delete.append(Doomed(pack, tuple(marks)))
        else:
            self.waiting.append(pack)
            ripe = self._now + max(self._left(mark) for mark in dated)
            self.next_ripe = min(self.next_ripe, ripe) if self.next_ripe else ripe

    def _left(self, mark: Mark) -> timedelta:
        assert mark.told is not None
        return self._grace - min(self._now - mark.told, self._there - mark.stored)


def run_prune(repository: Repository, plan: PrunePlan, clock: Clock, emit: Emit) -> Amount:
    """Do what the plan says; gives what was deleted. Raises TooMuchToDelete before anything is done, StorageError.

    It may be stopped between any two steps, run twice at the same time, and run long after the plan was made. What the
    storage refuses to delete, by a lock of which it does not tell, is passed over and warned of; when it refuses
    everything, that is raised at the end: then the right to delete is missing.
    """
    _refuse_too_much(plan)
    began = clock.monotonic()
    storage = repository.storage
    refused = _Refused(storage)
    for mark in plan.swept:
        refused.deletes(mark.key)
    emit(PhaseStarted("delete", plan.deletes.size))
    deleted: list[PackInfo] = []
    for each in plan.delete:
        emit(Progress("delete", each.pack.size))
        # The pack before its marks: what is neither marked nor there any more was not just about to be deleted.
        if not refused.deletes(pack_key(each.pack.pack_id)):
            continue
        for mark in each.marks:
            refused.deletes(mark.key)
        deleted.append(each.pack)
        emit(Notice(f"pack {each.pack.pack_id[:16]} is deleted", {"pack": each.pack.pack_id, "size": each.pack.size}))
    emit(PhaseEnded("delete", clock.monotonic() - began))
    for pack in plan.condemn:
        put_mark(storage, pack.pack_id, clock.now())
    refused.tell(emit)
    return amount(deleted)


class _Refused:
    """Deletes, and remembers what the storage refused to."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._done = 0
        self._errors: list[StorageDenied] = []

    def deletes(self, key: str) -> bool:
        """Delete an object; false when it is refused. Raises StorageError."""
        try:
            self._storage.delete(key)
        except StorageDenied as error:
            self._errors.append(error)
            if not self._done and len(self._errors) >= _TRIES:
                raise self._errors[0] from error
            return False
        self._done += 1
        return True

    def tell(self, emit: Emit) -> None:
        """Warn of what was refused. Raises StorageDenied when everything was."""
        if not self._errors:
            return
        if not self._done:
            raise self._errors[0]
        text = f"the storage refused to delete {len(self._errors)} objects, such as this one: {self._errors[0]}"
        emit(Warned("delete-refused", text, "if they are locked, a later run deletes them; else let this host delete"))


def _refuse_too_much(plan: PrunePlan) -> None:
    limit = plan.rules.max_delete * plan.stored.size
    for what, found in (("delete", plan.deletes), ("mark for deletion", plan.condemns)):
        if found.size > limit:
            raise TooMuchToDelete(
                f"this run would {what} {found.size / (plan.stored.size or 1):.0%} of all stored bytes",
                why=f"more than {plan.rules.max_delete:.0%}, which is what one run may",
                hint="look at `--plan`; if it is right, run once with --max-delete 100%",
            )
