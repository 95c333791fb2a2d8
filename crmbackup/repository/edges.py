"""The ends of a policy's history."""

from __future__ import annotations

from dataclasses import dataclass

from crmbackup.core.errors import ObjectNotFound, RepositoryError
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository


@dataclass(frozen=True)
class Edges:
    """The ends of a policy's history, without reading what lies between.

    count: of all manifests, read or not. problems: of those that had to be passed over to find the two.
    """

    oldest: ManifestHeader | None
    newest: ManifestHeader | None
    count: int
    problems: tuple[RepositoryError, ...]


def read_edges(repository: Repository, policy: str) -> Edges:
    """The oldest and the newest complete snapshot of a policy, by two reads where all is well. Needs no key."""
    keys = sorted(repository.manifest_keys(policy))
    problems: dict[str, RepositoryError] = {}
    found: list[ManifestHeader | None] = []
    for order in (keys, keys[::-1]):
        found.append(None)
        for key, size in order:
            try:
                found[-1] = repository.signed_header(key, size).header
                break
            except ObjectNotFound:
                continue  # deleted since it was listed
            except RepositoryError as problem:
                problems[key] = problem
    return Edges(found[0], found[1], len(keys), tuple(problems.values()))
