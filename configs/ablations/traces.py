"""Does training on execution traces help to predict what programs return? At one token budget.

Command:   python -m cwm_jax ablate --config configs/ablations/traces.py --parallel 4
Hardware:  CPU, a core for each run at once, 1 GiB of memory each; bubblewrap for the sandbox
Time:      22 minutes with 2 cores, after some minutes of tracing 40,000 programs
Result:    outputs right: 9.3 % directly after outputs alone, 6.1 by a trace after traces alone
           (difference -9.3 to 2.9, not shown), 1.9 by a trace after half of each (-10.1 to -4.8),
           10.7 directly after half of each (0.5 to 2.2): docs/ablations.md. With twice as many
           steps traces won, 11.6 to 9.0: docs/LOG.md, 2026-11-25
Values:    configs/quickstart.py, which says what is measured; else assumed

Every arm trains one model on generated programs, for the same tokens with one tokenizer and one
schedule, and predicts the outputs of the same held-out programs:

    outputs           programs and an assertion of what main() returns; the loss counts the answer
    outputs_language  the same text; the loss counts all of it, as in a code corpus
    traces            execution traces of the programs; the loss counts the frames
    both              half of the tokens each

Outputs are predicted directly, as the end of the assertion, and by way of a trace: all of it (full
trace) or its `return` right after its call (single step); one that does not end as it should is
wrong. A row has 256 tokens: a tenth of the traces are longer and trained on in parts, no assertion
is.
"""

import dataclasses
from collections.abc import Callable

from configs import quickstart
from cwm_jax.config import GeneratedTraces, RunConfig, SourceConfig, TraceEvaluationConfig
from cwm_jax.sweeps.ablation import Ablation, predicted_programs

CORPUS = "runs/traces/arithmetic"
STEPS = 2000
PROGRAMS = GeneratedTraces(
    programs=40_000,  # no arm sees a document more than about once in so many steps
    difficulties=(1,),
    kinds=("arithmetic",),
)
TRACES = SourceConfig(name="traces", kind="traces", path=CORPUS, generate=PROGRAMS)
OUTPUTS = SourceConfig(name="outputs", kind="trace_outputs", path=CORPUS, generate=PROGRAMS)
MODES = {"outputs": ("direct",), "traces": ("free_running", "single_step")}


def get_ablation() -> Ablation:
    return Ablation(
        name="traces",
        question="Does training on traces help to predict outputs, at one budget of tokens?",
        base=base(),
        arms={
            "outputs": on(OUTPUTS),
            "outputs_language": on(OUTPUTS, context_loss=True),
            "traces": on(TRACES),
            "both": on(TRACES, OUTPUTS),
        },
        baseline="outputs",
        tokenizer_of="both",
        measures=(
            predicted_programs(  # each arm as it was trained to: "both" was trained to do either
                "output_full_trace", "output_direct", name="output, by a trace if trained on them"
            ),
            predicted_programs("output_direct"),
            predicted_programs("output_full_trace"),
            predicted_programs("output_single_step"),
        ),
    )


def base() -> RunConfig:
    config = quickstart.get_config()
    tokens = STEPS * quickstart.BATCH_TOKENS
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, train_tokens=tokens),
        logging=dataclasses.replace(config.logging, eval_period=STEPS, export=None),
        trace_evaluation=TraceEvaluationConfig(corpus=CORPUS, episodes=300, max_length=512),
    )


def on(*sources: SourceConfig, context_loss: bool = False) -> Callable[[RunConfig], RunConfig]:
    """The arm of these sources, asked for outputs in the ways that they teach."""

    def change(config: RunConfig) -> RunConfig:
        modes = tuple(mode for source in sources for mode in MODES[source.name])
        assert config.trace_evaluation is not None
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, sources=sources, trace_context_loss=context_loss),
            trace_evaluation=dataclasses.replace(config.trace_evaluation, modes=modes),
        )

    return change
