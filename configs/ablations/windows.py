"""How many layers must see everything? Four patterns of windows, on traces longer than a window.

Command:   python -m cwm_jax ablate --config configs/ablations/windows.py --parallel 4
Hardware:  CPU, a core for each run at once, 1 GiB of memory each; bubblewrap for the sandbox
Time:      20 runs (--seeds 0 1 2 3 4), 5 to 11 minutes each on a core with other work beside
Result:    held-out loss of sixteen, seventeen, all_global, all_local: 0.352, 0.316, 0.280, 0.457;
           all_local is +0.105 (0.038 to 0.173 over seeds), the others' intervals hold 0, and
           adjusted for twelve comparisons nothing is shown: docs/ablations.md
Values:    configs/quickstart.py, which says what is measured; patterns: see below; else assumed

The report's model has 3 local layers after each global one: 16 of its 64 layers are global; Meta's
code makes the last one global, too, which is the 17th (configs/cwm_32b_last_global.py). Here 8
layers stand for them:

    sixteen                layers 0 and 4 are global: as 16 of 64
    seventeen              the last one, too: as 17 of 64
    all_global, all_local  the ends

A window has 64 tokens, and a trace is mostly longer: a frame near its end copies a line of source
that no window reaches. Eight local layers reach 8 x 63 tokens back, by way of each other.
"""

import dataclasses

from configs import quickstart
from configs.ablations import traces
from cwm_jax.config import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    BatchConfig,
    ModelConfig,
    RunConfig,
    TraceEvaluationConfig,
    layer_types_3_to_1,
)
from cwm_jax.sweeps.ablation import (
    Ablation,
    heldout_loss,
    predicted_frames,
    predicted_programs,
)

LAYERS, WINDOW, T = 8, 64, 512
BATCH_TOKENS = 2 * T
STEPS = 1000


def get_ablation() -> Ablation:
    patterns = {
        "seventeen": layer_types_3_to_1(LAYERS, last_global=True),
        "all_global": (FULL_ATTENTION,) * LAYERS,
        "all_local": (SLIDING_ATTENTION,) * LAYERS,
    }
    return Ablation(
        name="windows",
        question="Which layers must see the whole context? 16 or 17 of 64, all or none.",
        base=base(),
        arms={"sixteen": {}}
        | {name: {"model.layer_types": kinds} for name, kinds in patterns.items()},
        baseline="sixteen",
        measures=(
            heldout_loss(),
            predicted_frames("exact", name="frames exact, after the true ones"),
            predicted_frames("action", name="source lines right, after the true ones"),
            predicted_programs("output_full_trace"),
        ),
    )


def base() -> RunConfig:
    config = quickstart.get_config()
    return dataclasses.replace(
        config,
        model=model(),
        data=dataclasses.replace(config.data, sources=(traces.TRACES,)),
        batch=BatchConfig(
            max_target_length=T, per_device_batch_size=2, global_batch_tokens=BATCH_TOKENS
        ),
        optimizer=dataclasses.replace(config.optimizer, train_tokens=STEPS * BATCH_TOKENS),
        logging=dataclasses.replace(config.logging, eval_period=STEPS, export=None),
        trace_evaluation=TraceEvaluationConfig(
            corpus=traces.CORPUS,
            episodes=200,
            max_length=T,
            modes=("teacher_forced", "free_running"),
        ),
    )


def model() -> ModelConfig:
    return dataclasses.replace(
        quickstart.MODEL,
        num_hidden_layers=LAYERS,
        layer_types=layer_types_3_to_1(LAYERS),
        sliding_window=WINDOW,
    )
