"""Episodes: which tasks, on which engine, in which thread or machine."""
