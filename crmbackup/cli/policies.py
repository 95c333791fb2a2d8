"""Which policies a command is about when it is about several, and what this host remembers of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from crmbackup.cli.wiring import Wiring
from crmbackup.core.errors import CrmBackupError, Interrupted, LocalError, PolicyInvalid, PolicyNotFound
from crmbackup.core.secrets import EnvRef
from crmbackup.operations.schedule_state import ScheduleState
from crmbackup.policy.find import find_policy, list_policies, looked_in, policy_directories
from crmbackup.policy.loader import LoadedPolicy, load_policy
from crmbackup.storage.address import format_address


def policy_files(cwd: Path, names: Sequence[str]) -> list[Path]:
    """The files of these policies, each once; without names, of all that are found from `cwd`.

    Raises PolicyNotFound, LocalError.
    """
    if names:
        return list(dict.fromkeys(find_policy(name, cwd=cwd) for name in names))
    directories = policy_directories(cwd)
    found = list_policies(directories)
    if not found:
        raise PolicyNotFound(
            "there are no policies",
            why=looked_in(directories),
            hint="make one with `crmbackup policy new`, or name its file",
        )
    return found


def load_policies(cwd: Path, names: Sequence[str], broken: Callable[[CrmBackupError], None]) -> list[LoadedPolicy]:
    """The same, loaded. Those that cannot be are left out, and `broken` is told why."""
    loaded = []
    for path in policy_files(cwd, names):
        try:
            loaded.append(load_alone(cwd, path))
        except Interrupted:
            raise
        except CrmBackupError as error:
            broken(error)
    return loaded


def load_alone(cwd: Path, path: Path) -> LoadedPolicy:
    """The policy in a file, of which nothing gets among the snapshots of another. Raises what these two do."""
    loaded = load_policy(path)
    refuse_namesake(cwd, loaded)
    return loaded


def refuse_namesake(cwd: Path, loaded: LoadedPolicy) -> None:
    """Raises PolicyInvalid when another file has the same name on the same repository: a copy that was not renamed.

    The two would be one to schedule and retention: only one of the databases would be backed up, or each be forgotten for
    the other. The file that is called as its policy is the right one, else the first.
    """
    name, repository = loaded.policy.name, format_address(loaded.policy.repository.address())
    if loaded.path.stem == name:
        return
    own = loaded.path.resolve()
    # Most files need not be read as YAML for this.
    named = re.compile(rf"""\bname["']?\s*:\s*["']?{re.escape(name)}(?![\w.-])""")
    for path in [*_others(own.parent), *_others(*policy_directories(cwd))]:
        first = path.stem == name or str(path.resolve()) < str(own)
        if not first or path.resolve() == own or not _holds(path, named):
            continue
        try:
            other = load_policy(path).policy
        except Interrupted:
            raise
        except CrmBackupError:
            continue  # it is told where it is used
        if other.name == name and format_address(other.repository.address()) == repository:
            raise PolicyInvalid(
                f"the policy {loaded.path} has the name {name}, as {path} has, on the same repository",
                why="nothing would tell their snapshots apart",
                hint=f"give {loaded.path} a `name` of its own, such as {loaded.path.stem}",
            )


def _others(*directories: Path) -> list[Path]:
    try:
        return list_policies(directories)
    except LocalError:
        return []  # a policy may lie where nobody may look around


def _holds(path: Path, pattern: re.Pattern[str]) -> bool:
    try:
        return pattern.search(path.read_text("utf-8", "replace")) is not None
    except OSError:
        return False


def schedule_state(host: Wiring, loaded: LoadedPolicy) -> ScheduleState:
    """What this host remembers of a policy's scheduled runs."""
    return ScheduleState(host.paths.state, loaded.policy.name, format_address(loaded.policy.repository.address()))


def broken_state(host: Wiring, path: Path) -> ScheduleState:
    """The same of a policy file that cannot be loaded."""
    return ScheduleState(host.paths.state, path.stem[:64], f"file:{path}")


def secrets_from_environment(loaded: LoadedPolicy) -> list[str]:
    """The names of the environment variables that a policy takes secrets from."""
    policy = loaded.policy
    told = (*policy.notify.apprise, *policy.notify.pings)
    sections = (policy.source, policy.repository, policy.drill, policy.catalog, *told)
    values = [value for section in sections if section for _, value in section]
    return sorted({value.env for value in values if isinstance(value, EnvRef)})
