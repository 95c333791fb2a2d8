"""What is protected, where to, when, how long and how well: a YAML file and the frozen model made of it."""
