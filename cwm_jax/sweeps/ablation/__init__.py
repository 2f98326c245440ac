"""Ablations: a grid of changed runs and seeds, trained side by side, compared in pairs.

``configs/ablations/*.py`` each return one from ``get_ablation()``; ``python -m cwm_jax ablate``
runs it, and what it does is made of the functions here.
"""

from cwm_jax.sweeps.ablation.comparison import (
    Comparison,
    Interval,
    bootstrap_interval,
    compare,
    holm,
    paired_t,
)
from cwm_jax.sweeps.ablation.grid import Ablation, Run, expand, load_ablation
from cwm_jax.sweeps.ablation.measures import (
    Measure,
    Reading,
    heldout_loss,
    predicted_frames,
    predicted_programs,
    solve_rate,
)

__all__ = [
    "Ablation",
    "Comparison",
    "Interval",
    "Measure",
    "Reading",
    "Run",
    "bootstrap_interval",
    "compare",
    "expand",
    "heldout_loss",
    "holm",
    "load_ablation",
    "paired_t",
    "predicted_frames",
    "predicted_programs",
    "solve_rate",
]
