"""Work that is begun some way ahead of whoever waits for it, so that its queue does not grow with the database."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from crmbackup.engines.base import Workers

T = TypeVar("T")
#: Pieces of work that are begun and not yet asked for, for each worker: enough that none idles.
_AHEAD = 4


def begun_ahead(pieces: Iterable[T], workers: Workers) -> Iterator[T]:
    """The pieces in order, each when some more of them were taken; taking one from `pieces` begins it.

    A piece holds the future of what it began; only few of them are there at a time.
    """
    begun: deque[T] = deque()
    for piece in pieces:
        begun.append(piece)
        if len(begun) > _AHEAD * workers.count:
            yield begun.popleft()
    while begun:
        yield begun.popleft()
