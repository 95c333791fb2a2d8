"""Telling of runs: messages, pings, metrics, and what was told already. Knows nothing of policies and repositories."""
