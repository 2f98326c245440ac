"""The neural debugger: a program is stepped through as a model predicts it, and never run."""
