"""Which snapshot is meant: the same words and the same help in every command."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from crmbackup.cli.render import plural, printable, when
from crmbackup.core.errors import ObjectNotFound, RepositoryError, SnapshotNotFound, UsageError
from crmbackup.core.events import Emit, Warned
from crmbackup.operations.dates import settled, warn_of_passed
from crmbackup.operations.drills import AHEAD
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository, find_snapshot


def choose_snapshot(
    repository: Repository, policy: str | None, wanted: str, emit: Emit, now: datetime, at: datetime | None = None
) -> ManifestHeader:
    """The snapshot of a policy (None: of any) that `wanted` and `at` mean. now: the present moment.

    The latest is not one that is dated in the future, unless all are. Snapshots that cannot be trusted or read are warned of
    and left out. Raises SnapshotNotFound, and UsageError when "latest" would mix several policies.
    """
    listing = repository.snapshots(policy)
    for problem in listing.problems:
        emit(Warned(problem.code, str(problem), problem.hint))
    headers = listing.headers
    if not headers:
        raise SnapshotNotFound(
            f"the repository at {repository.storage.location} has no complete snapshot"
            + (f" of the policy {policy}" if policy else ""),
            hint=_others(repository, policy),
        )
    names = sorted({header.policy for header in headers})
    if len(names) > 1 and wanted == "latest":
        raise UsageError(
            "the repository holds snapshots of several policies",
            why=", ".join(names),
            hint="say which with --of NAME",
        )
    if at is not None and headers[0].captured > at:
        raise SnapshotNotFound(
            f"there is no complete snapshot from {when(at)} or before",
            hint=f"the oldest one is {headers[0].snapshot_id} from {when(headers[0].captured)}",
        )
    if wanted == "latest" and at is None:
        warn_of_passed(headers, now, emit)
        return find_snapshot(settled(headers, now), wanted)
    return find_snapshot(headers, wanted, at)


def meant_engine(
    repository: Repository, policy: str | None, wanted: str, now: datetime, at: datetime | None
) -> str | None:
    """The engine of the snapshot that `choose_snapshot` would take, by one header, which needs no key.

    None where that is not plain; `choose_snapshot` says why. Raises StorageError.
    """
    until = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}~" if at else "~"
    settled_until = f"{(now + AHEAD).astimezone(UTC):%Y%m%dT%H%M%SZ}~"
    found = []
    for key, size in repository.manifest_keys(policy):
        name = key.rpartition("/")[2]
        if name < until and (wanted == "latest" or name.partition("-")[2].startswith(wanted)):
            found.append((name, key, size))
    if not found or len({key.rpartition("/")[0] for _, key, _ in found}) > 1:
        return None
    if wanted == "latest" and at is None:
        found = [each for each in found if each[0] < settled_until] or found
    _, key, size = max(found)
    try:
        return repository.signed_header(key, size).header.engine
    except (RepositoryError, ObjectNotFound):
        return None


def _others(repository: Repository, policy: str | None) -> str:
    """What to do where a policy has no snapshots."""
    found = Counter(header.policy for header in repository.snapshots().headers) if policy else Counter()
    if not found:
        return "make one with `crmbackup backup POLICY`"
    counts = ", ".join(f"{plural(found[name], 'snapshot')} of {printable(name)}" for name in sorted(found))
    return f"it has {counts}; --of NAME says whose are meant"
