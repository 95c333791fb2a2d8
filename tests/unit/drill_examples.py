"""What a repository may tell of drills, for tests of those who judge them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from crmbackup.operations.drills import Drills
from crmbackup.repository.records import DrillRecord


def _record(at: datetime) -> DrillRecord:
    return DrillRecord("crm", "d" * 16, "s" * 16, at, at, True, "met", 1.5, "00", "vault")


def drills(at: datetime) -> Drills:
    """The last drill passed."""
    return Drills(_record(at), _record(at))


def late(at: datetime) -> Drills:
    """It passed, but missed an objective."""
    record = replace(_record(at), objectives="missed")
    return Drills(record, record)


def failed(at: datetime, before: Drills | None = None) -> Drills:
    """It failed, after those `before`."""
    return Drills(replace(_record(at), passed=False), before.passed if before else None)
