"""Public MySQL schemas, each at a fixed commit: where their files are, and what makes them one script. None is kept here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

GIT = "https://github.com/{owner}/{name}"

#: Databases are ours to name and make.
_OTHER_DATABASES = re.compile(r"(?im)^\s*(?:create database|create schema|drop database|drop schema|use)\s[^;]*;")


@dataclass(frozen=True)
class Schema:
    """Where a schema comes from.

    files: patterns of paths, in the order in which they are run; of those that fit one pattern, by name, and without those
    that fit what stands behind an exclamation mark. charset: of the database. edits: expressions and what takes their place, for what installers replace before they run a file.
    force: whether errors of single statements are expected, as the application's installer expects them.
    """

    owner: str
    name: str
    commit: str
    files: tuple[str, ...]
    charset: str = "utf8mb4"
    edits: tuple[tuple[str, str], ...] = ()
    force: bool = False


SCHEMAS = {
    # A CRM in the line of Vtiger: 711 tables with keys and foreign keys, and the rows that its installer brings.
    "yetiforce": Schema(
        "YetiForceCompany",
        "YetiForceCRM",
        "4b5e4244b8338c837a8132ff12686f29f222d89b",
        ("install/install_schema/scheme.sql", "install/install_schema/data.sql"),
        charset="utf8",
    ),
    # Dolibarr 16.0.3 as its installer makes it: tables first, then keys and foreign keys, then dictionaries.
    "dolibarr": Schema(
        "hrpro9",
        "dolibarr16",
        "4c6e3dcff0d23271e561e988581f7291816f4350",
        (
            "htdocs/install/mysql/tables/llx_*.sql !*.key.sql",
            "htdocs/install/mysql/tables/llx_*.key.sql",
            "htdocs/install/mysql/data/llx_[0-9b-z]*.sql !*-*.sql",
        ),
        edits=(
            (r"(?m)^\s*--.*$", ""),
            (r"(?m),\s*--.*$", ","),
            (r"__ENTITY__", "1"),
            (r"__ENCRYPT\(([^()]*)\)__", r"\1"),
        ),
        force=True,
    ),
    # Dolibarr 5.0 with the rows of its demonstration, as an older mysqldump wrote them.
    "dolibarr-demo": Schema(
        "vincent-acropose",
        "dolibarr",
        "900d9dfd64ad0289e31d81950095b5807465dd06",
        ("dev/initdemo/mysqldump_dolibarr_5.0.0.sql",),
        charset="latin1",
    ),
    # X2CRM: one script for each module.
    "x2crm": Schema(
        "X2Engine",
        "X2CRM",
        "e2b1011a2806a3f4efeaaafb60cc70cf39e2ebed",
        (
            "x2engine/protected/data/core.sql",
            "x2engine/protected/data/RBAC.sql",
            "x2engine/protected/data/timezoneData.sql",
            "x2engine/protected/modules/*/data/install.sql",
            "x2engine/protected/data/config.sql",
        ),
        charset="utf8",
        force=True,
    ),
    # OrangeHRM 4.10 with rows, functions and triggers, as phpMyAdmin wrote them.
    "orangehrm": Schema(
        "orangehrm",
        "orangehrm",
        "194a751e23977d76374386f2e405ac68eeed6904",
        (".github/workflows/4x_dumps/V4_10_1.sql",),
        charset="utf8",
    ),
    # LibreHealth EHR: InnoDB and MyISAM side by side, tables without keys, defaults of zero dates.
    "librehealth": Schema(
        "LibreHealthIO",
        "lh-ehr",
        "144776eb0550178c57716efbf733d00aa6b45c89",
        ("sql/database.sql",),
        charset="utf8",
    ),
    # Employees: ranges as partitions, functions, procedures, views over functions.
    "employees": Schema(
        "datacharmer",
        "test_db",
        "3c7fa05e04b4c339d91a43b7029a210212d48e6c",
        ("employees_partitioned.sql", "objects.sql"),
        edits=((r"(?m)^(source|flush) .*$", ""),),
    ),
    # Views over views, triggers, procedures, functions, geometry, a full-text index, YEAR, SET, ENUM, BLOB.
    "sakila": Schema(
        "jOOQ",
        "sakila",
        "e089a5b1ec9af0df7a9c6a5d47d49fa1736a4e84",
        ("mysql-sakila-db/mysql-sakila-schema.sql",),
    ),
}


def fetch(schema: Schema, template: str, work: Path) -> str:
    """The schema as one script for the server's own client. Raises subprocess.CalledProcessError."""
    address = template.format(owner=schema.owner, name=schema.name)
    place = Path(address)
    if not place.is_dir():
        place = work / f"{schema.name}.git"
        _git("init", "-q", "--bare", str(place))
        _git("-C", str(place), "fetch", "-q", "--depth=1", address, schema.commit)
    texts = [_git("-C", str(place), "show", f"{schema.commit}:{path}") for path in _paths(schema, place)]
    script = "\n".join(texts)
    for expression, instead in schema.edits:
        script = re.sub(expression, instead, script)
    return _OTHER_DATABASES.sub("", script)


def _paths(schema: Schema, place: Path) -> Iterator[str]:
    listed = _git("-C", str(place), "ls-tree", "-r", "--name-only", schema.commit).splitlines()
    for pattern in schema.files:
        wanted, _, but = pattern.partition(" !")
        found = [path for path in listed if fnmatchcase(path, wanted) and not fnmatchcase(path, but)]
        if not found:
            raise SystemExit(f"{schema.owner}/{schema.name} has no {pattern} at {schema.commit}")
        yield from found


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True)
    return done.stdout.decode("utf-8", "surrogateescape")
