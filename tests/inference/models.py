"""A model at which attention decides, for tests that compare ways to compute it."""

from tiny import tiny_model

from cwm_jax.config import ExecutionConfig, RopeParameters

LLAMA3 = RopeParameters(rope_type="llama3", rope_theta=100.0, original_max_position_embeddings=64)
# Both layer kinds twice in the scanned group's repeats and once in the tail; GQA 2:1; window 8.
CONFIG = tiny_model(rope_parameters=LLAMA3)
EXECUTION = ExecutionConfig(attention="chunked", attention_block_tokens=16)
