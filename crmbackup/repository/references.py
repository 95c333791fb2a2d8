"""Which packs are needed: what every manifest names, also those that nobody may trust.

Deleting asks another question than restoring. A manifest whose signer is unknown is no snapshot to restore, but it may
be one tomorrow (an old list of hosts, a wrong repository.json), so what it names stays. One that cannot be read at all
names nothing, and may be the only one that needs some pack: then nothing may be deleted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from crmbackup.core.errors import ObjectNotFound, RepositoryError
from crmbackup.repository.chunks import PackInfo
from crmbackup.repository.manifest import read_header
from crmbackup.repository.packs import StoredPacks
from crmbackup.repository.repository import Repository

#: What the key of a manifest looks like: nothing can be restored from an object at another one.
_MANIFEST_KEY = re.compile(r"snapshots/[A-Za-z0-9._-]+/\d{8}T\d{6}Z-[0-9a-f]{16}")


@dataclass(frozen=True)
class References:
    """needed: for each stored pack, by its position, 1 when some manifest names it. snapshots: how many complete, trusted
    ones there are.

    problems: what is wrong with manifests that protect what they name all the same. unreadable: keys of manifests whose
    packs nobody knows, and why.
    """

    needed: bytearray
    snapshots: int
    problems: tuple[RepositoryError, ...]
    unreadable: tuple[tuple[str, RepositoryError], ...]


def mark(needed: bytearray, stored: StoredPacks, packs: Iterable[PackInfo]) -> None:
    """Set the bytes of these packs to 1. needed: one byte for each stored pack. What is not stored is passed over."""
    for position, _ in stored.look_up(packs):
        if position >= 0:
            needed[position] = 1


def find_references(repository: Repository, stored: StoredPacks, disregard: Collection[str] = ()) -> References:
    """Read every manifest's header, one at a time. Needs no key. stored: the packs that are asked about.

    disregard: keys of manifests that nobody will ever read again.

    One that can be read protects what it names, whatever `disregard` says.
    """
    needed = bytearray(len(stored))
    snapshots = 0
    problems: list[RepositoryError] = []
    unreadable: list[tuple[str, RepositoryError]] = []
    for key, size in repository.manifest_keys(None):
        try:
            data = repository.header_bytes(key, size)
            signed = read_header(data, key)
        except ObjectNotFound:
            continue  # forgotten since it was listed
        except RepositoryError as problem:
            if key in disregard:
                continue
            if _MANIFEST_KEY.fullmatch(key):
                unreadable.append((key, problem))
            else:
                problems.append(problem)
            continue
        mark(needed, stored, signed.header.packs)
        try:
            repository.checked(signed, key, size)
        except RepositoryError as problem:
            problems.append(problem)
        else:
            snapshots += 1
    return References(needed, snapshots, tuple(problems), tuple(unreadable))
