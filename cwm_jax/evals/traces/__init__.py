"""Predicted traces against those of CPython."""
