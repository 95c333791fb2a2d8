"""The ends of a policy's history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from crmbackup.core.errors import ObjectNotFound, RepositoryError
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository


@dataclass(frozen=True)
class Edges:
    """The ends of a policy's history, without reading what lies between.

    count: of all manifests, read or not. problems: of those that had to be passed over to find the two. ahead: the newest
    of all, if it is dated in the future; `newest` is not.
    """

    oldest: ManifestHeader | None
    newest: ManifestHeader | None
    count: int
    problems: tuple[RepositoryError, ...]
    ahead: ManifestHeader | None = None


def read_edges(repository: Repository, policy: str, future: datetime) -> Edges:
    """The oldest and the newest complete snapshot of a policy, by two reads where all is well. Needs no key.

    future: what is dated later is no snapshot of today, whatever its date says.
    """
    keys = sorted(repository.manifest_keys(policy))
    problems: dict[str, RepositoryError] = {}
    oldest = next(_headers(repository, keys, problems), None)
    newest = ahead = None
    for header in _headers(repository, keys[::-1], problems):
        if header.captured <= future:
            newest = header
            break
        ahead = ahead or header
    return Edges(oldest, newest, len(keys), tuple(problems.values()), ahead)


def _headers(
    repository: Repository, keys: Iterable[tuple[str, int]], problems: dict[str, RepositoryError]
) -> Iterator[ManifestHeader]:
    for key, size in keys:
        try:
            yield repository.signed_header(key, size).header
        except ObjectNotFound:
            continue  # deleted since it was listed
        except RepositoryError as problem:
            problems[key] = problem
