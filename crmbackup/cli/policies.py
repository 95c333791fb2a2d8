"""Which policies a command is about when it is about several, and what this host remembers of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from crmbackup.cli.wiring import Wiring
from crmbackup.core.errors import CrmBackupError, Interrupted, PolicyNotFound
from crmbackup.core.secrets import EnvRef
from crmbackup.operations.schedule_state import ScheduleState
from crmbackup.policy.find import find_policy, list_policies, policy_directories
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
            why=f"looked in {', '.join(str(each) for each in directories)}",
            hint="make one with `crmbackup policy new`, or name its file",
        )
    return found


def load_policies(cwd: Path, names: Sequence[str], broken: Callable[[CrmBackupError], None]) -> list[LoadedPolicy]:
    """The same, loaded. Those that cannot be are left out, and `broken` is told why."""
    loaded = []
    for path in policy_files(cwd, names):
        try:
            loaded.append(load_policy(path))
        except Interrupted:
            raise
        except CrmBackupError as error:
            broken(error)
    return loaded


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
