"""Crontab text: the line that wakes crmbackup, and the marked block that holds it in a crontab of others' lines.

No variables are set in a user's crontab: they would hold for every line behind them.
"""

from __future__ import annotations

import shlex

from crmbackup.core.errors import UsageError
from crmbackup.scheduling.wake import Wake

BEGIN = "# BEGIN crmbackup: written by `crmbackup schedule install`, which replaces all up to END"
END = "# END crmbackup"
_HEAD = "# Written by `crmbackup schedule install --cron-d`, which replaces this file."
_TOLD = "# What is due when it wakes is up to the policies: `crmbackup schedule show`."
#: What Debian gives to programs that root starts; cron itself gives less.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def block(wake: Wake) -> str:
    """The block for a user's crontab."""
    return f"{BEGIN}\n{_TOLD}\n{wake.scope}\n{_times(wake)} {_command(wake)}\n{END}\n"


def cron_d(wake: Wake) -> str:
    """The file for /etc/cron.d, where a line also says as whom. MAILTO is cron's own default: that user."""
    head = f"{_HEAD}\n{_TOLD}\n{wake.scope}\nSHELL=/bin/sh\nPATH={_PATH}\n"
    return f"{head}{_times(wake)} {wake.user or 'root'} {_command(wake)}\n"


def find_block(crontab: str) -> str | None:
    """The block in a crontab as it stands there; None without one. Raises UsageError when its end is missing."""
    span = _span(crontab)
    return crontab[span[0] : span[1]] if span else None


def with_block(crontab: str, new: str) -> str:
    """The crontab with this block in place of the old one, or at the end; all else as it was.

    Raises UsageError when a block has no end.
    """
    span = _span(crontab)
    if span:
        return crontab[: span[0]] + new + crontab[span[1] :]
    gap = "" if not crontab or crontab.endswith("\n") else "\n"
    return crontab + gap + new


def without_block(crontab: str) -> str:
    """The crontab without the block. Raises UsageError when the block has no end."""
    span = _span(crontab)
    return crontab[: span[0]] + crontab[span[1] :] if span else crontab


def _span(crontab: str) -> tuple[int, int] | None:
    """Where the block begins and ends. Lines are told by what they begin with: texts of markers may change."""
    begin, position = None, 0
    for line in crontab.splitlines(keepends=True):
        position += len(line)
        if line.startswith("# BEGIN crmbackup"):
            begin = position - len(line) if begin is None else begin
        elif line.rstrip() == END and begin is not None:
            return begin, position
    if begin is None:
        return None
    raise UsageError(
        "the crontab has a line `# BEGIN crmbackup` without a line `# END crmbackup`",
        why="where the block ends is unclear, and other lines are not to be touched",
        hint="remove the block by hand (`crontab -e`), then install again",
    )


def _times(wake: Wake) -> str:
    minutes = wake.minutes
    step = 60 // len(minutes)
    if minutes == tuple(range(0, 60, step)):
        return f"{'*' if step == 1 else f'*/{step}'} * * * *"
    return f"{','.join(str(minute) for minute in minutes)} * * * *"


def _command(wake: Wake) -> str:
    """For /bin/sh by way of cron, to which a percent sign is the end of the command."""
    variables = [f"{name}={value}" for name, value in sorted(wake.environment.items())]
    words = shlex.join([*(["env", *variables] if variables else []), *wake.arguments])
    return f"cd {shlex.quote(str(wake.directory))} && {words}".replace("%", "\\%")
