"""Evaluation material made by rule, from a seed; what is right is known while it is made."""
