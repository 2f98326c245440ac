"""Documents -> tokenised shards -> packed rows. Knows no JAX; only ``loader`` needs grain."""
