"""The queries behind `describe`: for each kind of object one SELECT whose column `name` is unique within the kind.

They run with an empty search_path, so that the server qualifies every name that it prints. Nothing in them is numbered
by the server (oids, filenodes, column numbers with gaps): a restored database has other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Since = Callable[[int, str, str], str]

#: The first object id that is not PostgreSQL's own.
FIRST = 16384
_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_OURS_OF_TYPES = "k.nspname !~ '^pg_' AND k.nspname <> 'information_schema'"
_OPTIONS = """(SELECT coalesce(array_agg(o ORDER BY o COLLATE "C"), '{{}}') FROM unnest({0}) o)"""
#: Of a column. Newer minor releases (15.20) note a version of each column among its options: the server writes it, SET
#: and RESET leave it as it is, other releases refuse the name, and pg_dump does not carry it.
_COLUMN_OPTIONS = """(SELECT coalesce(array_agg(o ORDER BY o COLLATE "C"), '{}') FROM unnest(a.attoptions) o
                             WHERE split_part(o, '=', 1) <> 'pg_attver')"""
#: Options of foreign data can hold secrets: their names only.
_OPTION_NAMES = """(SELECT array_agg(split_part(o, '=', 1) ORDER BY o COLLATE "C") FROM unnest({0}) o)"""


#: Materialised views that are not filled, and all that reads them: what is filled of those can only be lost.
UNFILLED = """
WITH RECURSIVE unfilled(oid) AS (
    SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'm' AND NOT relispopulated
     UNION
    SELECT r.ev_class FROM unfilled u
      JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = u.oid
       AND d.classid = 'pg_catalog.pg_rewrite'::regclass
      JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN')
"""


def copied(since: Since) -> str:
    """What a table has from its parent and pg_dump leaves to the server, which makes it anew without a comment on it."""
    clone = since(13, "tgparentid <> 0", "tgisinternal")
    return f"""
        SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass::oid, oid FROM pg_catalog.pg_constraint
         WHERE conrelid <> 0 AND contype IN ('c', 'f', 'n') AND (NOT conislocal OR (contype = 'f' AND conparentid <> 0))
        UNION ALL
        SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass::oid, oid FROM pg_catalog.pg_trigger WHERE {clone}"""


#: What a database is described without: nothing. `going_without` puts objects in its place.
GONE = "(SELECT 0::oid, 0::oid WHERE false)"
#: What belongs to an extension, or is gone.
MEMBERS = (
    "(SELECT classid, objid FROM pg_depend WHERE deptype = 'e'"
    f" UNION ALL SELECT classid, objid FROM {GONE} g(classid, objid))"
)


def _own(catalog: str, oid: str) -> str:
    """Not a member of an extension, which makes it by itself."""
    return (
        f"NOT EXISTS (SELECT 1 FROM {MEMBERS} own WHERE own.classid = 'pg_catalog.{catalog}'::regclass"
        f" AND own.objid = {oid})"
    )


def _users(catalog: str, alias: str) -> str:
    """Of objects without a schema."""
    return f"{alias}.oid >= {FIRST} AND {_own(catalog, f'{alias}.oid')}"


def _in_schema(catalog: str, alias: str, column: str) -> str:
    """FROM and WHERE of objects that lie in schemas; the schema is `n`."""
    return (
        f"FROM {catalog} {alias} JOIN pg_namespace n ON n.oid = {alias}.{column}"
        f" WHERE {_OURS} AND {_own(catalog, f'{alias}.oid')}"
    )


def _on_table(catalog: str, alias: str, column: str) -> str:
    """FROM and WHERE of what belongs to a relation: `c`, in the schema `n`."""
    return (
        f"FROM {catalog} {alias} JOIN pg_class c ON c.oid = {alias}.{column} JOIN pg_namespace n ON n.oid ="
        f" c.relnamespace WHERE {_OURS} AND {_own('pg_class', 'c.oid')}"
    )


_TABLE = "format('%I.%I', n.nspname, c.relname)"
#: A table whose columns of long values were dropped still has its TOAST table, and does not get it back.
_TOAST = f"coalesce((SELECT {_OPTIONS.format('t.reloptions')} FROM pg_class t WHERE t.oid = c.reltoastrelid), '{{}}')"
_METHOD = "(SELECT amname FROM pg_am WHERE oid = c.relam)"
_COLLATION = (
    "(SELECT format('%I.%I', k.nspname, l.collname) FROM pg_collation l"
    " JOIN pg_namespace k ON k.oid = l.collnamespace WHERE l.oid = {0})"
)


def _relations(since: Since) -> dict[str, str]:
    compression = since(14, "a.attcompression", "''")
    return {
        "schemas": f"SELECT quote_ident(n.nspname) AS name FROM pg_namespace n"
        f" WHERE {_OURS} AND {_own('pg_namespace', 'n.oid')}",
        # Of inheritance (not partitions) the parents' columns come first in a restored table, wherever they were.
        "columns": f"""
            SELECT {_TABLE} || '.' || quote_ident(a.attname) AS name,
                   CASE WHEN c.relispartition OR i.inhrelid IS NULL
                        THEN row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) END AS position,
                   CASE WHEN NOT c.relispartition THEN a.attislocal END AS local,
                   format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
                   pg_get_expr(d.adbin, d.adrelid) AS value, a.attidentity AS identity, a.attgenerated AS generated,
                   CASE WHEN a.attcollation <> t.typcollation THEN {_COLLATION.format("a.attcollation")} END AS collation,
                   nullif(a.attstorage, t.typstorage) AS storage, {compression} AS compression,
                   nullif(a.attstattarget, -1) AS statistics, CASE WHEN a.attoptions IS NOT NULL THEN {_COLUMN_OPTIONS} ELSE '{{}}' END AS options,
                   CASE WHEN a.attfdwoptions IS NOT NULL THEN {_OPTIONS.format("a.attfdwoptions")} END
                        AS foreign_options
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              JOIN pg_type t ON t.oid = a.atttypid
              LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
              LEFT JOIN (SELECT DISTINCT inhrelid FROM pg_inherits) i ON i.inhrelid = c.oid
             WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND {_OURS} AND {_own("pg_class", "c.oid")}""",
        "tables": f"""
            SELECT {_TABLE} AS name, c.relkind AS kind, c.relpersistence AS persistence, {_METHOD} AS method,
                   pg_get_partkeydef(c.oid) AS partitioned, pg_get_expr(c.relpartbound, c.oid) AS bound,
                   (SELECT array_agg(format('%I.%I', m.nspname, p.relname) ORDER BY i.inhseqno)
                      FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
                      JOIN pg_namespace m ON m.oid = p.relnamespace WHERE i.inhrelid = c.oid) AS parents,
                   {_OPTIONS.format("c.reloptions")} AS options, {_TOAST} AS toast_options,
                   c.relreplident AS identity, c.relrowsecurity AS row_security, c.relforcerowsecurity AS forced,
                   CASE WHEN c.reloftype <> 0 THEN c.reloftype::regtype END AS of_type,
                   (SELECT quote_ident(s.srvname) || ' ' || {_OPTIONS.format("f.ftoptions")}::text
                      FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver
                     WHERE f.ftrelid = c.oid) AS server
              {_in_schema("pg_class", "c", "relnamespace")} AND c.relkind IN ('r', 'p', 'f')""",
        "views": f"""
            SELECT {_TABLE} AS name, pg_get_viewdef(c.oid) AS definition, {_OPTIONS.format("c.reloptions")} AS options
              {_in_schema("pg_class", "c", "relnamespace")} AND c.relkind = 'v'""",
        "materialized_views": f"""
            SELECT {_TABLE} AS name, pg_get_viewdef(c.oid) AS definition, {_OPTIONS.format("c.reloptions")} AS options,
                   {_TOAST} AS toast_options, {_METHOD} AS method, c.relispopulated AND NOT EXISTS ({UNFILLED}
                   SELECT 1 FROM unfilled u WHERE u.oid = c.oid) AS populated,
                   c.relreplident AS identity
              {_in_schema("pg_class", "c", "relnamespace")} AND c.relkind = 'm'""",
        "sequences": f"""
            SELECT {_TABLE} AS name, format_type(s.seqtypid, NULL) AS type, s.seqstart, s.seqincrement, s.seqmax,
                   s.seqmin, s.seqcache, s.seqcycle, c.relpersistence AS persistence,
                   (SELECT d.deptype::text || ' ' || format('%I.%I.%I', m.nspname, o.relname, a.attname) FROM pg_depend d
                      JOIN pg_class o ON o.oid = d.refobjid JOIN pg_namespace m ON m.oid = o.relnamespace
                      JOIN pg_attribute a ON a.attrelid = o.oid AND a.attnum = d.refobjsubid
                     WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                       AND d.refclassid = 'pg_class'::regclass) AS owned_by
              FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE {_OURS} AND {_own("pg_class", "c.oid")}""",
        # pg_dump leaves out indexes whose CREATE INDEX CONCURRENTLY failed, which nobody can use.
        "indexes": f"""
            SELECT format('%I.%I', n.nspname, x.relname) AS name, pg_get_indexdef(i.indexrelid) AS definition,
                   i.indisvalid AS valid, i.indisclustered AS clustered, i.indisreplident AS identity,
                   (SELECT format('%I.%I', m.nspname, p.relname) FROM pg_inherits h JOIN pg_class p
                      ON p.oid = h.inhparent JOIN pg_namespace m ON m.oid = p.relnamespace
                     WHERE h.inhrelid = i.indexrelid) AS parent,
                   CASE WHEN i.indexprs IS NOT NULL THEN
                        (SELECT array_agg(a.attnum || ' ' || a.attstattarget ORDER BY a.attnum) FROM pg_attribute a
                          WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0) END AS statistics
              FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
              JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE {_OURS} AND {_own("pg_class", "c.oid")} AND i.indisready
               AND (i.indisvalid OR c.relkind = 'p') AND {_own("pg_class", "x.oid")}""",
        # A partition's copy of a foreign key follows from its parent's; its name is the server's choice.
        # The name of a domain's NOT NULL is not carried by pg_dump of 17.
        "constraints": f"""
            SELECT CASE WHEN o.conrelid <> 0 THEN {_TABLE} ELSE 'domain ' || format('%I.%I', k.nspname, t.typname) END
                   || ' ' || quote_ident(o.conname) AS name, o.contype AS type, pg_get_constraintdef(o.oid) AS definition,
                   o.convalidated AS validated, CASE WHEN NOT c.relispartition THEN o.conislocal END AS local
              FROM pg_constraint o LEFT JOIN pg_class c ON c.oid = o.conrelid
              LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
              LEFT JOIN pg_type t ON t.oid = o.contypid LEFT JOIN pg_namespace k ON k.oid = t.typnamespace
             WHERE o.contype <> 't' AND (o.conparentid = 0 OR o.contype <> 'f') AND {_own("pg_constraint", "o.oid")}
               AND NOT (o.contypid <> 0 AND o.contype = 'n' AND {since(18, "false", "true")})
               AND CASE WHEN o.conrelid <> 0 THEN {_OURS} AND {_own("pg_class", "c.oid")}
                        ELSE {_OURS_OF_TYPES} AND {_own("pg_type", "t.oid")} END""",
        "triggers": f"""
            SELECT {_TABLE} || ' ' || quote_ident(t.tgname) AS name, pg_get_triggerdef(t.oid) AS definition,
                   t.tgenabled AS enabled {_on_table("pg_trigger", "t", "tgrelid")} AND NOT t.tgisinternal
               AND {_own("pg_trigger", "t.oid")}""",
        "rules": f"""
            SELECT {_TABLE} || ' ' || quote_ident(r.rulename) AS name, pg_get_ruledef(r.oid) AS definition,
                   r.ev_enabled AS enabled {_on_table("pg_rewrite", "r", "ev_class")} AND r.rulename <> '_RETURN'
               AND {_own("pg_rewrite", "r.oid")}""",
        # Those on an extension's table too: pg_dump carries them.
        "policies": f"""
            SELECT {_TABLE} || ' ' || quote_ident(p.polname) AS name, p.polcmd AS command, p.polpermissive AS permissive,
                   (SELECT array_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END
                           ORDER BY pg_get_userbyid(r) COLLATE "C") FROM unnest(p.polroles) r) AS roles,
                   pg_get_expr(p.polqual, p.polrelid) AS reading, pg_get_expr(p.polwithcheck, p.polrelid) AS writing
              FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE {_OURS} AND {_own("pg_policy", "p.oid")}""",
        "statistics": f"""
            SELECT format('%I.%I', n.nspname, s.stxname) AS name, pg_get_statisticsobjdef(s.oid) AS definition,
                   {since(13, "nullif(s.stxstattarget, -1)", "NULL")} AS target
              {_in_schema("pg_statistic_ext", "s", "stxnamespace")}""",
    }


def _types(since: Since) -> dict[str, str]:
    multirange = since(14, "format_type(r.rngmultitypid, NULL)", "NULL")
    locale = since(17, "c.colllocale", since(15, "c.colliculocale", "NULL"))
    return {
        "types": f"""
            SELECT format('%I.%I', n.nspname, t.typname) AS name, t.typtype AS kind,
                   CASE WHEN t.typtype IN ('b', 'p') THEN json_build_array(t.typlen, t.typbyval, t.typcategory,
                        t.typispreferred, t.typdelim, t.typelem::regtype, t.typinput, t.typoutput, t.typreceive,
                        t.typsend, t.typmodin, t.typmodout, t.typanalyze, t.typalign, t.typstorage, t.typcollation <> 0,
                        {since(14, "t.typsubscript", "NULL")}, t.typisdefined) END AS base,
                   CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END AS domain,
                   t.typnotnull AS not_null, t.typdefault AS value,
                   CASE WHEN t.typtype = 'd' THEN {_COLLATION.format("nullif(t.typcollation, u.typcollation)")} END
                        AS collation,
                   (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)
                        AS labels,
                   (SELECT array_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod)
                           || coalesce(' ' || {_COLLATION.format("a.attcollation")}, '') ORDER BY a.attnum)
                      FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
                        AS attributes,
                   (SELECT json_build_array(format_type(r.rngsubtype, NULL), {_COLLATION.format("r.rngcollation")},
                           format('%I.%I', m.nspname, o.opcname), r.rngcanonical, r.rngsubdiff, {multirange})
                      FROM pg_range r JOIN pg_opclass o ON o.oid = r.rngsubopc
                      JOIN pg_namespace m ON m.oid = o.opcnamespace WHERE r.rngtypid = t.oid) AS range
              FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
              LEFT JOIN pg_class c ON c.oid = t.typrelid LEFT JOIN pg_type u ON u.oid = t.typbasetype
             WHERE {_OURS} AND {_own("pg_type", "t.oid")} AND t.typtype <> 'm' AND (t.typrelid = 0 OR c.relkind = 'c')
               AND NOT EXISTS (SELECT 1 FROM pg_type a WHERE a.typarray = t.oid)""",
        "collations": f"""
            SELECT format('%I.%I', n.nspname, c.collname) || ' ' || c.collencoding AS name, c.collprovider AS provider,
                   c.collcollate AS collate, c.collctype AS ctype, c.collisdeterministic AS deterministic,
                   {locale} AS locale, {since(16, "c.collicurules", "NULL")} AS rules
              {_in_schema("pg_collation", "c", "collnamespace")}""",
        "conversions": f"""
            SELECT format('%I.%I', n.nspname, c.conname) AS name, pg_encoding_to_char(c.conforencoding) AS source,
                   pg_encoding_to_char(c.contoencoding) AS target, c.conproc AS function, c.condefault AS is_default
              {_in_schema("pg_conversion", "c", "connamespace")}""",
        "casts": f"""
            SELECT format('%s AS %s', c.castsource::regtype, c.casttarget::regtype) AS name,
                   nullif(c.castfunc, 0)::regprocedure AS function, c.castcontext AS context, c.castmethod AS method
              FROM pg_cast c WHERE {_users("pg_cast", "c")}""",
    }


def _code() -> dict[str, str]:
    signature = "format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))"
    member = "format('%s %s %s', {0}, {1}::regtype, {2}::regtype)"
    members = f"""
        SELECT array_agg(m ORDER BY m COLLATE "C") FROM (
            SELECT format('operator %s %s %s ', {member.format("o.amopstrategy", "o.amoplefttype", "o.amoprighttype")},
                          o.amopopr::regoperator, o.amoppurpose) || coalesce((SELECT format('%I.%I', k.nspname, s.opfname)
                     FROM pg_opfamily s JOIN pg_namespace k ON k.oid = s.opfnamespace WHERE s.oid = o.amopsortfamily), '')
              FROM pg_amop o WHERE o.amopfamily = f.oid
            UNION ALL
            SELECT format('function %s %s', {member.format("q.amprocnum", "q.amproclefttype", "q.amprocrighttype")},
                          q.amproc::regprocedure) FROM pg_amproc q WHERE q.amprocfamily = f.oid) AS all_of_it(m)"""
    return {
        "functions": f"""
            SELECT {signature} AS name, p.prokind AS kind, pg_get_functiondef(p.oid) AS definition
              {_in_schema("pg_proc", "p", "pronamespace")} AND p.prokind <> 'a'""",
        "aggregates": f"""
            SELECT {signature} AS name, format_type(p.prorettype, NULL) AS result, p.proparallel AS parallel,
                   pg_get_function_arguments(p.oid) AS arguments, g.aggkind, g.aggnumdirectargs, g.aggtransfn,
                   g.aggfinalfn, g.aggcombinefn, g.aggserialfn, g.aggdeserialfn, g.aggmtransfn, g.aggminvtransfn,
                   g.aggmfinalfn, g.aggfinalextra, g.aggmfinalextra, g.aggfinalmodify, g.aggmfinalmodify,
                   nullif(g.aggsortop, 0)::regoperator AS sort, format_type(g.aggtranstype, NULL) AS state,
                   g.aggtransspace, format_type(nullif(g.aggmtranstype, 0), NULL) AS moving_state, g.aggmtransspace,
                   g.agginitval, g.aggminitval
              FROM pg_aggregate g JOIN pg_proc p ON p.oid = g.aggfnoid JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE {_OURS} AND {_own("pg_proc", "p.oid")}""",
        "operators": f"""
            SELECT o.oid::regoperator::text AS name, o.oprcode AS function, format_type(o.oprresult, NULL) AS result,
                   nullif(o.oprcom, 0)::regoperator AS commutator, nullif(o.oprnegate, 0)::regoperator AS negator,
                   o.oprrest AS restrict, o.oprjoin AS join, o.oprcanhash AS hashes, o.oprcanmerge AS merges
              {_in_schema("pg_operator", "o", "oprnamespace")} AND o.oprcode <> 0""",
        "operator_classes": f"""
            SELECT format('%I.%I', n.nspname, o.opcname) || ' USING ' || a.amname AS name, o.opcdefault AS is_default,
                   format_type(o.opcintype, NULL) AS type, format_type(nullif(o.opckeytype, 0), NULL) AS key,
                   format('%I.%I', m.nspname, f.opfname) AS family
              FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace JOIN pg_am a ON a.oid = o.opcmethod
              JOIN pg_opfamily f ON f.oid = o.opcfamily JOIN pg_namespace m ON m.oid = f.opfnamespace
             WHERE {_OURS} AND {_own("pg_opclass", "o.oid")}""",
        "operator_families": f"""
            SELECT format('%I.%I', n.nspname, f.opfname) || ' USING ' || a.amname AS name, ({members}) AS members
              FROM pg_opfamily f JOIN pg_namespace n ON n.oid = f.opfnamespace JOIN pg_am a ON a.oid = f.opfmethod
             WHERE {_OURS} AND {_own("pg_opfamily", "f.oid")}""",
        "text_search": f"""
            SELECT 'parser ' || format('%I.%I', n.nspname, p.prsname) AS name,
                   json_build_array(p.prsstart, p.prstoken, p.prsend, p.prsheadline, p.prslextype) AS definition
              {_in_schema("pg_ts_parser", "p", "prsnamespace")}
            UNION ALL
            SELECT 'template ' || format('%I.%I', n.nspname, t.tmplname), json_build_array(t.tmplinit, t.tmpllexize)
              {_in_schema("pg_ts_template", "t", "tmplnamespace")}
            UNION ALL
            SELECT 'dictionary ' || format('%I.%I', n.nspname, d.dictname), json_build_array(d.dictinitoption,
                   (SELECT format('%I.%I', m.nspname, t.tmplname) FROM pg_ts_template t JOIN pg_namespace m
                        ON m.oid = t.tmplnamespace WHERE t.oid = d.dicttemplate))
              {_in_schema("pg_ts_dict", "d", "dictnamespace")}
            UNION ALL
            SELECT 'configuration ' || format('%I.%I', n.nspname, g.cfgname), json_build_array(
                   (SELECT format('%I.%I', m.nspname, p.prsname) FROM pg_ts_parser p JOIN pg_namespace m
                        ON m.oid = p.prsnamespace WHERE p.oid = g.cfgparser),
                   (SELECT array_agg(format('%s %s', w.maptokentype, w.mapdict::regdictionary)
                           ORDER BY w.maptokentype, w.mapseqno) FROM pg_ts_config_map w WHERE w.mapcfg = g.oid))
              {_in_schema("pg_ts_config", "g", "cfgnamespace")}""",
        "languages": f"""
            SELECT quote_ident(l.lanname) AS name, l.lanpltrusted AS trusted, l.lanplcallfoid::regprocedure AS handler,
                   l.laninline::regprocedure AS inline, l.lanvalidator::regprocedure AS validator
              FROM pg_language l WHERE {_users("pg_language", "l")}""",
        "access_methods": f"""
            SELECT quote_ident(a.amname) AS name, a.amhandler AS handler, a.amtype AS type
              FROM pg_am a WHERE {_users("pg_am", "a")}""",
        "transforms": f"""
            SELECT format('%s %I', t.trftype::regtype, l.lanname) AS name, t.trffromsql::regprocedure AS reading,
                   t.trftosql::regprocedure AS writing
              FROM pg_transform t JOIN pg_language l ON l.oid = t.trflang WHERE {_users("pg_transform", "t")}""",
    }


def _database(since: Since) -> dict[str, str]:
    published = since(
        15,
        """coalesce(' (' || (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) FROM pg_attribute a
            WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)) || ')', '')
            || coalesce(' ' || pg_get_expr(r.prqual, r.prrelid), '')""",
        "''",
    )
    schemas = since(
        15,
        """(SELECT array_agg(n.nspname ORDER BY n.nspname COLLATE "C") FROM pg_publication_namespace q
            JOIN pg_namespace n ON n.oid = q.pnnspid WHERE q.pnpubid = p.oid)""",
        "NULL",
    )
    return {
        "extensions": """
            SELECT quote_ident(x.extname) AS name, x.extversion AS version, n.nspname AS schema
              FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace""",
        "event_triggers": f"""
            SELECT quote_ident(e.evtname) AS name, e.evtevent AS event, e.evttags AS tags,
                   e.evtfoid::regprocedure AS function, e.evtenabled AS enabled
              FROM pg_event_trigger e WHERE {_users("pg_event_trigger", "e")}""",
        "foreign_data": f"""
            SELECT 'wrapper ' || quote_ident(w.fdwname) AS name, json_build_array(nullif(w.fdwhandler, 0)::regprocedure,
                   nullif(w.fdwvalidator, 0)::regprocedure, {_OPTION_NAMES.format("w.fdwoptions")}) AS definition
              FROM pg_foreign_data_wrapper w WHERE {_users("pg_foreign_data_wrapper", "w")}
            UNION ALL
            SELECT 'server ' || quote_ident(s.srvname), json_build_array(w.fdwname, s.srvtype, s.srvversion,
                   {_OPTION_NAMES.format("s.srvoptions")})
              FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
             WHERE {_users("pg_foreign_server", "s")}
            UNION ALL
            -- Not everyone may see the options of a user mapping, not even their names.
            SELECT format('user mapping %I %I', u.usename, u.srvname), 'null' FROM pg_user_mappings u""",
        "publications": f"""
            SELECT quote_ident(p.pubname) AS name, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete,
                   p.pubtruncate, {since(13, "p.pubviaroot", "NULL")} AS through_root,
                   {since(18, "p.pubgencols", "NULL")} AS generated, {schemas} AS schemas,
                   (SELECT array_agg(r.prrelid::regclass::text || {published}
                           ORDER BY r.prrelid::regclass::text COLLATE "C")
                      FROM pg_publication_rel r WHERE r.prpubid = p.oid) AS tables
              FROM pg_publication p WHERE {_users("pg_publication", "p")}""",
        # pg_dump carries them for a superuser only.
        "subscriptions": """
            SELECT quote_ident(s.subname) AS name, (SELECT array_agg(p ORDER BY p COLLATE "C")
                   FROM unnest(s.subpublications) p) AS publications
              FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)""",
        "large_objects": "SELECT l.oid::text AS name FROM pg_largeobject_metadata l",
        "comments": f"""
            SELECT i.type || ' ' || i.identity AS name, d.description AS comment
              FROM pg_description d, LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i
             WHERE (d.objoid >= {FIRST} OR (d.objoid = 2200 AND d.classoid = 'pg_namespace'::regclass))
               AND coalesce(i.schema !~ '^pg_' AND i.schema <> 'information_schema', true)
               AND (d.classoid, d.objoid) NOT IN ({copied(since)})
               AND NOT EXISTS (SELECT 1 FROM {MEMBERS} e WHERE e.classid = d.classoid AND e.objid = d.objoid)""",
        "security_labels": f"""
            SELECT i.type || ' ' || i.identity || ' ' || s.provider AS name, s.label
              FROM pg_seclabel s, LATERAL pg_identify_object(s.classoid, s.objoid, s.objsubid) i
             WHERE NOT EXISTS (SELECT 1 FROM {GONE} g(classid, objid) WHERE g.classid = s.classoid AND g.objid = s.objoid)""",
    }


def since_of(major: int) -> Since:
    """Chooses between two texts by the version of a server."""
    return lambda version, new, old: new if major >= version else old


def queries(major: int) -> dict[str, str]:
    """For each kind its SELECT, on servers of that major version."""
    since = since_of(major)
    return {**_relations(since), **_types(since), **_code(), **_database(since)}


def going_without(sql: str, gone: Iterable[tuple[int, int]]) -> str:
    """The same query without these objects, by class and oid, and without what is said of them."""
    rows = ", ".join(f"({class_id}::oid, {oid}::oid)" for class_id, oid in gone)
    return sql.replace(GONE, f"(VALUES {rows})") if rows else sql
