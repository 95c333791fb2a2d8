"""Drill evidence: the report as a value, as a signed JSON document and as a page."""
