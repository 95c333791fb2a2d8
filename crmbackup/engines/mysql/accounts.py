"""Accounts that have rights on a database, by themselves or through roles, as statements that make them again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from crmbackup.engines.mysql.connection import Connection, Version, execute, quoted

#: Where a GRANT says what database it is for.
GRANT_ON = re.compile(r" ON (?:PROCEDURE |FUNCTION |PACKAGE BODY |PACKAGE )?`((?:[^`]|``)*)`\.")
#: MySQL names default roles as it makes an account, before anything can have been granted to it; or something quoted.
_DEFAULT_ROLE = re.compile(r"(`(?:[^`]|``)*`|'(?:[^'\\]|\\.)*')| DEFAULT ROLE (?:`(?:[^`]|``)*`@`(?:[^`]|``)*`,?)+")
#: Everybody on a MariaDB server: has rights, and cannot be made.
_PUBLIC = "PUBLIC"
_HEX_SINCE = (8, 0, 17)


class Account(NamedTuple):
    """A user, or a role. MariaDB's roles have no host."""

    user: str
    host: str

    @property
    def sql(self) -> str:
        """As statements name it."""
        return f"{quoted(self.user)}@{quoted(self.host)}" if self.host else quoted(self.user)


class _Member(NamedTuple):
    """Who has a role. admin: and may give it to others."""

    account: Account
    role: Account
    admin: bool


class _Roles(NamedTuple):
    """defaults: each account with a role that it has from the start of a session."""

    members: Sequence[_Member]
    defaults: Sequence[tuple[Account, Account]]


def read_accounts(connection: Connection, database: str, version: Version) -> list[str]:
    """Statements that make the accounts which have rights on a database, with the hashes of their passwords and their roles
    among each other, and give these rights. Raises pymysql.Error.
    """
    if not version.mariadb and version.number >= _HEX_SINCE:
        execute(connection, "SET print_identified_with_as_hex = ON")  # the bytes of a hash are no text
    roles = (_roles_of_mariadb if version.mariadb else _roles_of_mysql)(connection)
    accounts = _having_rights(connection, database)
    _add_members(accounts, roles.members, mariadb=version.mariadb)
    ordered = sorted(accounts, key=lambda each: (bool(each.host), each))
    statements: list[str] = []
    for account in ordered:
        if account.host:
            created = execute(connection, f"SHOW CREATE USER {account.sql}")
            statements += [_DEFAULT_ROLE.sub(lambda match: match[1] or "", str(text)) for (text,) in created]
        elif account.user != _PUBLIC:
            statements.append(f"CREATE ROLE IF NOT EXISTS {account.sql}")
    statements += _given_roles(roles, accounts, mariadb=version.mariadb)
    for account in ordered:
        for (grant,) in execute(connection, f"SHOW GRANTS FOR {account.sql}"):
            place = GRANT_ON.search(str(grant))
            if place and is_like(database, place[1].replace("``", "`")):
                statements.append(str(grant))
    return list(dict.fromkeys(statements))


def _having_rights(connection: Connection, database: str) -> set[Account]:
    rows = execute(
        connection,
        "SELECT DISTINCT grantee FROM (SELECT grantee, table_schema FROM information_schema.schema_privileges"
        " UNION ALL SELECT grantee, table_schema FROM information_schema.table_privileges"
        " UNION ALL SELECT grantee, table_schema FROM information_schema.column_privileges) p"
        " WHERE %s LIKE table_schema",
        (database,),
    )
    found = set()
    for (grantee,) in rows:
        # information_schema puts quotes around both parts, but escapes nothing within.
        user, _, host = str(grantee).rpartition("@")
        found.add(Account(user[1:-1], host[1:-1]))
    return found


def _roles_of_mariadb(connection: Connection) -> _Roles:
    members = execute(connection, "SELECT user, host, role, admin_option FROM mysql.roles_mapping")
    defaults = execute(connection, "SELECT user, host, default_role FROM mysql.user WHERE default_role <> ''")
    return _Roles(
        [_Member(Account(user, host), Account(role, ""), admin == "Y") for user, host, role, admin in sorted(members)],
        [(Account(user, host), Account(role, "")) for user, host, role in sorted(defaults)],
    )


def _roles_of_mysql(connection: Connection) -> _Roles:
    members = execute(
        connection, "SELECT to_user, to_host, from_user, from_host, with_admin_option FROM mysql.role_edges"
    )
    defaults = execute(connection, "SELECT user, host, default_role_user, default_role_host FROM mysql.default_roles")
    return _Roles(
        [_Member(Account(*each[:2]), Account(*each[2:4]), each[4] == "Y") for each in sorted(members)],
        [(Account(*each[:2]), Account(*each[2:])) for each in sorted(defaults)],
    )


def _add_members(accounts: set[Account], members: Collection[_Member], *, mariadb: bool) -> None:
    """Who has rights through roles. On MariaDB whoever makes a role has it with the right to give it away: administrators,
    who are no part of the database.
    """
    before = 0
    while len(accounts) > before:
        before = len(accounts)
        accounts |= {each.account for each in members if each.role in accounts and not (mariadb and each.admin)}


def _given_roles(roles: _Roles, accounts: Collection[Account], *, mariadb: bool) -> list[str]:
    statements = [
        f"GRANT {each.role.sql} TO {each.account.sql}{' WITH ADMIN OPTION' if each.admin else ''}"
        for each in roles.members
        if each.account in accounts and each.role in accounts
    ]
    defaults: dict[Account, list[str]] = defaultdict(list)
    for account, role in roles.defaults:
        if account in accounts and role in accounts:
            defaults[account].append(role.sql)
    word = "FOR" if mariadb else "TO"
    return statements + [f"SET DEFAULT ROLE {', '.join(names)} {word} {each.sql}" for each, names in defaults.items()]


def is_like(name: str, pattern: str) -> bool:
    """Whether a database is meant by the pattern of a grant, in which % and _ stand for others unless escaped."""
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return re.fullmatch("".join(wild.get(part) or re.escape(part[-1]) for part in parts), name, re.DOTALL) is not None
