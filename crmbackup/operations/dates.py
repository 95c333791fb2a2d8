"""Snapshots that are dated in the future: a clock was wrong, and they must not pass for the newest until then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from crmbackup.core.events import Emit, Warned
from crmbackup.operations.drills import AHEAD
from crmbackup.repository.manifest import ManifestHeader


def is_ahead(header: ManifestHeader, now: datetime) -> bool:
    """Whether a snapshot is dated in the future."""
    return header.captured > now + AHEAD


def settled(headers: Sequence[ManifestHeader], now: datetime) -> Sequence[ManifestHeader]:
    """The snapshots of which the latest may be taken: those that are not dated in the future.

    All of them where all are: then it is rather the clock at hand that is wrong.
    """
    return [header for header in headers if not is_ahead(header, now)] or headers


def warn_of_future(header: ManifestHeader, now: datetime, emit: Emit) -> None:
    """Say so when a snapshot that is used is dated in the future."""
    if is_ahead(header, now):
        emit(
            Warned(
                "clock",
                f"snapshot {header.snapshot_id} is dated in the future, {_moment(header)}: a clock is or was wrong, and other "
                "snapshots may hold newer data",
                "`crmbackup snapshots` lists them; --snapshot ID takes another",
            )
        )


def warn_of_passed(headers: Sequence[ManifestHeader], now: datetime, emit: Emit) -> None:
    """Say so when the latest of these was chosen among the others, as some are dated in the future."""
    ahead = [header for header in headers if is_ahead(header, now)]
    if ahead and len(ahead) < len(headers):
        last = ahead[-1]
        more = f" (so are {len(ahead) - 1} more)" if len(ahead) > 1 else ""
        emit(
            Warned(
                "clock",
                f"snapshot {last.snapshot_id} is dated in the future, {_moment(last)}{more}: a clock is or was wrong, and it is "
                "not taken for the latest",
                f"if it is this machine's clock that is behind, set it; --snapshot {last.snapshot_id} takes that snapshot",
            )
        )


def _moment(header: ManifestHeader) -> str:
    return f"{header.captured:%Y-%m-%d %H:%M} UTC"
