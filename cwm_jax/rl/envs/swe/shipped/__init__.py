"""Tasks that ship with the project."""
