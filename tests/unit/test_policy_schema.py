from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from crmbackup.policy import yamltree
from crmbackup.policy.loader import check_policy, load_policy
from crmbackup.policy.schema import json_schema

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "policies").glob("*.y*ml"))
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
BASE: dict[str, Any] = {
    "version": 1,
    "name": "crm",
    "source": {"type": "sqlite", "path": "/srv/crm.db"},
    "repository": {"url": "/srv/backup"},
}
S3 = {"url": "s3://bucket/prefix"}
KEY = {"access_key_id": {"env": "A"}, "secret_access_key": {"file": "/b"}}


def assertion(expect: object) -> dict[str, Any]:
    return {"drill": {"assertions": [{"name": "a", "sql": "select 1", "expect": expect}]}}


def source(**more: object) -> dict[str, Any]:
    return {"source": {**BASE["source"], **more}}


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        source(busy_timeout="1h30m", max_shrink="100%", checksums="pages", encrypted=True),
        source(path="~/crm.db"),
        {"repository": {"url": "file:///srv/backup", "passphrase": {"command": ["pass", "x"]}, "retries": 1}},
        {"repository": {**S3, **KEY, "region": "eu", "path_style": True, "sse": "AES256", "read_timeout": "1m"}},
        {"schedule": {"full": "30 2 * * 0", "timezone": "UTC"}},
        {"schedule": {}},
        {"retention": {"daily": 3, "within": "2w", "min_copies": 1}},
        {"objectives": {"rpo": "1h"}},
        {"drill": {"snapshot": "random", "window": "3d", "directory": "/x", "reports": "/y"}},
        assertion(None),
        assertion(1),
        assertion(1.5),
        assertion("x"),
        assertion(False),
        assertion({"min": 1}),
        assertion({"min": 1, "max": 2.5}),
        {"limits": {"jobs": 64, "upload_rate": "20MiB", "compression_level": 1}},
        {"catalog": {"url": "sqlite:////var/lib/x.db"}},
        {"catalog": {"url": {"env": "X"}}},
        {"notify": {"apprise": [{"on": ["failure"], "url": {"env": "X"}}], "repeat": "1h"}},
        {"notify": {"pings": [{"url": {"file": "/x"}}], "metrics": {"textfile": "/x/y.prom"}}},
        {"hooks": {"drill": {"before": ["x"], "on_error": ["y", "z"], "timeout": "1m"}}},
        {"log": {"syslog": True, "format": "json"}},
        {"log": {"path": "/x.log"}},
    ],
)
def test_both_accept(changes: dict[str, Any]) -> None:
    document = {**BASE, **changes}
    assert list(VALIDATOR.iter_errors(document)) == []
    assert check_policy(yaml.safe_dump(document))[1] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": "1"},
        {"version": True},
        {"name": ".x"},
        {"name": "a b"},
        {"name": "x" * 65},
        {"name": 5},
        {"unknown": 1},
        {"source": None},
        {"source": {"type": "sqlite"}},
        {"source": {"type": "oracle", "path": "/x"}},
        source(path="relative"),
        source(busy_timeout=30),
        source(busy_timeout="30"),
        source(max_shrink="101%"),
        source(max_shrink=0.5),
        source(encrypted=True),
        source(encrypted="true"),
        source(unknown=1),
        {"repository": {}},
        {"repository": {"url": "/b", "region": "x"}},
        {"repository": {"url": "file:///b", **KEY}},
        {"repository": {**S3, "access_key_id": {"env": "A"}}},
        {"repository": {**S3, "session_token": {"env": "A"}}},
        {"repository": {"url": "/b", "passphrase": "hunter2"}},
        {"repository": {"url": "/b", "passphrase": {"evn": "X"}}},
        {"repository": {"url": "/b", "passphrase": {"env": "X", "file": "/y"}}},
        {"repository": {"url": "/b", "passphrase": {"command": []}}},
        {"repository": {"url": "/b", "retries": 0}},
        {"repository": {**S3, "checksums": "always"}},
        {"schedule": None},
        {"schedule": {"full": "0 2 * *"}},
        {"schedule": {"full": "@daily"}},
        {"retention": {"daily": -1}},
        {"retention": {"daily": True}},
        {"retention": {"min_copies": 0}},
        {"objectives": {"rpo": "1 hour"}},
        {"drill": {"snapshot": "newest"}},
        {"drill": {"window": "3d"}},
        {"drill": {"assertions": [{"name": "a", "sql": "x"}]}},
        {"drill": {"assertions": {}}},
        assertion([]),
        assertion({}),
        assertion({"min": "a"}),
        assertion({"mim": 1}),
        {"limits": {"jobs": 65}},
        {"limits": {"upload_rate": 20}},
        {"limits": {"compression_level": 0}},
        {"catalog": {}},
        {"catalog": {"url": 5}},
        {"notify": {"apprise": [{"on": [], "url": {"env": "X"}}]}},
        {"notify": {"apprise": [{"on": ["failure"], "url": "https://x"}]}},
        {"notify": {"pings": [{"url": {"env": "X"}, "actions": ["restore"]}]}},
        {"notify": {"metrics": {"textfile": "/x/y"}}},
        {"hooks": {"drill": {}}},
        {"hooks": {"drill": {"before": "x"}}},
        {"hooks": {"drill": {"timeout": "1m"}}},
        {"log": {}},
        {"log": {"syslog": False}},
    ],
)
def test_both_reject(changes: dict[str, Any]) -> None:
    document = {**BASE, **changes}
    assert list(VALIDATOR.iter_errors(document)) != []
    assert check_policy(yaml.safe_dump(document))[1] != []


def keys(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key there may be, as `drill.assertions[].name`, with its schema."""
    if "$ref" in schema:
        schema = {**SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], **schema}
    for name, inner in schema.get("properties", {}).items():
        if "$ref" in inner:
            inner = {**SCHEMA["$defs"][inner["$ref"].rpartition("/")[2]], **inner}
        path = f"{prefix}.{name}" if prefix else name
        yield path, inner
        yield from keys({key: value for key, value in inner.items() if key != "$ref"}, path)
    if "items" in schema:
        yield from keys(schema["items"], f"{prefix}[]")
    for inner in schema.get("oneOf", []):
        yield from keys(inner, prefix)


ALL_KEYS = dict(keys(SCHEMA))


def test_every_key_has_title_and_description() -> None:
    assert len(ALL_KEYS) > 60
    bare = [path for path, schema in ALL_KEYS.items() if not schema.get("title") or not schema.get("description")]
    assert bare == []


def test_every_key_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "policy.md").read_text("utf-8")
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    references = {path for path in ALL_KEYS if path.endswith((".env", ".file", ".command"))}
    assert {"repository.identity.env", "notify.apprise[].url.file", "catalog.url.command"} <= references
    assert rows == set(ALL_KEYS) - references
    for kind in ("env", "file", "command"):
        assert f"{{{kind}: " in text


def test_there_are_samples() -> None:
    assert {"example-local.yaml", "example-s3.yaml"} <= {path.name for path in SAMPLES}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_load(path: Path) -> None:
    load_policy(path)
    # Not yaml.safe_load, to which the key `on` is true, unlike to editors.
    root, _ = yamltree.parse(path.read_text("utf-8"))
    assert root is not None
    assert list(VALIDATOR.iter_errors(json.loads(json.dumps(root.plain())))) == []
