"""Evaluation sets: loaders of official files, their prompts and graders."""
