"""A database with something of every kind, and one change of each of them."""

from __future__ import annotations

#: Something of every kind that PostgreSQL 12 knows, with names and states that are easily lost.
RICH = """
CREATE EXTENSION IF NOT EXISTS hstore;
CREATE SCHEMA crm; CREATE SCHEMA "sch""e ma.x";
COMMENT ON SCHEMA crm IS 'the CRM';
CREATE TYPE crm.stage AS ENUM ('new', 'old', 'it''s "q"');
ALTER TYPE crm.stage ADD VALUE 'mid' BEFORE 'old';
-- next
CREATE TYPE crm.address AS (street text COLLATE "C", zip varchar(10));
CREATE DOMAIN crm.email AS text COLLATE "C" DEFAULT 'x@y' NOT NULL CONSTRAINT has_at CHECK (VALUE ~ '@');
CREATE TYPE crm.span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE COLLATION crm.coll (locale = 'C');
CREATE FUNCTION crm.add(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 7
    SET work_mem = '5MB' AS 'SELECT a + b';
CREATE PROCEDURE crm.proc(INOUT x int) LANGUAGE plpgsql AS $$ BEGIN x := x + 1; END $$;
CREATE AGGREGATE crm.total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE FUNCTION crm.eqm(a crm.address, b crm.address) RETURNS bool LANGUAGE sql IMMUTABLE AS
    'SELECT (a).zip = (b).zip';
CREATE OPERATOR crm.=== (function = crm.eqm, leftarg = crm.address, rightarg = crm.address, commutator =
    OPERATOR(crm.===));
CREATE OPERATOR FAMILY crm.fam USING btree;
CREATE OPERATOR CLASS crm.intops FOR TYPE int4 USING btree FAMILY crm.fam AS OPERATOR 1 <, OPERATOR 2 <=,
    OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int4, int4);
CREATE FUNCTION crm.to_text(crm.address) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ($1).street';
CREATE CAST (crm.address AS text) WITH FUNCTION crm.to_text(crm.address) AS ASSIGNMENT;
CREATE CONVERSION crm.conv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH DICTIONARY crm.dict (TEMPLATE = simple, stopwords = 'english');
CREATE TEXT SEARCH CONFIGURATION crm.conf (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION crm.conf ALTER MAPPING FOR asciiword WITH crm.dict, simple;
CREATE SEQUENCE crm.numbers AS int INCREMENT 5 MINVALUE 5 MAXVALUE 5000 START 10 CACHE 3 CYCLE;
CREATE TABLE crm.accounts (
  id bigint GENERATED ALWAYS AS IDENTITY (START 100) PRIMARY KEY,
  gone int,
  name varchar(40) NOT NULL, status varchar(9) DEFAULT 'a' CONSTRAINT status_known CHECK (status IN ('a', 'b',
    'it''s "(ARRAY[')),
  mail crm.email, addr crm.address, stage crm.stage DEFAULT 'mid', price numeric(10,2) DEFAULT 0, tags text[]
    DEFAULT '{}',
  up text GENERATED ALWAYS AS (upper(name)) STORED, h hstore, note text COLLATE crm.coll, serial serial,
  num int DEFAULT nextval('crm.numbers'), parent bigint REFERENCES crm.accounts (id) ON DELETE SET NULL
    DEFERRABLE INITIALLY DEFERRED,
  EXCLUDE USING gist (int8range(id, id, '[]') WITH &&)
) WITH (fillfactor = 70, toast.autovacuum_enabled = off);
ALTER TABLE crm.accounts DROP COLUMN gone;
ALTER TABLE crm.accounts ALTER note SET STORAGE EXTERNAL, ALTER name SET STATISTICS 321, ALTER stage SET
    (n_distinct = 5);
ALTER TABLE crm.accounts ADD CONSTRAINT late CHECK (price < 1000000) NOT VALID;
ALTER TABLE crm.accounts ADD CONSTRAINT late_fk FOREIGN KEY (num) REFERENCES crm.accounts (id) NOT VALID;
CREATE INDEX by_name ON crm.accounts (lower(name), status DESC NULLS LAST) INCLUDE (price) WHERE status IN
    ('a', 'b');
CREATE UNIQUE INDEX by_serial ON crm.accounts (serial);
ALTER TABLE crm.accounts CLUSTER ON by_serial;
ALTER INDEX crm.by_name ALTER COLUMN 1 SET STATISTICS 77;
CREATE STATISTICS crm.st (ndistinct, dependencies) ON name, status FROM crm.accounts;
COMMENT ON COLUMN crm.accounts.name IS 'a name'; COMMENT ON CONSTRAINT late ON crm.accounts IS 'c'; COMMENT ON
    INDEX crm.by_name IS 'i';
CREATE UNLOGGED TABLE crm.cache (k text PRIMARY KEY, v text);
CREATE TABLE crm.base (a int, b int CHECK (b > 0)); CREATE TABLE crm.child (own text) INHERITS (crm.base);
ALTER TABLE crm.base ADD COLUMN later int DEFAULT 5 NOT NULL;
CREATE TABLE crm.events (id int NOT NULL, at date NOT NULL, kind crm.stage, acc bigint REFERENCES crm.accounts
    (id), PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE crm.events_1 PARTITION OF crm.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE crm.events_2 (at date NOT NULL, junk int, acc bigint, kind crm.stage, id int NOT NULL);
ALTER TABLE crm.events_2 DROP COLUMN junk;
ALTER TABLE crm.events_2 ADD CONSTRAINT own_fk FOREIGN KEY (acc) REFERENCES crm.accounts (id);
ALTER TABLE crm.events ATTACH PARTITION crm.events_2 FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE crm.hashed (kind crm.stage, t text) PARTITION BY LIST (t); CREATE TABLE crm.hashed_d PARTITION OF
    crm.hashed DEFAULT PARTITION BY HASH (kind);
CREATE TABLE crm.hashed_d0 PARTITION OF crm.hashed_d FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE INDEX ev_kind ON crm.events (kind); CREATE INDEX ev_lone ON ONLY crm.events (acc);
CREATE TABLE crm.refs (i int, a date, FOREIGN KEY (i, a) REFERENCES crm.events MATCH FULL);
CREATE TABLE "sch""e ma.x"."ta""b.le\n\tn'x" ("co""l\n n" int PRIMARY KEY, "sel ect" text DEFAULT 'a\\b');
COMMENT ON TABLE "sch""e ma.x"."ta""b.le\n\tn'x" IS E'it''s \\\\ x';
CREATE TABLE crm.ident (id int PRIMARY KEY); ALTER TABLE crm.ident REPLICA IDENTITY USING INDEX ident_pkey;
CREATE TABLE crm.full_ident (id int); ALTER TABLE crm.full_ident REPLICA IDENTITY FULL;
CREATE TABLE crm.typed OF crm.address (PRIMARY KEY (zip));
CREATE VIEW crm.names WITH (security_barrier) AS SELECT id, name || '!' AS n FROM crm.accounts WHERE status IN
    ('a', 'b') WITH LOCAL CHECK OPTION;
ALTER VIEW crm.names ALTER COLUMN n SET DEFAULT 'z';
CREATE MATERIALIZED VIEW crm.counts AS SELECT status, count(*) AS c FROM crm.accounts GROUP BY 1 WITH NO DATA;
CREATE UNIQUE INDEX counts_u ON crm.counts (status);
ALTER MATERIALIZED VIEW crm.counts ALTER COLUMN status SET STATISTICS 12;
CREATE FUNCTION crm.trig() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t1 BEFORE UPDATE OF name ON crm.accounts FOR EACH ROW WHEN (OLD.name <> NEW.name) EXECUTE
    FUNCTION crm.trig('a');
CREATE TRIGGER t2 BEFORE INSERT ON crm.accounts FOR EACH ROW EXECUTE FUNCTION crm.trig();
CREATE TRIGGER t3 BEFORE INSERT ON crm.accounts FOR EACH ROW EXECUTE FUNCTION crm.trig();
ALTER TABLE crm.accounts DISABLE TRIGGER t1, ENABLE ALWAYS TRIGGER t2, ENABLE REPLICA TRIGGER t3;
CREATE CONSTRAINT TRIGGER t4 AFTER INSERT ON crm.accounts DEFERRABLE FOR EACH ROW EXECUTE FUNCTION crm.trig();
CREATE TRIGGER te AFTER INSERT ON crm.events FOR EACH ROW EXECUTE FUNCTION crm.trig();
CREATE RULE r1 AS ON DELETE TO crm.cache DO INSTEAD NOTHING;
CREATE POLICY p1 ON crm.accounts AS RESTRICTIVE FOR UPDATE TO app, reader USING (name = current_user) WITH
    CHECK (true);
ALTER TABLE crm.accounts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE FUNCTION crm.ev() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER et ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION crm.ev();
CREATE FOREIGN DATA WRAPPER fdw OPTIONS (debug 'x'); CREATE SERVER srv TYPE 'x' VERSION '1' FOREIGN DATA
    WRAPPER fdw OPTIONS (host 'h');
CREATE USER MAPPING FOR app SERVER srv OPTIONS (password 'secret');
CREATE FOREIGN TABLE crm.ft (a int OPTIONS (column_name 'z')) SERVER srv OPTIONS (tab 't');
CREATE PUBLICATION pub FOR TABLE crm.accounts, ONLY crm.base WITH (publish = 'insert');
CREATE PUBLICATION puball FOR ALL TABLES;
CREATE SUBSCRIPTION sub CONNECTION 'dbname=secret' PUBLICATION p1, p2 WITH (connect = false, slot_name = NONE);
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE crm.other_am (a int) USING heap2;
ALTER TABLE crm.base OWNER TO app; ALTER FUNCTION crm.add(int, int) OWNER TO app; ALTER SCHEMA crm OWNER TO
    app; ALTER TYPE crm.stage OWNER TO app;
GRANT SELECT (name), UPDATE (price) ON crm.accounts TO app; GRANT SELECT ON crm.base TO reader WITH GRANT
    OPTION;
GRANT USAGE ON SCHEMA crm TO reader; SET ROLE reader; GRANT SELECT ON crm.base TO "we""ird"; RESET ROLE;
REVOKE ALL ON crm.cache FROM CURRENT_USER; GRANT USAGE ON SCHEMA crm TO reader; REVOKE EXECUTE ON FUNCTION
    crm.add(int, int) FROM PUBLIC;
GRANT USAGE ON TYPE crm.email TO reader; REVOKE USAGE ON TYPE crm.email FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(float8) FROM PUBLIC; REVOKE EXECUTE ON FUNCTION
    public.akeys(public.hstore) FROM PUBLIC;
GRANT USAGE ON SEQUENCE crm.numbers TO app; GRANT USAGE ON FOREIGN SERVER srv TO app; REVOKE USAGE ON LANGUAGE
    plpgsql FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE app IN SCHEMA crm GRANT SELECT ON TABLES TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE app REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
GRANT CREATE ON SCHEMA public TO app;
COMMENT ON EXTENSION hstore IS 'ours'; COMMENT ON FUNCTION crm.add(int, int) IS 'adds'; COMMENT ON TRIGGER t1
    ON crm.accounts IS 't';
"""

#: One change each, and the kind of object in which it must show.
CHANGES = [
    ("schemas", "CREATE SCHEMA another"),
    ("columns", "ALTER TABLE crm.refs ADD COLUMN b int"),
    ("columns", "ALTER TABLE crm.refs RENAME COLUMN i TO ii"),
    ("columns", "ALTER TABLE crm.cache ALTER v TYPE varchar(9)"),
    ("columns", "ALTER TABLE crm.cache ALTER v SET NOT NULL"),
    ("columns", "ALTER TABLE crm.accounts ALTER status SET DEFAULT 'b'"),
    ("columns", "ALTER TABLE crm.accounts ALTER id SET GENERATED BY DEFAULT"),
    ("columns", "ALTER TABLE crm.accounts ALTER up DROP EXPRESSION"),
    ("columns", "ALTER TABLE crm.accounts ALTER note SET STORAGE PLAIN"),
    ("columns", 'ALTER TABLE crm.accounts ALTER note TYPE text COLLATE "C"'),
    ("columns", "ALTER TABLE crm.accounts ALTER name SET STATISTICS 5"),
    ("columns", "ALTER TABLE crm.accounts ALTER stage SET (n_distinct = 6)"),
    ("columns", "ALTER TABLE crm.accounts ALTER note SET COMPRESSION pglz"),
    ("tables", "ALTER TABLE crm.accounts SET (fillfactor = 71)"),
    ("tables", "ALTER TABLE crm.accounts SET (toast.autovacuum_enabled = on)"),
    ("tables", "ALTER TABLE crm.cache SET LOGGED"),
    ("tables", "ALTER TABLE crm.events DETACH PARTITION crm.events_1"),
    ("tables", "ALTER TABLE crm.child NO INHERIT crm.base"),
    ("tables", "ALTER TABLE crm.full_ident REPLICA IDENTITY NOTHING"),
    ("tables", "ALTER TABLE crm.accounts NO FORCE ROW LEVEL SECURITY"),
    ("tables", "ALTER FOREIGN TABLE crm.ft OPTIONS (SET tab 'u')"),
    ("indexes", "DROP INDEX crm.by_name"),
    ("indexes", "ALTER TABLE crm.accounts SET WITHOUT CLUSTER"),
    ("indexes", "ALTER INDEX crm.by_name ALTER COLUMN 1 SET STATISTICS 78"),
    ("indexes", "ALTER TABLE crm.ident REPLICA IDENTITY DEFAULT"),
    ("constraints", "ALTER TABLE crm.accounts VALIDATE CONSTRAINT late"),
    ("constraints", "ALTER TABLE crm.accounts ALTER CONSTRAINT accounts_parent_fkey NOT DEFERRABLE"),
    ("constraints", "ALTER DOMAIN crm.email DROP CONSTRAINT has_at"),
    ("views", "ALTER VIEW crm.names RESET (security_barrier)"),
    ("views", "CREATE OR REPLACE VIEW crm.names AS SELECT id, name || '?' AS n FROM crm.accounts"),
    ("materialized_views", "REFRESH MATERIALIZED VIEW crm.counts"),
    ("sequences", "ALTER SEQUENCE crm.numbers INCREMENT 6"),
    ("sequences", "ALTER SEQUENCE crm.numbers OWNED BY crm.accounts.num"),
    ("types", "ALTER TYPE crm.stage RENAME VALUE 'mid' TO 'middle'"),
    ("types", "ALTER TYPE crm.address ADD ATTRIBUTE town text CASCADE"),
    ("types", "ALTER DOMAIN crm.email DROP NOT NULL"),
    ("functions", "ALTER FUNCTION crm.add(int, int) VOLATILE"),
    ("functions", "ALTER PROCEDURE crm.proc SECURITY DEFINER"),
    ("aggregates", "CREATE OR REPLACE AGGREGATE crm.total(int) (sfunc = int4pl, stype = int, initcond = '1')"),
    ("operators", "ALTER OPERATOR crm.=== (crm.address, crm.address) SET (RESTRICT = eqsel)"),
    (
        "operator_families",
        "ALTER OPERATOR FAMILY crm.fam USING btree ADD FUNCTION 1 (int2, int2) btint2cmp(int2, int2)",
    ),
    ("operator_classes", "DROP OPERATOR CLASS crm.intops USING btree"),
    ("casts", "DROP CAST (crm.address AS text)"),
    ("collations", 'CREATE COLLATION crm.other FROM "C"'),
    ("conversions", "DROP CONVERSION crm.conv"),
    ("text_search", "ALTER TEXT SEARCH CONFIGURATION crm.conf DROP MAPPING FOR asciiword"),
    ("text_search", "ALTER TEXT SEARCH DICTIONARY crm.dict (accept = false)"),
    ("triggers", "ALTER TABLE crm.accounts ENABLE TRIGGER t1"),
    ("triggers", "DROP TRIGGER te ON crm.events"),
    ("event_triggers", "ALTER EVENT TRIGGER et DISABLE"),
    ("rules", "ALTER TABLE crm.cache DISABLE RULE r1"),
    ("policies", "ALTER POLICY p1 ON crm.accounts USING (true)"),
    ("policies", "ALTER POLICY p1 ON crm.accounts TO reader"),
    ("foreign_data", "ALTER SERVER srv OPTIONS (ADD port '1')"),
    ("foreign_data", "DROP USER MAPPING FOR app SERVER srv"),
    ("publications", "ALTER PUBLICATION pub SET (publish = 'insert, delete')"),
    ("publications", "ALTER PUBLICATION pub DROP TABLE crm.accounts"),
    ("subscriptions", "ALTER SUBSCRIPTION sub SET PUBLICATION p3 WITH (refresh = false)"),
    ("statistics", "DROP STATISTICS crm.st"),
    ("access_methods", "CREATE ACCESS METHOD heap3 TYPE TABLE HANDLER heap_tableam_handler"),
    ("extensions", "ALTER EXTENSION hstore SET SCHEMA crm"),
    ("languages", "CREATE LANGUAGE other HANDLER plpgsql_call_handler"),
    ("transforms", "CREATE TRANSFORM FOR int LANGUAGE plpgsql (FROM SQL WITH FUNCTION prsd_lextype(internal))"),
    ("large_objects", "SELECT lo_create(0)"),
    ("comments", "COMMENT ON COLUMN crm.accounts.name IS 'another'"),
    ("comments", "COMMENT ON SCHEMA public IS 'another'"),
    ("owners", "ALTER TABLE crm.cache OWNER TO app"),
    ("owners", "ALTER SCHEMA public OWNER TO app"),
    ("privileges", "GRANT SELECT (price) ON crm.accounts TO app"),
    ("privileges", "REVOKE GRANT OPTION FOR SELECT ON crm.base FROM reader CASCADE"),
    ("privileges", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_sleep(float8) TO PUBLIC"),
    ("privileges", "GRANT EXECUTE ON FUNCTION public.akeys(public.hstore) TO PUBLIC"),
    ("default_privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE app IN SCHEMA crm REVOKE SELECT ON TABLES FROM reader"),
]
#: Statements that older versions do not have.
SINCE = {"ALTER up DROP EXPRESSION": 13, "SET COMPRESSION": 14}
