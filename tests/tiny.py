"""The smallest run that has everything: used by tests that train."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    ExecutionConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
)
from cwm_jax.model.transformer import abstract_params

VOCAB_SIZE = 576


def tiny_model(**changes) -> ModelConfig:
    """Five layers: global and local twice in the group, one more in the tail."""
    num_layers = changes.get("num_hidden_layers", 5)
    kinds = ("full_attention", "sliding_attention") * num_layers
    values = dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=kinds[:num_layers],
        sliding_window=8,
        max_position_embeddings=256,
    )
    return ModelConfig(**{**values, **changes})


def sharp_params(config: ModelConfig, dtype: str = "float32", seed: int = 0):
    """Weights at which attention and norms matter; unlike ``init``'s, made without compiling."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if "scale" in name:
            return jnp.asarray(1 + 0.3 * values, dtype)
        gain = 2 if "q_proj" in name else 1
        return jnp.asarray(gain / config.hidden_size**0.5 * values, dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def tiny_run(folder: Path, *, rows: int = 2, accumulation: int = 1, **changes) -> RunConfig:
    """A run of 8 steps below ``folder``, on the files of ``folder/corpus``."""
    T = 32
    values = dict(
        run_name="tiny",
        model=tiny_model(),
        data=DataConfig(
            sources=(SourceConfig(name="texts", kind="folder", path=str(folder / "corpus")),),
            cache_directory=str(folder / "data"),
            heldout_fraction=0.2,
        ),
        tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE),
        batch=BatchConfig(
            max_target_length=T,
            per_device_batch_size=rows,
            gradient_accumulation_steps=accumulation,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, train_tokens=8 * rows * T * accumulation),
        execution=ExecutionConfig(loss_chunk_tokens=24, attention_block_tokens=16),
        mesh=MeshConfig(data=1, fsdp=1, tensor=1),
        checkpoint=CheckpointConfig(checkpoint_period=2, keep_last=2),
        logging=LoggingConfig(log_period=1, eval_period=4, eval_rows=3),
        base_output_directory=str(folder / "runs"),
    )
    return RunConfig(**{**values, **changes})


def write_corpus(folder: Path, num_files: int = 40) -> None:
    """Small Python files, enough for a vocabulary of ``VOCAB_SIZE``."""
    rng = np.random.default_rng(0)
    words = [
        f"{a}_{b}" for a in ("read", "write", "make", "count") for b in ("row", "node", "tree")
    ]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number in range(num_files):
        names = rng.choice(words, size=12)
        lines = [
            f"def {n}_{number}(x, y={i}):\n    return {n}(x) + y\n" for i, n in enumerate(names)
        ]
        (corpus / f"file_{number:03d}.py").write_text("\n".join(lines))


def random_batch(shape: tuple[int, ...], vocab_size: int = VOCAB_SIZE, seed: int = 0) -> dict:
    """A batch ``[..., B, T]``: three documents a row, padding at the end, some targets masked."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (*shape[:-1], shape[-1] + 1), dtype=np.int32)
    T = shape[-1]
    cuts = np.sort(rng.integers(1, T - 4, (*shape[:-1], 2)), axis=-1)
    index = np.arange(T)
    segments = 1 + (index >= cuts[..., :1]) + (index >= cuts[..., 1:])
    segments = np.where(index >= T - 3, 0, segments).astype(np.int32)
    starts = np.where(segments == 2, cuts[..., :1], np.where(segments == 3, cuts[..., 1:], 0))
    mask = (segments > 0) & (rng.random(segments.shape) > 0.2)
    return {
        "tokens": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "positions": np.where(segments > 0, index - starts, 0).astype(np.int32),
        "segment_ids": segments,
        "loss_mask": mask.astype(np.float32),
    }
