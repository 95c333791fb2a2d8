#!/usr/bin/env python3
"""Turn a crmbackup repository and its identity into the database, with no crmbackup at hand.

    pip install cryptography zstandard blake3
    python3 decrypt.py REPOSITORY-DIRECTORY IDENTITY-FILE                  lists the snapshots
    python3 decrypt.py REPOSITORY-DIRECTORY IDENTITY-FILE OUT [SNAPSHOT]   writes the latest of the only policy, or one by its id

The repository must be a directory: fetch one from S3 with any S3 client first. Everything is verified on the way:
signatures from the identity down, names of packs, chunks, and the digest of the whole file. The format is described,
to the byte, in docs/design.md.

A SQLite snapshot becomes the database file. A PostgreSQL snapshot becomes a directory OUT: definitions.dump (an archive
for pg_restore), one file of COPY text for each table, sequences.sql, large_objects.copy, and LOAD.txt, which says what
to type to load them into an empty database. A MySQL or MariaDB snapshot becomes such a directory too: one .tsv file for each table,
load.sql, which makes everything when the mysql or mariadb client runs it, and LOAD.txt.
"""

import base64
import hashlib
import json
import os
import re
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

BLOCK = 64 * 1024


def fail(text: str) -> NoReturn:
    sys.exit(f"decrypt.py: {text}")


def hkdf(secret: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def read_identity(path: Path) -> bytes:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = "".join("".join(lines).upper().split()).replace("-", "").removeprefix("CRMB1")
    raw = base64.b32decode(text.translate(str.maketrans("018", "OIB")))
    seed, checksum = raw[:32], raw[32:]
    if checksum != hashlib.sha256(b"crmbackup identity\0" + seed).digest()[:3]:
        fail("the identity's checksum is wrong: a character differs")
    return seed


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class Keys:
    """The X25519 key that opens objects."""

    def __init__(self, seed: bytes) -> None:
        self.private = X25519PrivateKey.from_private_bytes(hkdf(seed, b"crmbackup/1 x25519"))
        self.public = self.private.public_key().public_bytes_raw()
        owner = Ed25519PrivateKey.from_private_bytes(hkdf(seed, b"crmbackup/1 ed25519"))
        self.owner = owner.public_key().public_bytes_raw()

    def open(self, data: bytes, offset: int, context: bytes) -> tuple[AESGCM, int]:
        """The cipher of an object whose stanzas begin at offset, and where they end."""
        (count,) = struct.unpack_from("<H", data, offset)
        wanted = blake3(self.public).digest(length=16)
        for start in range(offset + 2, offset + 2 + 96 * count, 96):
            stanza = data[start : start + 96]
            if stanza[:16] == wanted:
                ephemeral = stanza[16:48]
                shared = self.private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
                wrapping = hkdf(shared, context, ephemeral + self.public)
                data_key = AESGCM(wrapping).decrypt(bytes(12), stanza[48:], context)
                return AESGCM(data_key), offset + 2 + 96 * count
        fail("this identity is not a recipient of the object")


def read_repository(root: Path, keys: Keys) -> set[str]:
    """The signers that the owner lists."""
    document = json.loads((root / "repository.json").read_bytes())
    signature = bytes.fromhex(document.pop("signature"))
    if document["format"] != 1 or document["owner"] != keys.owner.hex():
        fail("repository.json is of another format or of another owner")
    Ed25519PublicKey.from_public_bytes(keys.owner).verify(signature, b"crmbackup/1 repository\0" + canonical(document))
    return {signer["ed25519"] for signer in document["signers"]}


def read_manifest(path: Path, signers: set[str]) -> tuple[dict[str, Any], bytes]:
    """The verified header of a manifest, and its sealed body."""
    data = path.read_bytes()
    if data[:8] != b"CRMBMF01":
        raise ValueError("it is no manifest of this format")
    (size,) = struct.unpack_from("<I", data, 8)
    head, signature, sealed = data[12 : 12 + size], data[12 + size : 76 + size], data[76 + size :]
    header: dict[str, Any] = json.loads(head)
    if header["signer"] not in signers:
        raise ValueError("it is signed by an unknown host")
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(header["signer"])).verify(
        signature, b"crmbackup/1 manifest\0" + head
    )
    if len(sealed) != header["sealed_size"] or blake3(sealed).hexdigest() != header["sealed_blake3"]:
        raise ValueError("it is damaged")
    return header, sealed


def read_manifests(root: Path, signers: set[str]) -> list[tuple[dict[str, Any], bytes]]:
    """All that can be trusted, the oldest first: names tell the second only. The others are told of and left out."""
    found = []
    for path in (root / "snapshots").glob("*/*"):
        try:
            found.append(read_manifest(path, signers))
        except (ValueError, KeyError, TypeError, struct.error, InvalidSignature) as error:
            print(f"decrypt.py: {path} is left out: {error or type(error).__name__}", file=sys.stderr)
    return sorted(found, key=lambda manifest: str(manifest[0]["captured"]))


def read_body(header: dict[str, Any], sealed: bytes, keys: Keys) -> dict[str, Any]:
    cipher, end = keys.open(sealed, 0, b"crmbackup/1 manifest")
    context = b"crmbackup/1 manifest body " + header["snapshot_id"].encode()
    body: dict[str, Any] = json.loads(zstandard.decompress(cipher.decrypt(bytes(12), sealed[end:], context)))
    return body


def read_chunks(
    root: Path, header: dict[str, Any], body: dict[str, Any], keys: Keys, wanted: Collection[int]
) -> Iterator[tuple[int, bytes]]:
    """The wanted chunks, by number, pack after pack."""
    by_pack = defaultdict(list)
    for number, chunk in enumerate(struct.iter_unpack("<32sIIQII", base64.b64decode(body["chunks"]))):
        if number in wanted:
            by_pack[chunk[1]].append((number, chunk))
    chunk_key = bytes.fromhex(body["chunk_key"])
    for index, members in by_pack.items():
        name = header["packs"][index][0]
        pack = (root / "packs" / name[:2] / name).read_bytes()
        if blake3(pack).hexdigest() != name:
            fail(f"pack {name} is damaged")
        cipher, _ = keys.open(pack, 8, b"crmbackup/1 pack")
        for number, (chunk_id, _, frame, offset, stored, _raw) in members:
            compressed = cipher.decrypt(frame.to_bytes(12, "big"), pack[offset : offset + stored], chunk_id)
            content = zstandard.decompress(compressed)
            if blake3(content, key=chunk_key).digest() != chunk_id:
                fail(f"a chunk of pack {name} is not what its id says")
            yield number, content


def write_pages(root: Path, header: dict[str, Any], body: dict[str, Any], keys: Keys, out: Path) -> None:
    layout = body["layout"]
    page_size = layout["page_size"]
    places = defaultdict(list)
    for first, count, chunk, start in struct.iter_unpack("<IIII", base64.b64decode(layout["extents"])):
        places[chunk].append(((first - 1) * page_size, start * page_size, count * page_size))
    descriptor = os.open(out, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(descriptor, layout["page_count"] * page_size)
        for number, content in read_chunks(root, header, body, keys, places):
            for at, start, length in places[number]:
                os.pwrite(descriptor, content[start : start + length], at)
        digest = blake3()
        for at in range(0, layout["page_count"] * page_size, BLOCK):
            digest.update(blake3(os.pread(descriptor, BLOCK, at)).digest())
        if digest.hexdigest() != body["digest"]:
            fail("the restored file is not the snapshot's")
        os.fsync(descriptor)
    except BaseException:
        out.unlink()  # a part of a database must not pass for one
        raise
    os.close(descriptor)


def quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def write_rows(
    root: Path,
    header: dict[str, Any],
    body: dict[str, Any],
    keys: Keys,
    out: Path,
    files: dict[str, str],
    other: list[int],
) -> bytes:
    """Each file with the rows of its parts; and the content of the `other` chunks, in order.

    Chunks hold whole lines, so those of a table may stand in any order.
    """
    out.mkdir(mode=0o700)
    owners: dict[int, Any] = dict.fromkeys(other)
    rows = dict.fromkeys(files, 0)
    for name, parts in files.items():
        (out / name).touch(mode=0o600)
        for chunk, count, _checksum in struct.iter_unpack("<II16s", base64.b64decode(parts)):
            owners[chunk] = (*(owners.get(chunk) or ()), name)
            rows[name] += count
    found = {}
    for number, content in read_chunks(root, header, body, keys, owners):
        if owners[number] is None:
            found[number] = content
        for name in owners[number] or ():
            with (out / name).open("ab") as stream:
                stream.write(content)
    for name, count in rows.items():
        if sum(block.count(b"\n") for block in blocks(out / name)) != count:
            fail(f"{name} does not have its {count} rows")
    return b"".join(found[number] for number in other)


def write_postgres(root: Path, header: dict[str, Any], body: dict[str, Any], keys: Keys, out: Path) -> None:
    layout = body["layout"]
    files = {f"table-{number:05}.copy": table["parts"] for number, table in enumerate(layout["tables"])}
    files["large_objects.copy"] = layout["large_object_parts"]
    archive = write_rows(root, header, body, keys, out, files, layout["archive"])
    (out / "definitions.dump").write_bytes(archive)
    encoding = layout["database"]["encoding"]
    sequences = [
        f"SELECT setval('{quoted(schema, name).replace(chr(39), chr(39) * 2)}'::regclass, {last}, {str(called).lower()});"
        for schema, name, _, last, called in layout["sequences"]
    ]
    (out / "sequences.sql").write_text("SET standard_conforming_strings = on;\n" + "\n".join(sequences) + "\n")
    lines = [
        f"Into an empty database made with TEMPLATE template0 and ENCODING '{encoding}', in this directory:",
        "",
        "  pg_restore --section=pre-data --no-owner -d DATABASE definitions.dump",
        f"  PGCLIENTENCODING={encoding} psql -d DATABASE -f tables.sql",
        "  psql -d DATABASE -f sequences.sql",
        "  pg_restore --section=post-data --no-owner -d DATABASE definitions.dump",
        "",
        "large_objects.copy has lines of oid, offset and bytes: lo_create(oid), then lo_put(oid, offset, bytes).",
    ]
    tables = [r"\set ON_ERROR_STOP on"]
    for name, table in zip(files, layout["tables"], strict=False):
        columns = f"({', '.join(map(quoted, table['columns']))})" if table["columns"] else ""
        place = quoted(*(table["root"] or (table["schema"], table["name"])))
        # psql's \copy takes one line; a name with a line end in it cannot be loaded this way.
        tables.append(rf"\copy {place} {columns} FROM '{name}'")
    (out / "tables.sql").write_text("\n".join(tables) + "\n")
    (out / "LOAD.txt").write_text("\n".join(lines) + "\n")


def backticked(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


#: What MySQL calls a character set, for Python. Its latin1 is that of Windows.
CODECS = {"latin1": "cp1252", "latin2": "iso8859-2", "greek": "iso8859-7", "koi8r": "koi8-r", "cp1251": "cp1251"}


def encoded(text: str, charset: str) -> tuple[bytes, str]:
    """A statement as a client of that character set sends it, and the one that it is sent in."""
    codec = "utf-8" if charset.startswith("utf8") or text.isascii() else CODECS.get(charset)
    try:
        return (text.encode(codec), charset) if codec else (text.encode(), "utf8mb4")
    except UnicodeError:
        return text.encode(), "utf8mb4"


def script(objects: list[dict[str, Any]], change: Callable[[str], str] = str) -> bytes:
    """Statements that make objects, each under the settings that it was made under."""
    parts = []
    for each in objects:
        settings = {"sql_mode": MODE, "character_set_client": "utf8mb4", **each["settings"]}
        text = change(each["create"])
        statement, settings["character_set_client"] = encoded(text, settings["character_set_client"])
        end = "$$"
        while end in text:
            end += "$"
        sets = "".join(f"SET {name} = '{value}';\n" for name, value in settings.items())
        parts.append(f"{sets}DELIMITER {end}\n".encode() + statement + f"\n{end}\nDELIMITER ;\n".encode())
    return b"".join(parts)


MODE = "NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES"
LOADED = {"number": "CAST({} AS UNSIGNED)", "text": "CONVERT({} USING utf8mb4)"}


def by_use(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Views in an order in which each stands behind those that its text names."""
    ordered: dict[str, dict[str, Any]] = {}
    open_ones: set[str] = set()

    def place(view: dict[str, Any]) -> None:
        if view["name"] in ordered or view["name"] in open_ones:
            return
        open_ones.add(view["name"])
        for other in views:
            if backticked(other["name"]) in view["create"]:
                place(other)
        ordered[view["name"]] = view

    for view in views:
        place(view)
    return list(ordered.values())


def load_data(file: str, table: dict[str, Any]) -> str:
    names, sets = [], []
    for number, (name, how) in enumerate(table["columns"]):
        names.append(f"@v{number}" if how else backticked(name))
        if how:
            sets.append(f"{backticked(name)} = {LOADED[how].format(f'@v{number}')}")
    text = (
        f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE {backticked(table['name'])} CHARACTER SET binary"
        f" FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' ({', '.join(names)})"
        + (f" SET {', '.join(sets)}" if sets else "")
    )
    history = "SET system_versioning_insert_history = {};"
    return "\n".join([history.format(1), f"{text};", history.format(0)] if table["history"] else [f"{text};"])


def write_mysql(root: Path, header: dict[str, Any], body: dict[str, Any], keys: Keys, out: Path) -> None:
    layout = body["layout"]
    files = {f"table-{number:05}.tsv": table["parts"] for number, table in enumerate(layout["tables"])}
    definitions = json.loads(write_rows(root, header, body, keys, out, files, layout["definitions"]))
    kinds = defaultdict(list)
    for each in definitions["objects"]:
        kinds[each["kind"]].append(each)
    values = [
        f"SELECT SETVAL({backticked(name)}, {following}, 0, {cycles});"
        for name, following, cycles in layout["sequences"]
    ]
    routines = [each for kind in ("function", "procedure", "package", "package body") for each in kinds[kind]]
    disabled = partial(re.compile(r"( ON COMPLETION (?:NOT )?PRESERVE) ENABLE\b").sub, r"\1 DISABLE", count=1)
    sections = {
        "tables": script(kinds["sequence"] + kinds["table"]),
        "rows": "\n".join([*map(load_data, files, layout["tables"]), *values, ""]).encode(),
        "routines": script(routines),
        "triggers": script(kinds["trigger"]),
        "events": script(kinds["event"], disabled),
        # Last: one whose tables are gone fails, and the client stops there.
        "views": script(by_use(kinds["view"])),
    }
    before = (
        f"SET NAMES utf8mb4, time_zone = '+00:00', foreign_key_checks = 0, unique_checks = 0, sql_mode = '{MODE}';\n"
    )
    parts = [f"-- {name}\n{before}".encode() + content for name, content in sections.items()]
    (out / "load.sql").write_bytes(b"\n".join(parts))
    accounts = "".join(f"{text};\n" for text in definitions["accounts"])
    (out / "accounts.sql").write_text(accounts or "-- the snapshot carries no accounts\n")
    database = layout["database"]
    (out / "LOAD.txt").write_text(
        f"This was {layout['flavour']} {'.'.join(map(str, layout['server']))}. In this directory, as an administrator of a"
        f" server with local_infile = 1:\n\n  CREATE DATABASE {backticked(database['name'])} CHARACTER SET"
        f" {database['charset']} COLLATE {database['collation']};\n\n  mariadb --local-infile=1 --binary-mode"
        f" --default-character-set=utf8mb4 DATABASE < load.sql\n\n(or mysql; --force goes on behind views whose tables are gone). Events come back switched off. accounts.sql is"
        " for you to read first: it makes users. Definers that views, routines, triggers and events need: "
        f"{', '.join(layout['definers']) or 'none'}.\n"
    )


def blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(1024 * 1024):
            yield block


WRITERS = {"pages": write_pages, "postgres": write_postgres, "mysql": write_mysql}


def main() -> None:
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    root, keys = Path(sys.argv[1]), Keys(read_identity(Path(sys.argv[2])))
    signers = read_repository(root, keys)
    manifests = read_manifests(root, signers)
    if len(sys.argv) == 3:
        for header, _ in manifests:
            print(header["snapshot_id"], header["policy"], header["kind"], header["captured"], header["source_size"])
        return
    wanted = sys.argv[4] if len(sys.argv) == 5 else ""
    found = [manifest for manifest in manifests if manifest[0]["snapshot_id"].startswith(wanted)]
    if not found:
        fail(f"there is no snapshot {wanted}")
    if len(found) > 1 and (wanted or len({header["policy"] for header, _ in found}) > 1):
        fail("several snapshots begin so" if wanted else "there are several policies: say which SNAPSHOT")
    header, sealed = found[-1]
    body = read_body(header, sealed, keys)
    kind = body["layout"]["type"]
    if kind not in WRITERS:
        fail(f"a layout of type {kind} is not known to this script")
    WRITERS[kind](root, header, body, keys, Path(sys.argv[3]))
    print(f"{sys.argv[3]} is snapshot {header['snapshot_id']} of {header['captured']}")
    for table in body["tables"]:
        print(f"  {table['name']}: {table['rows']} rows")


if __name__ == "__main__":
    main()
