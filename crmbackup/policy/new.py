"""A new policy from a few answers. The command line asks; the questions are data here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import yaml

from crmbackup.core.errors import PolicyInvalid
from crmbackup.policy.loader import check_policy, invalid
from crmbackup.policy.source import server_kind

#: Cron expressions by the name of the preset, in the order in which they are offered.
SCHEDULES: dict[str, dict[str, str]] = {
    "nightly": {"full": "30 2 * * 0", "incremental": "30 2 * * 1-6", "drill": "30 5 * * 0"},
    "hourly": {"full": "30 2 * * 0", "incremental": "5 * * * *", "drill": "30 5 * * 0"},
    "office": {"full": "30 2 * * 0", "incremental": "*/30 7-19 * * 1-5", "drill": "30 5 * * 0"},
    "none": {},
}
#: Where S3 credentials are kept: one file each, environment variables, or wherever the S3 client looks by itself.
SECRETS = ("file", "env", "none")


@dataclass(frozen=True)
class NewPolicy:
    """Answers, as typed. An empty text leaves the key out where that is possible.

    schedule: a key of `SCHEDULES`. secrets: one of `SECRETS`, of no meaning for local repositories.
    """

    name: str
    source: str
    repository_url: str
    endpoint: str = ""
    region: str = ""
    secrets: str = "file"
    schedule: str = "nightly"
    timezone: str = "UTC"
    rpo: str = ""
    rto: str = ""


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    key: the field of NewPolicy. default: what an empty answer stands for; None if there must be an answer.
    choices: the answers there may be; empty if any. check: tells what is wrong with an answer, "" if nothing.
    applies: whether to ask at all, given the answers so far by key.
    """

    key: str
    prompt: str
    default: str | None
    choices: tuple[str, ...]
    check: Callable[[str], str]
    applies: Callable[[Mapping[str, str]], bool]


def questions() -> tuple[Question, ...]:
    """What to ask, in this order. The answers by key are the arguments of NewPolicy."""
    return (
        _question("name", "Name of the policy", "crm"),
        _question("source", "Database to protect (/path/to/file, postgresql://user@host/name or mysql://...)", None),
        _question("repository_url", "Where to keep snapshots (/path or s3://bucket/prefix)", None),
        _question("endpoint", "Address of the S3 server, if it is not AWS", "", applies=_on_s3),
        _question("region", "Region of the bucket, if it needs one", "", applies=_on_s3),
        _question("secrets", "Where the S3 credentials are kept", "file", SECRETS, applies=_on_s3),
        _question("schedule", "When to take snapshots", "nightly", tuple(SCHEDULES)),
        _question("timezone", "Time zone of the schedule", "UTC", applies=_on_schedule),
        _question("rpo", "How old the newest snapshot may get, such as 26h", ""),
        _question("rto", "How long a restore may take, such as 1h", ""),
    )


def render_policy(answers: NewPolicy) -> str:
    """The policy as commented YAML. Whatever this returns loads. Raises PolicyInvalid."""
    for name, value, choices in (
        ("schedule", answers.schedule, tuple(SCHEDULES)),
        ("secrets", answers.secrets, SECRETS),
    ):
        if value not in choices:
            raise PolicyInvalid(f"{name} must be one of {', '.join(choices)}")
    text = _render(answers)
    _, problems = check_policy(text)
    if problems:
        raise invalid("made of these answers", problems)
    return text


def _question(
    key: str,
    prompt: str,
    default: str | None,
    choices: tuple[str, ...] = (),
    applies: Callable[[Mapping[str, str]], bool] = lambda _: True,
) -> Question:
    return Question(key, prompt, default, choices, partial(_check, key, choices), applies)


def _check(key: str, choices: tuple[str, ...], answer: str) -> str:
    """What the loader has against an answer, all the others being right."""
    if choices:
        return "" if answer in choices else f"must be one of {', '.join(choices)}"
    right = NewPolicy("crm", "/srv/crm.db", "s3://bucket/prefix", secrets="none")
    _, problems = check_policy(_render(replace(right, **{key: answer})))
    return "; ".join(each.message for each in problems)


def _is_s3(url: str) -> bool:
    return url.lower().startswith("s3:")


def _on_s3(answers: Mapping[str, str]) -> bool:
    return _is_s3(answers.get("repository_url", ""))


def _on_schedule(answers: Mapping[str, str]) -> bool:
    return answers.get("schedule") != "none"


def _quoted(text: str) -> str:
    """The text as a YAML scalar on one line."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=sys.maxsize).rstrip("\n")


def _render(answers: NewPolicy) -> str:
    lines = [
        "# A crmbackup policy. Each key is described in docs/policy.md.",
        "version: 1",
        f"name: {_quoted(answers.name)}",
        "",
        "# What is protected.",
        *_source(answers),
        *_repository(answers),
        *_schedule(answers),
        "# Which snapshots stay: those that any of these rules wants.",
        "retention:",
        "  keep_last: 3",
        "  daily: 14",
        "  weekly: 8",
        "  monthly: 12",
        "  min_copies: 2",
        "",
        *_objectives(answers),
        "# How the backups are proved. Add questions that matter to you, one line each, below assertions:",
        '#    - {name: "there are contacts", sql: "SELECT count(*) FROM contacts", expect: {min: 1}}',
        "drill:",
        "  snapshot: latest",
        "  # assertions:",
    ]
    return "\n".join(lines) + "\n"


#: Where a password may be besides the policy, and the page about rights.
_PASSWORDS = {
    "postgres": "in PGPASSWORD or in ~/.pgpass. docs/postgresql.md tells of rights.",
    "mysql": "or in MYSQL_PWD. docs/mysql.md tells of rights.",
}


def is_server(source: str) -> bool:
    """Whether an answer names a database of a server, not a file."""
    return "://" in source and not source.startswith(("/", "~"))


def _source(answers: NewPolicy) -> list[str]:
    if not is_server(answers.source):
        return ["source:", "  type: sqlite", f"  path: {_quoted(answers.source)}", ""]
    kind = server_kind(answers.source) or "postgres"
    return [
        "source:",
        f"  type: {kind}",
        f"  url: {_quoted(answers.source)}",
        f"  # The password stands elsewhere: here, {_PASSWORDS[kind]}",
        f"  # password: {{file: {_quoted(f'/etc/crmbackup/secrets/{answers.name}.db-password')}}}",
        "",
    ]


def _repository(answers: NewPolicy) -> list[str]:
    directory = f"/etc/crmbackup/secrets/{answers.name}"
    lines = ["# Where snapshots are kept.", "repository:", f"  url: {_quoted(answers.repository_url)}"]
    if answers.endpoint:
        lines.append(f"  endpoint: {_quoted(answers.endpoint)}")
    if answers.region:
        lines.append(f"  region: {_quoted(answers.region)}")
    if _is_s3(answers.repository_url) and answers.secrets == "file":
        lines += [
            "  # Each file holds one secret and nothing else: mode 0600, owned by who runs crmbackup.",
            f"  access_key_id: {{file: {_quoted(directory + '.access-key-id')}}}",
            f"  secret_access_key: {{file: {_quoted(directory + '.secret-access-key')}}}",
        ]
    elif _is_s3(answers.repository_url) and answers.secrets == "env":
        lines += [
            "  # Environment variables. cron starts with almost none: set them in the crontab or the unit.",
            "  access_key_id: {env: CRMBACKUP_ACCESS_KEY_ID}",
            "  secret_access_key: {env: CRMBACKUP_SECRET_ACCESS_KEY}",
        ]
    return [
        *lines,
        "  # Only restores and drills need one of these two; a host without them cannot read old backups.",
        "  # identity: {file: /media/usb/crmbackup.identity}",
        "  # passphrase: {file: /etc/crmbackup/secrets/passphrase}",
        "",
    ]


def _schedule(answers: NewPolicy) -> list[str]:
    times = SCHEDULES[answers.schedule]
    if not times:
        return []
    return [
        "# When runs are due: minute, hour, day of month, month, day of week.",
        "schedule:",
        f"  timezone: {_quoted(answers.timezone)}",
        *(f'  {key}: "{expression}"' for key, expression in times.items()),
        "",
    ]


def _objectives(answers: NewPolicy) -> list[str]:
    given = [(key, value) for key, value in (("rpo", answers.rpo), ("rto", answers.rto)) if value]
    if not given:
        return []
    return [
        "# How much may be lost, and how long a recovery may take.",
        "objectives:",
        *(f"  {key}: {_quoted(value)}" for key, value in given),
        "",
    ]
