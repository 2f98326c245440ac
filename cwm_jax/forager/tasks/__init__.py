"""Tasks made of repositories that can be executed: faults that are put in, and those of history."""
