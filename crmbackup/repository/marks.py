"""Marks of garbage collection: which packs are about to be deleted, and since when.

    condemned/<pack id>-<moment>

The object is empty of meaning: all that counts is its key and the storage's own time of it. The moment in the key is
that of the collector's clock, in UTC, so that a mark has two ages, by two clocks, and one clock that is wrong does not
make it ripe. Docs/design.md section 8 has the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from crmbackup.storage.base import Storage

CONDEMNED: Final = "condemned/"
_MOMENT = "%Y%m%dT%H%M%SZ"
# A pack id alone is no mark of ours, but whoever wrote it means that pack: better not reuse it.
_KEY = re.compile(r"condemned/([0-9a-f]{64})(?:-(\d{8}T\d{6}Z))?")
_CONTENT = b"condemned\n"


@dataclass(frozen=True)
class Mark:
    """One pack is condemned. told: when, by the collector's clock, None when its key does not say; stored: when, by
    the storage's clock.
    """

    key: str
    pack_id: str
    told: datetime | None
    stored: datetime

    def ripe(self, grace: timedelta, now: datetime, storage_now: datetime) -> bool:
        """Whether the grace period is over by both clocks, each compared with itself."""
        return self.told is not None and now - self.told >= grace and storage_now - self.stored >= grace

    def from_the_future(self, now: datetime, storage_now: datetime) -> bool:
        """Whether one of the clocks was set back since, or the mark is not dated: its time cannot be waited for."""
        return self.told is None or self.told > now or self.stored > storage_now


def list_marks(storage: Storage) -> Iterator[Mark]:
    """All marks, those of one pack behind each other."""
    for info in storage.list(CONDEMNED):
        found = _KEY.fullmatch(info.key)
        if found:
            yield Mark(info.key, found[1], _moment(found[2]), info.modified)


def put_mark(storage: Storage, pack_id: str, now: datetime) -> None:
    """Condemn a pack."""
    storage.put(f"{CONDEMNED}{pack_id}-{now.astimezone(UTC):{_MOMENT}}", _CONTENT)


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.strptime(text, _MOMENT).replace(tzinfo=UTC) if text else None
    except ValueError:
        return None
