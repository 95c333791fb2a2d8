"""Run history in a database: a cache of what the repository knows, kept for people and for monitoring."""
