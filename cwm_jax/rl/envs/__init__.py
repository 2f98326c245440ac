"""Environments by kind: their tasks, and one for each episode."""
