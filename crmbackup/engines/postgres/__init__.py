"""PostgreSQL: rows by COPY within one exported snapshot, slices by TID ranges, definitions by pg_dump."""
