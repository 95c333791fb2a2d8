"""Policy files by name or path."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from crmbackup.core.errors import PolicyNotFound
from crmbackup.core.files import local_error

SYSTEM_DIRECTORY = Path("/etc/crmbackup/policies")
SUFFIXES = (".yaml", ".yml")


def policy_directories(cwd: Path) -> list[Path]:
    """Where policies are looked for by name, first match first."""
    return [cwd / "policies", SYSTEM_DIRECTORY]


def find_policy(name_or_path: str, *, cwd: Path, directories: Sequence[Path] | None = None) -> Path:
    """The file that is meant: a path if there is a slash or a YAML suffix, else a name in `directories`.

    The name is the file's name without its suffix. `directories` None means `policy_directories(cwd)`.
    Raises PolicyNotFound, which tells where it looked and which names come near.
    """
    if "/" in name_or_path or name_or_path.endswith(SUFFIXES):
        path = cwd / name_or_path
        if path.exists() and not path.is_dir():
            return path
        kind = "it is a directory" if path.is_dir() else "there is no such file"
        near = _near(path.stem, list_policies([path.parent]))
        raise PolicyNotFound(f"cannot find the policy {path}", why=kind, hint=_question(near))
    places = policy_directories(cwd) if directories is None else directories
    found = list_policies(places)
    for path in found:
        if path.stem == name_or_path:
            return path
    near = _near(name_or_path, found)
    known = f"there are: {', '.join(path.stem for path in found)}" if found else "there are no policies yet"
    raise PolicyNotFound(
        f'cannot find a policy named "{name_or_path}"',
        why=looked_in(places),
        hint=_question(near) or f"{known}; a path needs a slash or the suffix .yaml",
    )


def call_of(path: Path, *, cwd: Path) -> str:
    """What to type for the policy in a file, for hints: its name where that is looked up, else its path.

    Raises LocalError.
    """
    if path in list_policies(policy_directories(cwd)):
        return shlex.quote(path.stem)
    text = str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)
    return shlex.quote(text if "/" in text or text.endswith(SUFFIXES) else f"./{text}")


def list_policies(directories: Sequence[Path]) -> list[Path]:
    """The policy files in these directories, by name. An earlier directory hides equal names in a later one.

    Directories that are not there count as empty, and so do those within one that this user may not enter: root's own
    must not keep others from theirs. Raises LocalError for those that cannot be read.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        try:
            paths = sorted(directory.iterdir()) if not _is_closed(directory) and directory.is_dir() else []
        except OSError as error:
            raise local_error(error, f"read the directory {directory}") from error
        for path in paths:  # sorted: x.yaml goes before x.yml
            if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file():
                found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def looked_in(directories: Sequence[Path]) -> str:
    """Where policies were looked for, for messages."""
    closed = " (which this user may not enter; try sudo)"
    return "looked in " + ", ".join(f"{each}{closed if _is_closed(each) else ''}" for each in directories)


def _is_closed(directory: Path) -> bool:
    """Whether it lies where this user may not even look."""
    try:
        directory.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _near(name: str, paths: Sequence[Path]) -> list[str]:
    names = {path.stem.lower(): path.stem for path in paths}
    return [names[near] for near in get_close_matches(name.lower(), names, n=3)]


def _question(near: Sequence[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else ""
