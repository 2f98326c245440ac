"""Parity with transformers' ``generate``, greedy, token by token, from one folder on both sides."""

import numpy as np
import pytest
import torch
from tiny import sharp_params, tiny_model
from transformers import AutoModelForCausalLM

from convert import save_hf
from cwm_jax.config import RopeParameters, layer_types_3_to_1
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.pretrained import load_pretrained
from cwm_jax.inference.requests import SamplingParams
from cwm_jax.tokenizer import train_tokenizer

LLAMA3 = RopeParameters(rope_type="llama3", rope_theta=100.0, original_max_position_embeddings=64)
MODELS = {
    "gqa2, last layer global": tiny_model(
        num_hidden_layers=6, layer_types=layer_types_3_to_1(6, last_global=True)
    ),
    "gqa6, llama3": tiny_model(
        num_hidden_layers=8,
        layer_types=layer_types_3_to_1(8),
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=1,
        rope_parameters=LLAMA3,
    ),
}
LENGTHS = (5, 40, 97, 1)  # most are longer than three windows of 8
NUM_NEW = 40  # five windows


@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_are_those_of_transformers(name, tmp_path):
    config = MODELS[name]
    tokenizer = train_tokenizer([" ".join(map(str, range(2000)))], 560)
    save_hf(tmp_path, config, sharp_params(config), tokenizer)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(512, size=length).tolist() for length in LENGTHS]

    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    longest = max(LENGTHS)
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - length) + [1] * length for length in LENGTHS]
    expected = reference.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=NUM_NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, longest:].tolist()

    model = load_pretrained(tmp_path)
    engine = Engine(
        model.params,
        model.model_config,
        model.tokenizer,
        EngineOptions(max_length=200, max_rows=3, page_tokens=16, prefill_tokens=32),
    )
    sampling = SamplingParams(max_tokens=NUM_NEW, temperature=0.0)
    requests = [engine.submit(prompt, sampling) for prompt in prompts]
    while engine.has_work:
        engine.step()
    assert [request.generated for request in requests] == expected
    assert all(len(set(row)) > 5 for row in expected)  # no loop that hides wrong positions
