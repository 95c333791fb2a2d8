"""SQLite: a consistent image of the file's pages, and an independent reading of its tables by SQL."""
