"""A run of an evaluation: its samples, records, numbers and report."""
