"""A repository, an issue, a shell: the agent submits a patch, and hidden tests judge it."""
