"""Trajectories as training data: near-duplicates left out, the rest written as dialogs."""
