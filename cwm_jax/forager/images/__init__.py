"""Repositories made executable: how a project is installed and how its tests are run."""
