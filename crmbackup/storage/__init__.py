"""Objects by key: a local directory, S3, and wrappers (retry, throttle, claim, read-only) of the same interface."""
