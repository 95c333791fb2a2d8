from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from crmbackup.core.secrets import CommandRef, EnvRef, FileRef
from crmbackup.policy.alerts import Notify
from crmbackup.policy.model import Policy, Range
from crmbackup.storage.address import LocalAddress, S3Address
from tests.unit.policy_examples import HEAD, LOCAL, bad, good, only

MARK = "hunter2"


def test_the_shortest_policy_and_its_defaults() -> None:
    policy = good(LOCAL)
    assert policy.source.path == Path("/srv/crm.db")
    assert policy.source.checksums == "tables"
    assert policy.source.busy_timeout == timedelta(seconds=30)
    assert policy.source.max_shrink == 0.5
    assert policy.repository.retries == 5
    assert policy.repository.address() == LocalAddress(Path("/srv/backup"))
    assert policy.schedule is None
    assert policy.retention.min_copies == 2
    assert policy.limits.jobs == 2
    assert policy.limits.compression_level == 3
    assert policy.limits.upload_rate is None
    assert policy.drill.snapshot == "latest"
    assert policy.catalog is None
    assert policy.notify == Notify()
    assert policy.log is None


def test_everything_given() -> None:
    policy = good(
        """
version: 1
name: crm.prod-1
source: {type: sqlite, path: ~/crm.db, checksums: pages, busy_timeout: 1m, max_shrink: 12.5%, encrypted: true}
repository:
  url: s3://bucket/a/b
  endpoint: https://s3.example.org:9000
  region: eu-central-1
  path_style: false
  storage_class: STANDARD_IA
  sse: aws:kms
  sse_kms_key_id: key-1
  checksums: when_supported
  connect_timeout: 5s
  read_timeout: 1m30s
  retries: 9
  access_key_id: {env: KEY_ID}
  secret_access_key: {file: /run/key}
  session_token: {command: [get-token, --short]}
  identity: {file: ~/identity}
schedule:
  timezone: Europe/Berlin
  full: "30 2 * * 0"
  incremental: "*/15 * * * *"
  drill: 0 4 * * 6
retention: {keep_last: 3, hourly: 1, daily: 2, weekly: 3, monthly: 4, quarterly: 5, yearly: 6, within: 2d, min_copies: 3}
objectives: {rpo: 26h, rto: 1h30m}
drill:
  directory: /srv/drill
  snapshot: random
  window: 30d
  reports: /srv/reports
  assertions:
    - {name: a, sql: select 1, expect: 1}
    - {name: b, sql: select 1, expect: "1"}
    - {name: c, sql: select 1, expect: 1.5}
    - {name: d, sql: select 1, expect: true}
    - {name: e, sql: select 1, expect: null}
    - {name: f, sql: select 1, expect: {min: 1}}
    - {name: g, sql: select 1, expect: {min: -1.5, max: 2}}
limits: {jobs: 64, upload_rate: 20MiB, compression_level: 19}
catalog: {url: {env: CATALOG}}
notify:
  apprise: [{url: {env: URL}}, {url: {env: URL}, on: [failure, success]}]
  pings: [{url: {file: /run/ping}, actions: [drill], body: true}]
  metrics: {textfile: /srv/prom/crm.prom, table_rows: true}
  repeat: 2h
  timeout: 10s
hooks:
  backup: {before: [/bin/mount, /mnt], on_error: [/bin/umount, /mnt], timeout: 90s}
  prune: {after: [sync-bucket]}
log: {path: /var/log/crm.log, syslog: true, format: json}
"""
    )
    assert policy.source.path == Path("~/crm.db").expanduser()
    assert policy.source.max_shrink == 0.125
    assert policy.repository.access_key_id == EnvRef("KEY_ID")
    assert policy.repository.secret_access_key == FileRef("/run/key")
    assert policy.repository.session_token == CommandRef(("get-token", "--short"))
    assert policy.repository.address() == S3Address(
        bucket="bucket",
        prefix="a/b",
        endpoint="https://s3.example.org:9000",
        region="eu-central-1",
        path_style=False,
        storage_class="STANDARD_IA",
        sse="aws:kms",
        sse_kms_key_id="key-1",
        checksums="when_supported",
        connect_timeout=5,
        read_timeout=90,
    )
    assert policy.schedule is not None
    assert policy.schedule.drill == "0 4 * * 6"
    expected = [each.expect for each in policy.drill.assertions]
    assert expected == [1, "1", 1.5, True, None, Range(min=1), Range(min=-1.5, max=2)]
    assert [type(each) for each in expected[:4]] == [int, str, float, bool]
    assert policy.limits.upload_rate == 20 * 2**20
    assert policy.retention.within == timedelta(days=2)
    assert [each.on for each in policy.notify.apprise] == [("failure", "recovery", "warning"), ("failure", "success")]
    assert (policy.notify.pings[0].actions, policy.notify.timeout) == (("drill",), timedelta(seconds=10))
    assert policy.hooks.backup is not None
    assert policy.hooks.backup.before == ("/bin/mount", "/mnt")
    assert policy.hooks.restore is None
    with pytest.raises(ValueError, match="frozen"):
        policy.name = "other"  # type: ignore[misc]


def test_all_problems_at_once_each_with_its_line_and_path() -> None:
    problems = bad(
        """\
version: 1
name: .hidden
source:
  type: sqlite
  checksums: tabels
repository:
  url: /srv/backup
  retries: "5"
retenton: {daily: 3}
retention:
  daily: -1
  keep_last: 1.5
limits: {jobs: 65}
drill:
  assertions:
    - name: a
      sql: select 1
      expect: 1
    - name: b
      sql: 5
      expect: [1]
"""
    )
    assert [each.text("p.yaml") for each in problems] == [
        'p.yaml:2: name: must be 1 to 64 letters, digits, ".", "_" or "-", and must not start with "."',
        "p.yaml:3: source.path: is required and not there",
        'p.yaml:5: source.checksums: must be tables or pages (did you mean "tables"?)',
        "p.yaml:8: repository.retries: must be a whole number",
        'p.yaml:9: retenton: is not a known key (did you mean "retention"?)',
        "p.yaml:11: retention.daily: must be 0 or more",
        "p.yaml:12: retention.keep_last: must be a whole number",
        "p.yaml:13: limits.jobs: must be 64 or less",
        "p.yaml:20: drill.assertions[1].sql: must be text (put it in quotes)",
        "p.yaml:21: drill.assertions[1].expect: must be text, a number, true, false, null or {min: ..., max: ...}",
    ]
    assert (problems[2].line, problems[2].column) == (5, 3)


@pytest.mark.parametrize(
    ("more", "path", "message"),
    [
        ("limits:", "limits", "has no value"),
        ("limits: {jobs: }", "limits.jobs", "has no value"),
        ("limits: 3", "limits", "must be a mapping of keys"),
        ("limits: {jobs: true}", "limits.jobs", "must be a whole number"),
        ("limits: {upload_rate: 20}", "limits.upload_rate", "must be a size"),
        ("limits: {upload_rate: 0B}", "limits.upload_rate", "more than nothing"),
        ("limits: {compression_level: 20}", "limits.compression_level", "must be 19 or less"),
        ("objectives: {rpo: 60}", "objectives.rpo", "must be a duration"),
        ("objectives: {rto: 0s}", "objectives.rto", "longer than nothing"),
        ("retention: {min_copies: 0}", "retention.min_copies", "must be 1 or more"),
        ("schedule: {timezone: Europe/Berlni}", "schedule.timezone", "is not a time zone"),
        ("schedule: {timezone: /etc/localtime}", "schedule.timezone", "is not a time zone"),
        ("schedule: {timezone: Europe}", "schedule.timezone", "is not a time zone"),
        ('schedule: {full: "0 2 * *"}', "schedule.full", "must have five fields"),
        ('schedule: {full: "@daily"}', "schedule.full", 'write "0 0 * * *"'),
        ('schedule: {full: "0 25 * * *"}', "schedule.full", "bad hour"),
        ("schedule: {full: 5}", "schedule.full", "must be a cron expression"),
        ("drill: {window: 3d}", "drill.window", "only for snapshot: random"),
        ("drill: {snapshot: newest}", "drill.snapshot", "must be latest or random"),
        ("drill: {directory: tmp}", "drill.directory", "must be an absolute path"),
        ('drill: {directory: "/a\\nb"}', "drill.directory", "control characters"),
        ("drill: {assertions: {name: a}}", "drill.assertions", "must be a list"),
        ("drill: {assertions: [a]}", "drill.assertions[0]", "must be a mapping"),
        ("drill: {assertions: [{name: a, sql: x}]}", "drill.assertions[0].expect", "is required"),
        ("drill: {assertions: [{name: a, sql: '', expect: 1}]}", "drill.assertions[0].sql", "must not be empty"),
        ("drill: {assertions: [{name: a, sql: x, expect: {}}]}", "drill.assertions[0].expect", "min, max or both"),
        ("drill: {assertions: [{name: a, sql: x, expect: {min: a}}]}", "drill.assertions[0].expect.min", "a number"),
        (
            "drill: {assertions: [{name: a, sql: x, expect: {min: 2, max: 1}}]}",
            "drill.assertions[0].expect.min",
            "greater than max",
        ),
        (
            "drill: {assertions: [{name: a, sql: x, expect: 1}, {name: a, sql: y, expect: 1}]}",
            "drill.assertions",
            "same name",
        ),
        ("catalog: {url: catalog.db}", "catalog.url", "must be an SQLAlchemy URL"),
        ("catalog: {url: 'http://[x'}", "catalog.url", "must be an SQLAlchemy URL"),
        ("catalog: {url: 3}", "catalog.url", "must not hold the secret itself"),
        ("notify: {apprise: {url: {env: U}}}", "notify.apprise", "must be a list"),
        ("notify: {apprise: [{on: [], url: {env: U}}]}", "notify.apprise[0].on", "must not be empty"),
        ("notify: {apprise: [{on: [failures], url: {env: U}}]}", "notify.apprise[0].on[0]", "must be failure or"),
        ("notify: {pings: [{url: {env: U}, actions: [restore]}]}", "notify.pings[0].actions[0]", "must be backup or"),
        ("notify: {metrics: {textfile: /srv/crm.txt}}", "notify.metrics.textfile", "must end in .prom"),
        ("hooks: {backup: {before: /bin/true}}", "hooks.backup.before", "must be a list"),
        ("hooks: {backup: {before: []}}", "hooks.backup.before", "must not be empty"),
        ("hooks: {backup: {before: ['']}}", "hooks.backup.before", "name of a program"),
        ("hooks: {bakcup: {before: [x]}}", "hooks.bakcup", "not a known key"),
        ("log: {format: json}", "log", "must have path"),
    ],
)
def test_one_problem(more: str, path: str, message: str) -> None:
    problem = only(LOCAL + more + "\n")
    assert problem.path == path
    assert message in problem.message
    assert problem.line == 5


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("{type: sqlite, path: crm.db}", "source.path", "must be an absolute path"),
        ("{type: sqlite, path: ~no-such-user/crm.db}", "source.path", "no user"),
        ("{type: sqlite, path: 5}", "source.path", "must be a path"),
        ("{path: /a}", "source.type", "is required"),
        ("{type: 5, path: /a}", "source.type", "must be one of sqlite, postgres, mysql"),
        ("{type: sqlite, path: /a, encrypted: true}", "source.encrypted", "needs checksums: pages"),
        ("{type: sqlite, path: /a, max_shrink: 0.5}", "source.max_shrink", "must be a share"),
        ("{type: postgres, url: db.example.org}", "source.url", "must be a URL such as"),
        ("{type: postgres, url: 'postgresql://u:secret@h/d'}", "source.url", "must not hold the password"),
        ("{type: postgres, url: 'postgresql://u@h/d?password=secret'}", "source.url", "must not hold the password"),
        ("{type: postgres, url: 'postgresql://u@h/d', path: /a}", "source.path", "may be: type, url"),
        ("{type: postgres}", "source.url", "is required"),
        ("{type: postgres, url: 'mysql://u@h/d'}", "source.url", "must be a URL such as postgresql://"),
        ("{type: mysql}", "source.url", "is required"),
        ("{type: mysql, url: db.example.org}", "source.url", "must be a URL such as mysql://"),
        ("{type: mysql, url: 'mysql://u@h:a/d'}", "source.url", "must be a URL such as"),
        ("{type: mysql, url: 'postgresql://u@h/d'}", "source.url", "must be a URL such as mysql://"),
        ("{type: mysql, url: 'mysql://u@h/'}", "source.url", "must name the database"),
        ("{type: mysql, url: 'mysql://u:secret@h/d'}", "source.url", "must not hold the password"),
        ("{type: mysql, url: 'mysql://u@h/d', schemas: [a]}", "source.schemas", "may be: type, url"),
        ("{type: mysql, url: 'mysql://u@h/d', non_transactional: skip}", "source.non_transactional", "lock"),
        ("{type: sqlite, path: /a, max_shrink: 101%}", "source.max_shrink", "must be a share"),
        ("/srv/crm.db", "source", "must be a mapping"),
        (
            "{type: oracle, host: db, port: 5432}",
            "source.type",
            "is not supported by this version, which knows: sqlite, postgres, mysql",
        ),
    ],
)
def test_one_problem_in_the_source(source: str, path: str, message: str) -> None:
    problem = only(f"version: 1\nname: crm\nrepository: {{url: /b}}\nsource: {source}\n")
    assert problem.path == path
    assert message in problem.message


def test_a_misspelt_kind_of_source_gets_a_suggestion() -> None:
    assert only("version: 1\nname: a\nrepository: {url: /b}\nsource: {type: sqlit}\n").suggestion == "sqlite"


@pytest.mark.parametrize(
    ("repository", "path", "message"),
    [
        ("{url: backup}", "repository.url", "not the address"),
        ("{url: ~/backup}", "repository.url", "not the address"),
        ("{url: 's3://bbb/p?colour=red'}", "repository.url", "unknown option"),
        ("{url: /b, endpoint: http://x}", "repository.endpoint", "is only for s3:// repositories"),
        ("{url: file:///b, session_token: {env: X}}", "repository.session_token", "is only for s3:// repositories"),
        ("{url: 's3://bbb?region=x', region: x}", "repository.region", "is given twice"),
        ("{url: s3://bbb, endpoint: s3.example.org}", "repository.endpoint", "is not the URL of a server"),
        ("{url: s3://bbb, region: a b}", "repository.region", "is not valid"),
        ("{url: s3://bbb, sse: aes}", "repository.sse", "must be AES256 or aws:kms"),
        ("{url: s3://bbb, sse_kms_key_id: k}", "repository.sse_kms_key_id", "without sse=aws:kms"),
        ("{url: s3://bbb, path_style: 'true'}", "repository.path_style", "must be true or false"),
        ("{url: s3://bbb, connect_timeout: 5}", "repository.connect_timeout", "must be a duration"),
        ("{url: s3://bbb, access_key_id: {env: X}}", "repository.access_key_id", "needs secret_access_key"),
        ("{url: s3://bbb, secret_access_key: {env: X}}", "repository.secret_access_key", "needs access_key_id"),
        ("{url: s3://bbb, session_token: {env: X}}", "repository.session_token", "needs access_key_id"),
        ("{url: /b, passphrase: {}}", "repository.passphrase", "must have exactly one key"),
        ("{url: /b, passphrase: {env: X, file: /y}}", "repository.passphrase", "must have exactly one key"),
        ("{url: /b, passphrase: {env: 5}}", "repository.passphrase", "env must be text"),
        ("{url: /b, passphrase: {env: A-B}}", "repository.passphrase", "env must be the name"),
        ("{url: /b, passphrase: {file: relative}}", "repository.passphrase", "file must be an absolute path"),
        ("{url: /b, passphrase: {command: pass show}}", "repository.passphrase", "command must be a list"),
        ("{url: /b, passphrase: {command: []}}", "repository.passphrase", "command must be a list"),
        ("{url: /b, passphrase: {command: ['']}}", "repository.passphrase", "name of a program"),
        ("{url: /b, retries: 0}", "repository.retries", "must be 1 or more"),
    ],
)
def test_one_problem_in_the_repository(repository: str, path: str, message: str) -> None:
    problem = only(HEAD + f"repository: {repository}\n")
    assert problem.path == path
    assert message in problem.message


def test_options_may_stand_in_the_url_or_beside_it() -> None:
    beside = good(
        HEAD + "repository: {url: s3://bbb/p, region: eu-1, read_timeout: 2m, sse: aws:kms, sse_kms_key_id: k}\n"
    )
    inside = good(HEAD + "repository: {url: 's3://bbb/p?region=eu-1&read_timeout=120&sse=aws:kms&sse_kms_key_id=k'}\n")
    mixed = good(
        HEAD + "repository: {url: 's3://bbb/p?region=eu-1&sse=aws:kms', read_timeout: 2m, sse_kms_key_id: k}\n"
    )
    assert beside.repository.address() == inside.repository.address() == mixed.repository.address()


@pytest.mark.parametrize(
    "repository",
    [
        "{url: /b, passphrase: hunter2}",
        "{url: /b, passphrase: {hunter2}}",
        "{url: /b, passphrase: {hunter2: {hunter2: 1}}}",
        "{url: /b, passphrase: {hunter2: 1, hunter2: 2}}",
        "{url: /b, passphrase: {file: hunter2}}",
        "{url: /b, passphrase: {env: 'hunter2 !'}}",
        "{url: /b, passphrase: [hunter2, {hunter2: &hunter2 x}]}",
        "{url: /b, passphrase: *hunter2}",
        "{url: /b, passphrase: &hunter2 x}",
        "{url: /b, passphrase: !hunter2 x}",
        "{url: /b, passphrase: !hunter2!hunter2 x}",
        "{url: /b, passphrase: 'hunter2}",
        "{url: /b, passphrase: %hunter2}",
        "{url: 's3://key:hunter2@bucket/p'}",
        "{url: 's3://bucket/p?secret_access_key=hunter2'}",
        "{url: 's3://bucket', endpoint: 'https://user:hunter2@host'}",
        "{url: s3://bucket, access_key_id: hunter2, secret_access_key: hunter2}",
        "{url: /b}\ncatalog: {url: 'postgresql://user:hunter2@host/db'}",
        "{url: /b}\ncatalog: {url: 'postgresql://host/db?password=hunter2'}",
        "{url: /b}\nnotify: {apprise: [{url: 'https://host/hunter2'}]}",
        "{url: /b}\nnotify: {pings: [{url: 'https://host/hunter2'}]}",
    ],
)
def test_a_secret_in_the_file_is_refused_without_being_shown(repository: str) -> None:
    problems = bad(HEAD + f"repository: {repository}\n")
    assert MARK not in "\n".join(each.text("p.yaml") for each in problems)


def test_a_secret_in_plain_text_is_told_what_to_write() -> None:
    message = only(HEAD + "repository: {url: /b, passphrase: hunter2}\n").message
    assert "must not hold the secret itself" in message
    assert "{env: NAME}" in message
    assert only(HEAD + "repository: {url: /b, passphrase: {evn: X}}\n").suggestion == "env"


def test_references_made_in_code_are_taken_as_they_are() -> None:
    values = yaml.safe_load(LOCAL)
    values["repository"]["passphrase"] = EnvRef("X")
    assert Policy.model_validate(values).repository.passphrase == EnvRef("X")
