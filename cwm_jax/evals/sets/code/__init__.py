"""What sets of code read from their files, and how they judge."""
