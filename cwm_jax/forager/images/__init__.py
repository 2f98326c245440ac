"""Executable repositories: environments in which a project's tests run, kept by their content."""
