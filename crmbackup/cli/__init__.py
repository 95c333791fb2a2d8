"""The command line: one file per command; wiring.py builds what they need, render.py shows what happens."""
