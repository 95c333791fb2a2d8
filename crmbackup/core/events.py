"""One stream of events, several listeners: terminal, JSON lines, logs, later notifications.

Operations emit; they never print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PhaseStarted:
    """A part of an operation begins. `total` is in `unit`s; None when it is not known."""

    phase: str
    total: int | None = None
    unit: str = "bytes"


@dataclass(frozen=True)
class Progress:
    """`done` more units of the phase are behind us."""

    phase: str
    done: int


@dataclass(frozen=True)
class PhaseEnded:
    """The phase is over."""

    phase: str
    seconds: float


@dataclass(frozen=True)
class Notice:
    """A fact worth knowing with --verbose."""

    text: str
    data: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Warned:
    """Something is not as it should be, yet the operation goes on. Shown even when quiet. `code` is stable."""

    code: str
    text: str
    hint: str = ""


Event = PhaseStarted | Progress | PhaseEnded | Notice | Warned
Emit = Callable[[Event], None]


def discard(event: Event) -> None:
    """A listener for when nobody listens."""
