"""CWM's shape at 60M parameters (embeddings not counted): the first rung, and the ladder's recipe.

Command:   python train.py --config configs/cwm_60m.py --set data.sources.0.path=FOLDER
Hardware:  1 GPU with 80 GB
Time:      not run; 1.1 hours if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    shape from configs/cwm_32b.py: head_dim 128, 6 queries per key-value head, FFN 3.5x, 3:1
           windows of 8192, the vocabulary; plain RoPE at 8192 tokens as in pre-training (report).
           Learning rate and batch follow the report's laws. Assumed: 20 tokens per parameter,
           Chinchilla's ratio (CWM's pre-training has 258), and a warm-up of 1 % of the tokens.

The other rungs (cwm_160m, cwm_400m, cwm_1b, cwm_3b, cwm_8b) call ladder_model and ladder_run; eight
key-value heads and 64 layers give the 32B model (configs/pretrain_32b.py).
"""

import dataclasses

from configs import cwm_32b
from cwm_jax.config import (
    BatchConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    layer_types_3_to_1,
)
from cwm_jax.training.scaling.flops import num_non_embedding_parameters

TOKENS_PER_PARAMETER = 20  # assumed: Chinchilla


def ladder_model(*, num_key_value_heads: int, num_hidden_layers: int) -> ModelConfig:
    """CWM narrowed to so many key-value heads (8 in the 32B model) and cut to so many layers."""
    hidden_size = 768 * num_key_value_heads  # 6 queries of width 128 for each
    return dataclasses.replace(
        cwm_32b.MODEL,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 7 // 2,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=6 * num_key_value_heads,
        num_key_value_heads=num_key_value_heads,
        layer_types=layer_types_3_to_1(num_hidden_layers),
        rope_parameters=RopeParameters(rope_theta=1_000_000.0),  # report
        max_position_embeddings=8192,
    )


def ladder_run(
    run_name: str, model: ModelConfig, *, per_device_batch_size: float, mesh: MeshConfig
) -> RunConfig:
    """A rung on 20 tokens per parameter, learning rate and batch by the report's laws."""
    train_tokens = TOKENS_PER_PARAMETER * num_non_embedding_parameters(model)
    return RunConfig(
        run_name=run_name,
        model=model,
        data=cwm_32b.CODE,
        tokenizer=cwm_32b.LLAMA3_TOKENIZER,
        batch=BatchConfig(
            max_target_length=8192,
            per_device_batch_size=per_device_batch_size,
            global_batch_tokens="law",
        ),
        optimizer=OptimizerConfig(
            learning_rate="law",
            train_tokens=train_tokens,
            warmup_tokens=train_tokens // 100,  # assumed
        ),
        execution=cwm_32b.EXECUTION,
        mesh=mesh,
    )


MODEL = ladder_model(num_key_value_heads=1, num_hidden_layers=8)


def get_config() -> RunConfig:
    return ladder_run("cwm_60m", MODEL, per_device_batch_size=4, mesh=MeshConfig(fsdp=1))
