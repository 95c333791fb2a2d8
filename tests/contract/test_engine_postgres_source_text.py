"""Whatever bytes, names and shapes tables have, their rows come out as the server keeps them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crmbackup.engines.postgres.connection import quoted
from tests.support_postgres_sources import Cluster, cluster_of


@pytest.fixture(scope="module", params=[15, 12], ids="pg{}".format)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster_of(request.param) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("encoding", "codec", "text"),
    [("LATIN1", "latin-1", "Müller"), ("EUC_JP", "euc_jp", "顧客"), ("UTF8", "utf-8", "😀é")],
)
def test_databases_of_other_encodings(cluster: Cluster, encoding: str, codec: str, text: str) -> None:
    chain = cluster.chain(encoding=encoding, locale="C")
    table = quoted(text)
    chain.sql(f"CREATE TABLE {table}({table} text)", f"INSERT INTO {table} VALUES ('{text}')")
    taken = chain.take()
    assert taken.layout.tables[0].name == text
    assert list(taken.content().values()) == [{text.encode(codec) + b"\n": 1}]
    assert chain.take().read == {}


def test_a_database_without_an_encoding(cluster: Cluster) -> None:
    """Its text may be valid in none, or in several at once."""
    chain = cluster.chain(encoding="SQL_ASCII", locale="C")
    chain.sql("CREATE TABLE t(v text)", r"INSERT INTO t VALUES (E'M\xfcller'), (E'M\xc3\xbcller'), (E'\xff\\N')")
    assert chain.take().content()["public.t"] == {b"M\xfcller\n": 1, "Müller\n".encode(): 1, b"\xff\\\\N\n": 1}
    assert chain.take().read == {}


@pytest.mark.parametrize(
    "name", ["a \"b\" 'c'", "line\nbreak\ttab", "dots.and.more", "%s {} \\", "ü" * 31, "x" * 63, "select"]
)
def test_names_of_any_kind(cluster: Cluster, name: str) -> None:
    chain = cluster.chain()
    with chain.connect() as connection:
        connection.execute(f"CREATE SCHEMA {quoted(name)}".encode())
        connection.execute(f"CREATE TABLE {quoted(name, name)}({quoted(name)} int)".encode())
        connection.execute(f"INSERT INTO {quoted(name, name)} VALUES (1)".encode())
    taken = chain.take()
    assert (taken.layout.tables[0].schema, taken.layout.tables[0].name) == (name, name)
    assert taken.layout.tables[0].columns == (name,)
    assert chain.take().read == {}


def test_text_that_looks_like_the_format(cluster: Cluster) -> None:
    values = ["\\.", "\\N", "", "a\tb", "a\nb", "a\r\nb", "\\", "\\\\n", "\x01\x7f", "'\"", "\\x41"]
    chain = cluster.chain("CREATE TABLE t(v text, w text)")
    with chain.connect() as connection:
        for value in values:
            connection.execute("INSERT INTO t VALUES (%s, NULL)", (value,))
    content = chain.take().content()["public.t"]
    assert content.total() == len(values)
    assert content[b"\\\\.\t\\N\n"] == content[b"\\\\N\t\\N\n"] == content[b"\t\\N\n"] == 1


def test_tables_of_strange_shapes(cluster: Cluster) -> None:
    columns = ", ".join(f"c{number} int" for number in range(1600))
    chain = cluster.chain(
        f"CREATE TABLE wide({columns})",
        "INSERT INTO wide(c0, c1599) VALUES (1, 2)",
        "CREATE TABLE bare()",
        "INSERT INTO bare SELECT FROM generate_series(1, 3)",
        "CREATE TABLE empty(a int PRIMARY KEY)",
        "CREATE TABLE twins(a int)",
        "INSERT INTO twins SELECT 1 FROM generate_series(1, 4)",
        "CREATE TABLE sums(a int, b int GENERATED ALWAYS AS (a + 1) STORED)",
        "INSERT INTO sums VALUES (1)",
    )
    content = chain.take().content()
    assert content["public.bare"] == {b"\n": 3}
    assert content["public.empty"] == {}
    assert content["public.twins"] == {b"1\n": 4}
    assert content["public.sums"] == {b"1\n": 1}
    assert chain.take().read == {}
