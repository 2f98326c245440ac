"""Repositories that can be executed, tasks made of them, and what agents do there."""
