"""Progress bars on a terminal. Imports rich, so it is itself imported only when a bar is to be shown."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from crmbackup.cli.render import size

#: Below this many columns only the name, the share and the time left fit on one line.
NARROW = 76


class _Amount(ProgressColumn):
    """How much of how much, in bytes."""

    def render(self, task: Task) -> Text:
        if not task.fields["sized"]:
            return Text("")
        if task.finished or task.total is None:
            return Text(size(task.completed), style="progress.download")
        return Text(f"{size(task.completed)} of {size(task.total)}", style="progress.download")


class _Rate(ProgressColumn):
    """Bytes per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{size(speed)}/s" if speed and task.fields["sized"] else "", style="progress.data.speed")


class _Left(ProgressColumn):
    """The time that is left, as far as the rate tells."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished or task.time_remaining is None:
            return Text("")
        minutes, seconds = divmod(int(task.time_remaining), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"ETA {hours}:{minutes:02}:{seconds:02}", style="progress.remaining")


class Bars:
    """A bar for each phase that is under way. A thread redraws them: end all phases before a process forks."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        narrow = console.width < NARROW
        name, bar = TextColumn("{task.description:<15}", markup=False), BarColumn(bar_width=None)
        wide = [name, bar, _Amount(), _Rate(), TimeElapsedColumn(), _Left()]
        self._progress = Progress(*([name, bar, _Left()] if narrow else wide), console=console, expand=True)
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def begin(self, phase: str, label: str, total: int | None) -> None:
        """A phase begins. total in bytes, None when it is not known."""
        self._tasks[phase] = self._progress.add_task(label, total=total, sized=total is not None)

    def advance(self, phase: str, done: int) -> None:
        """So many more bytes."""
        if phase in self._tasks:
            self._progress.advance(self._tasks[phase], done)

    def end(self, phase: str) -> bool:
        """A phase is over; gives whether none is left."""
        if phase in self._tasks:
            task = self._tasks.pop(phase)
            done = max(self._progress.tasks[task].completed, 1)
            self._progress.update(task, total=done, completed=done)
        return not self._tasks

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave them as they are and give the terminal back."""
        self._progress.stop()
