"""The use cases. They join engines and repository, and emit events; they never print."""
