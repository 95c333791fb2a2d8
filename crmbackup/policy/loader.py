"""Policy files: read, checked, and turned into the model, with all errors at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from crmbackup.core.errors import PolicyInvalid, PolicyNotFound
from crmbackup.core.files import local_error
from crmbackup.policy import yamltree
from crmbackup.policy.model import Policy
from crmbackup.policy.problems import Problem, from_errors, from_flaws

MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class LoadedPolicy:
    """A valid policy, the file it came from, and the SHA-256 of that file's bytes in hexadecimal."""

    policy: Policy
    path: Path
    sha256: str


def load_policy(path: Path) -> LoadedPolicy:
    """The policy in a file. Raises PolicyInvalid with all problems, PolicyNotFound, LocalError."""
    loaded, problems = check_policy_file(path)
    if loaded is None:
        raise invalid(str(path), problems)
    return loaded


def check_policy_file(path: Path) -> tuple[LoadedPolicy | None, list[Problem]]:
    """The policy in a file, or what is wrong with it. Raises PolicyNotFound, LocalError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise PolicyNotFound(f"there is no policy file {path}") from error
    except OSError as error:
        raise local_error(error, f"read the policy {path}") from error
    if len(data) > MAX_BYTES:
        return None, [Problem(1, 1, "", "is larger than 1 MiB: this is no policy")]
    try:
        # Editors on other systems put a byte order mark first.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return None, [Problem(line, 1, "", "is not UTF-8 text: save it as UTF-8")]
    policy, problems = check_policy(text)
    if policy is None:
        return None, problems
    return LoadedPolicy(policy, path, hashlib.sha256(data).hexdigest()), []


def check_policy(text: str) -> tuple[Policy | None, list[Problem]]:
    """The policy in a text, or else what is wrong with it: exactly one of the two, problems in file order."""
    if len(text) > MAX_BYTES:
        return None, [Problem(1, 1, "", "is larger than 1 MiB: this is no policy")]
    root, flaws = yamltree.parse(text)
    problems = from_flaws(flaws, Policy)
    if root is None:
        return None, problems
    if not isinstance(root.content, dict):
        if not problems:
            place = root.place
            problems = [Problem(place.line, place.column, "", "must be a mapping of keys at its top level")]
        return None, problems
    policy: Policy | None = None
    try:
        policy = Policy.model_validate(root.plain())
    except ValidationError as error:
        hidden = [flaw.path for flaw in flaws if flaw.hides]
        problems += from_errors(error.errors(include_url=False), root, Policy, hidden)
    if problems:
        return None, sorted(problems, key=lambda each: (each.line, each.column, each.path))
    return policy, []


def invalid(filename: str, problems: list[Problem]) -> PolicyInvalid:
    """The error that lists all problems, one per line."""
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "\n".join(f"  {each.text(filename)}" for each in problems)
    return PolicyInvalid(f"the policy {filename} has {count}:\n{lines}", hint="each key is described in docs/policy.md")
