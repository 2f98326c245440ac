"""Many small runs: scaling laws and ablations."""
