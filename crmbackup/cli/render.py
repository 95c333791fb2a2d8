"""Showing what happens: a terminal, JSON lines, or quiet. Operations emit events; only this prints."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from crmbackup.core.clock import Clock, SystemClock, to_text
from crmbackup.core.events import Event, Notice, PhaseEnded, PhaseStarted, Progress, Warned

if TYPE_CHECKING:
    from crmbackup.cli.bars import Bars

PHASES = {
    "scan": "Comparing",
    "tables": "Reading tables",
    "ship": "Shipping",
    "fetch": "Fetching",
    "finish": "Making durable",
    "verify": "Verifying",
    "read": "Reading packs",
}
#: Between two columns of a table.
GAP = "  "
#: Seconds between two lines of progress in JSON.
JSON_SECONDS = 0.5


class Show(Protocol):
    """What commands may print with."""

    def event(self, event: Event) -> None:
        """A listener for operations."""

    def result(self, kind: str, data: dict[str, Any], text: Callable[[], None], *, quiet: bool = False) -> None:
        """The outcome: as JSON, or by calling `text`. quiet: not printed where nobody watches and all is well."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_show(*, as_json: bool, verbose: bool) -> Show:
    """JSON lines when asked; else bars on a terminal, quiet elsewhere."""
    return JsonShow() if as_json else TextShow(verbose=verbose)


class StatelessShow:
    """What enters and leaves without doing anything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class JsonShow(StatelessShow):
    """Every event and result as one line of JSON on standard output; progress of a phase at most twice a second."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._phases: dict[str, _Phase] = {}

    def event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress(event)
            return
        if isinstance(event, PhaseStarted):
            self._phases[event.phase] = _Phase(event.total, self._clock.monotonic())
        elif isinstance(event, PhaseEnded):
            self._phases.pop(event.phase, None)
        names = {PhaseStarted: "phase", PhaseEnded: "phase-end", Notice: "notice", Warned: "warning"}
        self._line({"type": names[type(event)], **vars(event)})

    def _progress(self, event: Progress) -> None:
        phase = self._phases.setdefault(event.phase, _Phase(None, self._clock.monotonic()))
        phase.done += event.done
        now = self._clock.monotonic()
        if now - phase.told >= JSON_SECONDS:
            phase.told = now
            self._line({"type": "progress", "phase": event.phase, "done": phase.done, "total": phase.total})

    def result(self, kind: str, data: dict[str, Any], text: Callable[[], None], *, quiet: bool = False) -> None:
        self._line({"type": kind, **data})

    @staticmethod
    def _line(fields: dict[str, Any]) -> None:
        click.echo(json.dumps(fields, ensure_ascii=False, default=_json))


@dataclass
class _Phase:
    """total: of all units, None when unknown. told: when progress was last told."""

    total: int | None
    told: float
    done: int = 0


def _json(value: object) -> object:
    if isinstance(value, datetime):
        return to_text(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


class TextShow:
    """For people: progress on standard error where it is a terminal, results on standard output."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._terminal = sys.stderr.isatty()
        self._watched = sys.stdout.isatty() or verbose
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._say(f"crmbackup: warning: {event.text}")
            if event.hint:
                self._say(f"  hint: {event.hint}")
        elif isinstance(event, Notice):
            if self._verbose:
                self._say(event.text)
        elif self._terminal:
            self._progress(event)
        elif self._verbose and isinstance(event, PhaseEnded):
            click.echo(f"{PHASES.get(event.phase, event.phase)}: {event.seconds:.1f} s", err=True)

    def _say(self, text: str) -> None:
        """A line on standard error, above the bars if there are any."""
        text = printable(text, lines=True)
        if self._bars:
            self._bars.say(text)
        else:
            click.echo(text, err=True)

    def _progress(self, event: PhaseStarted | Progress | PhaseEnded) -> None:
        if isinstance(event, PhaseStarted):
            if self._bars is None:
                from crmbackup.cli.bars import Bars

                self._bars = Bars()
            self._bars.begin(event.phase, PHASES.get(event.phase, event.phase), event.total)
        elif self._bars and isinstance(event, Progress):
            self._bars.advance(event.phase, event.done)
        elif self._bars and self._bars.end(event.phase):
            self._stop()

    def _stop(self) -> None:
        if self._bars:
            self._bars.close()
        self._bars = None

    def result(self, kind: str, data: dict[str, Any], text: Callable[[], None], *, quiet: bool = False) -> None:
        self._stop()
        if self._watched or not quiet:
            text()


def knows_colours() -> bool:
    """Whether standard output is a terminal that shows colours and may: NO_COLOR and TERM=dumb forbid them."""
    from rich.console import Console

    console = Console()
    return console.color_system is not None and not console.no_color


def alarm(text: str, hint: str = "") -> None:
    """A line that must be seen, in red where there are colours, and what to do about it."""
    marked("", "red", text)
    if hint:
        marked("", None, f"  hint: {hint}")


def marked(sign: str, colour: str | None, text: str) -> None:
    """A sign and a text, folded to the terminal; with a colour where there are colours, the text too without a sign."""
    import textwrap

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    paint = colour if width and knows_colours() else None
    start = f"{sign}  " if sign else ""
    indent = " " * (len(start) + 2)
    parts = printable(text, lines=True).split("\n")
    folded = [
        textwrap.fill(part, width - len(start), subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        if width
        else part
        for part in parts
    ]
    body = "\n".join(folded).replace("\n", f"\n{indent[2:]}")
    click.echo(click.style(start, fg=paint) + body if sign else click.style(body, fg=paint))


#: A last column that is folded is at least this wide; where the terminal leaves less, rows go one below the other.
NARROWEST = 24


def table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], *, wrap_last: bool = False) -> None:
    """Print a table; one row below the other where it is wider than the terminal.

    columns: (heading, whether it holds numbers). Cells are data: nothing in them steers the terminal. wrap_last: the
    last column is text that may be folded before that.
    """
    from rich.cells import cell_len

    lines, widths = _measured(columns, rows)
    if sys.stdout.isatty():
        spare = shutil.get_terminal_size().columns - sum(widths) - len(GAP) * (len(widths) - 1)
        if spare < 0 and wrap_last and widths[-1] + spare >= NARROWEST:
            widths[-1] += spare
            lines = [piece for line in lines for piece in _folded(line, widths[-1])]
        elif spare < 0:
            _print_records(lines)
            return
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        cells = []
        for cell, width, (_, numeric) in zip(line, widths, columns, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if numeric else cell + space)
        click.echo(GAP.join(cells).rstrip())


def fits(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table is not wider than the terminal, if there is one."""
    widths = _measured(columns, rows)[1]
    return not sys.stdout.isatty() or sum(widths) + len(GAP) * (len(widths) - 1) <= shutil.get_terminal_size().columns


def _measured(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
    """Headings and cells as printed, and how wide each column is."""
    from rich.cells import cell_len

    lines = [[heading for heading, _ in columns], *([printable(cell) for cell in row] for row in rows)]
    return lines, [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]


def _folded(line: Sequence[str], width: int) -> list[list[str]]:
    """A row as several, its last cell cut between words into pieces of at most `width` cells of the terminal."""
    from rich.console import Console
    from rich.text import Text

    pieces = [piece.plain.rstrip() for piece in Text(line[-1]).wrap(Console(width=width), width)] or [""]
    empty = [""] * (len(line) - 1)
    return [[*(line[:-1] if number == 0 else empty), piece] for number, piece in enumerate(pieces)]


def _print_records(lines: Sequence[Sequence[str]]) -> None:
    headings = lines[0]
    width = max(len(heading) for heading in headings)
    for row in lines[1:]:
        for heading, cell in zip(headings, row, strict=True):
            if cell:
                click.echo(f"{heading:<{width}}  {cell}")
        click.echo()


def printable(text: str, *, lines: bool = False) -> str:
    """The text with characters that could steer a terminal spelled out. lines: line ends stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or (lines and char == "\n") else ascii(char)[1:-1] for char in text)


def rows_of(number: int | None) -> str:
    """How many rows."""
    return "rows not counted" if number is None else plural(number, "row")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts: list[tuple[int, str]] = []
    left = int(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or parts:
            parts.append((left // length, unit))
            left %= length
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def until(moment: datetime, now: datetime) -> str:
    """How far off a moment is, in minutes begun."""
    minutes = math.ceil((moment - now).total_seconds() / 60)
    return duration(minutes * 60) if minutes > 0 else "now"


def count(number: int | None) -> str:
    """A number in groups of three, or a dash."""
    return "-" if number is None else f"{number:,}"


def plural(number: int, word: str) -> str:
    """A number of things."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def when(moment: datetime, *, zone: bool = True) -> str:
    """A moment for people: UTC, to the second. zone: say so, where no heading does."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (" UTC" if zone else "")
