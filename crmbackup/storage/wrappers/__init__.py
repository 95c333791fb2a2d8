"""Behaviour added around any storage: retry, rate limit, read-only, claims. Each is a Storage itself."""
