"""Where this machine can be told to wake crmbackup: a crontab, /etc/cron.d, systemd. Reads, writes and removes there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crmbackup.cli.paths import carried, host_paths
from crmbackup.cli.policies import load_policies, policy_files
from crmbackup.core.errors import CrmBackupError, LocalDenied, LocalError, ProgramMissing, UsageError
from crmbackup.core.events import Emit, Warned
from crmbackup.core.files import local_error, make_private_directory, write_durably
from crmbackup.scheduling import crontab, systemd
from crmbackup.scheduling.wake import Scope, Wake, scope_of, wake_minutes

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Wiring
    from crmbackup.policy.loader import LoadedPolicy

_RUNS_SYSTEMD = Path("/run/systemd/system")


class Waker(ABC):
    """One of the places. `kind` is the option that names it."""

    kind: str

    def __init__(self, host: Wiring, user: str | None, directory: Path | None) -> None:
        """user: as whom crmbackup runs; None is whoever calls. directory: of the file or units; None is the system's."""
        try:
            entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
        except KeyError as error:
            raise UsageError(f"there is no user {user or os.geteuid()}", hint="name one with --user") from error
        self.host = host
        self.user = entry
        self.other = user is not None and entry.pw_uid != os.geteuid()
        self.directory = directory

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for people."""

    @abstractmethod
    def installed(self) -> str | None:
        """What is installed, None when nothing is. Raises LocalError."""

    @abstractmethod
    def text(self, wake: Wake, policies: Sequence[LoadedPolicy]) -> str:
        """What should be."""

    @abstractmethod
    def install(self, text: str) -> str:
        """Put it there; gives what is left to do by hand, if anything. Raises LocalError."""

    @abstractmethod
    def remove(self) -> None:
        """Take it away. Raises LocalError."""

    def wanted(self, scope: Scope, policies: Sequence[LoadedPolicy]) -> str:
        """What should be installed for these policies. Raises UsageError when none has a schedule."""
        minutes = wake_minutes(each.policy.schedule for each in policies if each.policy.schedule)
        if not minutes:
            raise UsageError(
                "nothing is scheduled",
                why="no policy here has a schedule",
                hint="give one a schedule: docs/policy.md describes the keys",
            )
        home, root = self.user.pw_dir, self.user.pw_uid == 0
        environment = carried(self.host.environ, home=home, root=root)
        if self.host.identity_file:
            environment["CRMBACKUP_IDENTITY_FILE"] = str(self.host.identity_file)
        wake = Wake(minutes, program(), scope.directory, scope.policies, environment, self._named_user())
        return self.text(wake, policies)

    def _named_user(self) -> str | None:
        return self.user.pw_name


class Crontab(Waker):
    """A block in a user's crontab, by the program `crontab`."""

    kind = "crontab"

    @property
    def place(self) -> str:
        return f"the crontab of {self.user.pw_name}"

    def installed(self) -> str | None:
        return crontab.find_block(self._read())

    def text(self, wake: Wake, policies: Sequence[LoadedPolicy]) -> str:
        return crontab.block(wake)

    def install(self, text: str) -> str:
        self._write(crontab.with_block(self._faithful(), text))
        return ""

    def remove(self) -> None:
        self._write(crontab.without_block(self._faithful()))

    def _named_user(self) -> str | None:
        return None

    def _arguments(self, *more: str) -> list[str]:
        return ["crontab", *(["-u", self.user.pw_name] if self.other else []), *more]

    def _read(self) -> str:
        done = _run(self._arguments("-l"), allowed=(0, 1))
        if done.returncode and b"no crontab for" not in done.stderr:
            raise _failed(self._arguments("-l"), done)
        # Whatever bytes there are come back as they were.
        return "" if done.returncode else done.stdout.decode("utf-8", "surrogateescape")

    def _faithful(self) -> str:
        """The crontab, if what is listed is what is there. Raises LocalError."""
        text = self._read()
        if "\\r" in text:
            raise LocalError(
                f"{self.place} cannot be changed without harm to other lines",
                why="it holds a carriage return or the text \\r, which Debian's `crontab -l` shows alike",
                hint="take them out with `crontab -e`, or install with --cron-d",
            )
        return text

    def _write(self, text: str) -> None:
        if text:
            _run(self._arguments("-"), text.encode("utf-8", "surrogateescape"))
        else:
            _run(self._arguments("-r"))


class CronD(Waker):
    """A file of its own in /etc/cron.d."""

    kind = "cron-d"

    @property
    def _path(self) -> Path:
        return (self.directory or Path("/etc/cron.d")) / "crmbackup"

    @property
    def place(self) -> str:
        return str(self._path)

    def installed(self) -> str | None:
        return _read(self._path)

    def text(self, wake: Wake, policies: Sequence[LoadedPolicy]) -> str:
        return crontab.cron_d(wake)

    def install(self, text: str) -> str:
        _write(self._path, text)
        return ""

    def remove(self) -> None:
        _unlink(self._path)


class Systemd(Waker):
    """A service and a timer."""

    kind = "systemd"
    _enable = ("systemctl", "enable", "--now", systemd.TIMER)

    @property
    def _directory(self) -> Path:
        return self.directory or Path("/etc/systemd/system")

    @property
    def place(self) -> str:
        return str(self._directory / systemd.TIMER)

    @property
    def _live(self) -> bool:
        """Whether systemd runs this machine and looks at that directory."""
        return self.directory is None and _RUNS_SYSTEMD.is_dir()

    def installed(self) -> str | None:
        parts = [_read(self._directory / name) for name in (systemd.SERVICE, systemd.TIMER)]
        return None if parts == [None, None] else _joined(*(part or "" for part in parts))

    def text(self, wake: Wake, policies: Sequence[LoadedPolicy]) -> str:
        return _joined(systemd.service(wake, [each.policy for each in policies], self._own()), systemd.timer(wake))

    def install(self, text: str) -> str:
        service, timer = text.split(_CUT)
        for path in self._own():
            if not path.exists():  # the unit would not start without
                make_private_directory(path)
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        _write(self._directory / systemd.SERVICE, service)
        _write(self._directory / systemd.TIMER, timer)
        if not self._live:
            return f"systemctl daemon-reload && {' '.join(self._enable)}"
        _run(["systemctl", "daemon-reload"])
        _run(self._enable)
        return ""

    def remove(self) -> None:
        if self._live:
            _run(["systemctl", "disable", "--now", systemd.TIMER])
        _unlink(self._directory / systemd.TIMER)
        _unlink(self._directory / systemd.SERVICE)
        if self._live:
            _run(["systemctl", "daemon-reload"])

    def _own(self) -> tuple[Path, Path]:
        paths = host_paths({**self.host.environ, "HOME": self.user.pw_dir}, root=self.user.pw_uid == 0)
        return paths.state, paths.config


WAKERS: dict[str, type[Waker]] = {each.kind: each for each in (Crontab, CronD, Systemd)}
_CUT = f"# ---- {systemd.TIMER} ----\n"


def installations(host: Wiring, user: str | None = None, directory: Path | None = None) -> list[tuple[Waker, str]]:
    """What is installed on this machine, as far as this user may see. Raises LocalError, UsageError."""
    found = []
    for kind in WAKERS.values():
        if directory and kind is Crontab:
            continue  # it is in no directory of the caller's choice
        waker = kind(host, user, directory)
        try:
            text = waker.installed()
        except (ProgramMissing, LocalDenied):
            continue  # there is no cron here, or it is not for this user
        if text is not None:
            found.append((waker, text))
    return found


def scope_here(host: Wiring, names: Sequence[str]) -> Scope:
    """What is meant when a schedule is installed from here: these policies, or all that are found from here."""
    if names:
        return Scope(Path("/"), tuple(policy_files(host.cwd, names)))
    return Scope(host.cwd if (host.cwd / "policies").is_dir() else Path("/"))


def scope_installed(text: str) -> Scope:
    """What an installed schedule is about. Raises UsageError when it does not tell."""
    scope = scope_of(text)
    if scope is None:
        raise UsageError("what is installed does not tell its scope", hint="run `crmbackup schedule install` again")
    return scope


def wanted_for(waker: Waker, scope: Scope, emit: Emit) -> str:
    """What should be installed in a place for a scope, as the user whom the scope names if it names one."""
    if scope.user and scope.user != waker.user.pw_name:
        waker = type(waker)(waker.host, scope.user, waker.directory)
    return waker.wanted(scope, policies_of(scope, emit))


def policies_of(scope: Scope, emit: Emit) -> list[LoadedPolicy]:
    """The policies of a scope; those that are broken are warned of. Raises PolicyNotFound, LocalError."""

    def warn(error: CrmBackupError) -> None:
        emit(Warned(error.code, str(error), error.hint))

    return load_policies(scope.directory, [str(each) for each in scope.policies], warn)


def program() -> Path:
    """The program that is to be started. Raises LocalError."""
    beside = Path(sys.executable).with_name("crmbackup")
    found = str(beside) if beside.exists() else shutil.which("crmbackup")
    if found is None:
        raise LocalError("cannot tell where crmbackup is installed", hint="install it with pip or pipx")
    return Path(found).absolute()


def _joined(service: str, timer: str) -> str:
    return f"{service}{_CUT}{timer}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error(error, f"read {path}") from error


def _write(path: Path, text: str) -> None:
    try:
        write_durably(path, text.encode("utf-8", "surrogateescape"), mode=0o644)
        path.chmod(0o644)  # cron and systemd read what the umask may have hidden
    except LocalDenied as error:
        raise LocalDenied(error.what, why=error.why, hint="only root may: use sudo, or --crontab") from error


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise local_error(error, f"remove {path}") from error


def _run(
    arguments: Sequence[str], given: bytes = b"", allowed: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(arguments, input=given, capture_output=True, check=False)
    except FileNotFoundError as error:
        package = {"crontab": "cron", "systemctl": "systemd"}[arguments[0]]
        raise ProgramMissing(f"there is no program {arguments[0]}", hint=f"install the package {package}") from error
    except OSError as error:
        raise local_error(error, f"run {arguments[0]}") from error
    if done.returncode not in allowed:
        raise _failed(arguments, done)
    return done


def _failed(arguments: Sequence[str], done: subprocess.CompletedProcess[bytes]) -> LocalError:
    text = " ".join(done.stderr.decode("utf-8", "replace").split())
    kind = LocalDenied if "not allowed" in text or "ermission" in text or "must be privileged" in text else LocalError
    return kind(f"`{' '.join(arguments)}` failed", why=text or f"it ended with {done.returncode}")
