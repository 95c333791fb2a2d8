"""The policy: a frozen model of the YAML file. `loader` makes it from a file, `schema` describes it to editors."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from crmbackup.policy.alerts import Hooks, Log, Notify
from crmbackup.policy.fields import (
    AbsolutePath,
    Cron,
    Line,
    Name,
    Percent,
    PositiveDuration,
    PositiveSize,
    SecretReference,
    Section,
    TimeZone,
    fail,
)
from crmbackup.policy.source import Source, server_kind, server_url
from crmbackup.policy.target import Repository

VERSION = 1
#: The least grace period of garbage collection: many times what a commit may take (repository.COMMIT_SECONDS).
LEAST_GRACE = timedelta(hours=6)

Scalar = str | int | float | bool | None


class Schedule(Section):
    """When runs are due. Expressions have five fields and hold in `timezone`."""

    timezone: TimeZone = Field(default="UTC", description="The IANA time zone of the expressions.")
    full: Cron | None = Field(default=None, description="When a full snapshot is due.")
    incremental: Cron | None = Field(default=None, description="When an incremental snapshot is due.")
    drill: Cron | None = Field(default=None, description="When a drill is due.")
    check: Cron | None = Field(default=None, description="When the repository is checked.")
    prune: Cron | None = Field(default=None, description="When snapshots beyond the retention are removed.")


class Retention(Section):
    """Which snapshots are kept. A snapshot stays if any of the rules wants it; with no rule all stay."""

    keep_last: int = Field(default=0, ge=0, description="How many of the newest snapshots to keep.")
    hourly: int = Field(default=0, ge=0, description="For how many hours to keep the last snapshot of the hour.")
    daily: int = Field(default=0, ge=0, description="For how many days to keep the last snapshot of the day.")
    weekly: int = Field(default=0, ge=0, description="For how many weeks to keep the last snapshot of the week.")
    monthly: int = Field(default=0, ge=0, description="For how many months to keep the last snapshot of the month.")
    quarterly: int = Field(
        default=0, ge=0, description="For how many quarters to keep the last snapshot of the quarter."
    )
    yearly: int = Field(default=0, ge=0, description="For how many years to keep the last snapshot of the year.")
    within: PositiveDuration | None = Field(default=None, description="Keep all snapshots younger than this.")
    min_copies: int = Field(
        default=2, ge=1, description="Never go below this number of good snapshots, whatever the rules say."
    )


def _long_enough(value: timedelta) -> timedelta:
    if value < LEAST_GRACE:
        fail("must be 6h or longer: a backup may be about to commit what would be deleted")
    return value


class Prune(Section):
    """How packs that no snapshot needs any more are deleted."""

    grace: Annotated[PositiveDuration, AfterValidator(_long_enough)] = Field(
        default=timedelta(days=7),
        description="How long a pack that no snapshot needs stays, first unmarked, then marked: twice this in all. Longer "
        "than the longest backup takes, and at least 6h.",
    )
    max_delete: Percent = Field(
        default=0.5,
        description="The share of all stored bytes that one run may mark or delete. A run that wants more does nothing "
        "and fails: a person must look.",
    )


class Check(Section):
    """How the repository is looked through."""

    parts: int = Field(
        default=28, ge=1, le=10000, description="In how many checks with --read-data=next all packs are read once."
    )


class Objectives(Section):
    """What the backups are for, in time."""

    rpo: PositiveDuration | None = Field(
        default=None, description="Recovery point objective: how old the newest snapshot may be."
    )
    rto: PositiveDuration | None = Field(
        default=None, description="Recovery time objective: how long a restore may take."
    )


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail("must be a number")
    return value


def _scalar(value: object) -> Scalar:
    if value is not None and not isinstance(value, str | int | float | bool):
        fail("must be text, a number, true, false, null or {min: ..., max: ...}")
    return value


Number = Annotated[int | float, PlainValidator(_number), WithJsonSchema({"type": "number"})]


class Range(Section):
    """A number between two bounds, both included."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    min: Number | None = Field(default=None, description="The least number that passes.")
    max: Number | None = Field(default=None, description="The greatest number that passes.")

    @model_validator(mode="after")
    def _some_numbers_pass(self) -> Range:
        if self.min is None and self.max is None:
            fail("must have min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            fail("is greater than max: nothing would pass", key="min")
        return self


def _kind_of_expectation(value: object) -> str:
    return "range" if isinstance(value, dict | Range) else "scalar"


Expectation = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[
        Scalar,
        PlainValidator(_scalar),
        WithJsonSchema({"type": ["string", "number", "boolean", "null"]}),
        Tag("scalar"),
    ],
    Discriminator(_kind_of_expectation),
]


class Assertion(Section):
    """A question to the restored database and the answer that must come back."""

    name: Line = Field(description="What the report calls it.")
    sql: Annotated[str, Field(min_length=1)] = Field(description="A query; the first column of its first row counts.")
    expect: Expectation = Field(
        description="The value that must come back: text, a number, true, false or null, or {min: ..., max: ...}."
    )


class Drill(Section):
    """How a restore is rehearsed and proved."""

    model_config = ConfigDict(
        json_schema_extra={
            "dependentSchemas": {
                "window": {"properties": {"snapshot": {"const": "random"}}, "required": ["snapshot"]},
            }
        }
    )

    target: Literal["ephemeral"] | Annotated[Line, AfterValidator(server_url)] = Field(
        default="ephemeral",
        description="Where snapshots of servers are rehearsed: a private server made for the drill on this host, or the "
        "URL of a server on which the drill makes a database of its own and drops it. SQLite needs neither.",
        examples=["postgresql://drill@test-db.example.org/postgres", "mysql://drill@test-db.example.org/"],
    )
    target_password: SecretReference | None = Field(default=None, description="The password for target.")
    directory: AbsolutePath | None = Field(
        default=None, description="Where the drill restores to. Default: the system's directory for temporary files."
    )
    snapshot: Literal["latest", "random"] = Field(default="latest", description="Which snapshot is restored.")
    window: PositiveDuration | None = Field(
        default=None, description="With snapshot: random, only snapshots younger than this. Default: all."
    )
    assertions: tuple[Assertion, ...] = Field(
        default=(), description="Questions to the restored database, asked after the tables were compared."
    )
    foreign_keys: Literal["fail", "report"] = Field(
        default="fail",
        description="What rows without the parent that a foreign key names do to a drill: fail it, or only be reported. "
        "They are the source's own; many applications leave some behind.",
    )
    reports: AbsolutePath | None = Field(
        default=None, description="Where reports are written. Default: inside the state directory."
    )

    @field_validator("window")
    @classmethod
    def _only_for_random(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        if info.data.get("snapshot") == "latest":
            fail("is only for snapshot: random")
        return value

    @field_validator("assertions")
    @classmethod
    def _names_differ(cls, value: tuple[Assertion, ...]) -> tuple[Assertion, ...]:
        names = [each.name for each in value]
        if len(set(names)) < len(names):
            fail("must not have two assertions of the same name: the report could not tell them apart")
        return value


class Limits(Section):
    """How much of the machine and of the network a run may take."""

    jobs: int = Field(default=2, ge=1, le=64, description="How many parts are read and shipped at the same time.")
    upload_rate: PositiveSize | None = Field(
        default=None, description="How much may be sent to the storage per second. Default: no limit."
    )
    compression_level: int = Field(default=3, ge=1, le=19, description="The zstd level: higher is smaller and slower.")


def _catalog_url(value: object) -> object:
    """An SQLAlchemy URL, or a reference when it holds a password."""
    if not isinstance(value, str):
        return value
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme or "://" not in value:
        fail("must be an SQLAlchemy URL such as sqlite:////var/lib/crmbackup/catalog.db")
    if parts.password is not None or any("pass" in key.lower() for key in parse_qs(parts.query)):
        fail("holds a password: keep the whole URL elsewhere and write {file: /path} or {env: NAME} here")
    return value


def _kind_of_catalog_url(value: object) -> str:
    return "text" if isinstance(value, str) else "secret"


class Catalog(Section):
    """Where the history of runs is kept: a cache, rebuilt from the repository at any time."""

    url: Annotated[
        Annotated[Line, Tag("text")] | Annotated[SecretReference, Tag("secret")],
        Discriminator(_kind_of_catalog_url),
        BeforeValidator(_catalog_url),
    ] = Field(
        description="An SQLAlchemy URL, or a reference to one if it holds a password.",
        examples=["sqlite:////var/lib/crmbackup/catalog.db"],
    )


def _all_defaults(description: str) -> Any:
    """A section that may be absent. Its defaults are filled in by the policy's validator: an instance here would need one
    of its own, which every command would wait for.
    """
    return Field(default={}, validate_default=True, description=description)


class Policy(Section):
    """A crmbackup policy: what is protected, where to, when, how long, how well, and how that is proved."""

    version: Literal[1] = Field(description="The version of this format.")
    name: Name = Field(description="The policy's name: part of object keys and of file names. Do not change it.")
    source: Source = Field(description="The database that is protected.")
    repository: Repository = Field(description="The place where snapshots are kept, and the secrets that open it.")
    schedule: Schedule | None = Field(default=None, description="When runs are due.")
    retention: Retention = _all_defaults(description="Which snapshots are kept.")
    prune: Prune = _all_defaults(description="How packs that no snapshot needs any more are deleted.")
    check: Check = _all_defaults(description="How the repository is looked through.")
    objectives: Objectives = _all_defaults(description="What the backups are for, in time.")
    drill: Drill = _all_defaults(description="How a restore is rehearsed and proved.")
    limits: Limits = _all_defaults(description="How much of machine and network a run may take.")
    catalog: Catalog | None = Field(
        default=None, description="Where the history of runs is kept. Default: inside the state directory."
    )
    notify: Notify = _all_defaults(description="Whom to tell about what.")
    hooks: Hooks = _all_defaults(description="Programs that run before and after.")
    log: Log | None = Field(default=None, description="Where runs are logged.")

    @field_validator("drill")
    @classmethod
    def _target_fits_the_source(cls, value: Drill, info: ValidationInfo) -> Drill:
        source = info.data.get("source")
        if source is not None and value.target != "ephemeral" and server_kind(value.target) != source.type:
            fail(f"must name a server of the source's kind, {source.type}, or be ephemeral", key="target")
        return value

    @field_validator("version", mode="before")
    @classmethod
    def _known_version(cls, value: Any) -> Any:
        if type(value) is not int:
            fail(f"must be the number {VERSION}")
        if value != VERSION:
            fail(f"is {value}, and this crmbackup knows version {VERSION} only: use the crmbackup it was written for")
        return value
