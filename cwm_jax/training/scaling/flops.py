"""FLOPs of a token, counted for two purposes.

``law_flops_per_token`` is the M of a scaling law, in the count that the law was fitted with;
``flops_per_token`` is all that CWM's windows leave to be computed, the numerator of MFU.
"""

from __future__ import annotations

from typing import Literal, get_args

from cwm_jax.config import ModelConfig

FlopsCount = Literal["report", "windows"]
FLOPS_COUNTS: tuple[FlopsCount, ...] = get_args(FlopsCount)


def num_embedding_parameters(model: ModelConfig) -> int:
    """Input embedding and output head together."""
    return 2 * model.vocab_size * model.hidden_size


def num_non_embedding_parameters(model: ModelConfig) -> int:
    """All weights but the embedding and the head, in closed form."""
    width, head = model.hidden_size, model.head_dim
    attention = 2 * width * head * (model.num_attention_heads + model.num_key_value_heads)
    layer = attention + 3 * width * model.intermediate_size + 2 * width
    return model.num_hidden_layers * layer + width


def report_flops_per_token(model: ModelConfig, context_tokens: int) -> float:
    """M = 6 N + 6 d L S: forward and backward, causal attention over S tokens in every layer.

    Source: report, section 4.3; N without embeddings. Whether windows were counted is not
        published.
    """
    attention = 6 * model.hidden_size * model.num_hidden_layers * context_tokens
    return 6 * num_non_embedding_parameters(model) + attention


def law_flops_per_token(
    model: ModelConfig, context_tokens: int, *, count: FlopsCount = "report"
) -> float:
    """M of a law, whose compute is C = M x tokens.

    Args:
        model: the architecture.
        context_tokens: of a row.
        count: ``report`` lets every layer attend to the whole context, as the report does;
            ``windows`` counts 6 N and the keys that the windows leave in a row of one document.

    Raises:
        ValueError: there is no such count.
    """
    if count not in FLOPS_COUNTS:
        raise ValueError(f"FLOPs count {count!r}: expected one of {', '.join(FLOPS_COUNTS)}")
    if count == "report":
        return report_flops_per_token(model, context_tokens)
    attention = 12.0 * model.num_attention_heads * model.head_dim
    keys = sum(mean_visible_keys(context_tokens, model.window(k)) for k in model.layer_types)
    return 6 * num_non_embedding_parameters(model) + attention * keys


def flops_per_token(
    model: ModelConfig, context_tokens: int, *, attention_cap: int | None = None
) -> float:
    """Forward and backward of a row of one document; windows count, recomputation does not.

    Matrix products with weights cost 6 FLOP per weight (norms and the embedding's look-up none, the
    head included); attention costs 12 N H per visible key. With ``attention_cap`` a query of a
    global layer sees that many keys at most.
    """
    norms = model.hidden_size * (2 * model.num_hidden_layers + 1)
    head = model.vocab_size * model.hidden_size
    weights = num_non_embedding_parameters(model) - norms + head
    heads_width = model.num_attention_heads * model.head_dim
    windows = [model.window(kind) or attention_cap for kind in model.layer_types]
    keys = sum(mean_visible_keys(context_tokens, window) for window in windows)
    return 6.0 * weights + 12.0 * heads_width * keys


def mean_visible_keys(context_tokens: int, window: int | None) -> float:
    """Keys that a query sees on average over a row, itself included."""
    T = context_tokens
    W = T if window is None else min(window, T)
    return (W * (W + 1) / 2 + (T - W) * W) / T
