"""Where an agent works, and where its patch is judged: the local sandbox, or containers."""
