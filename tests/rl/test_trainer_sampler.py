"""Parity in bfloat16: the trainer strays from its sampler no more than transformers from itself.

Both sides draw tokens with a cache and compute the log-probabilities again in one forward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rl.games import Parity
from tiny import sharp_params, tiny_model
from tolerances import BF16_MISMATCH_RATIO
from transformers import AutoModelForCausalLM

from convert import save_hf
from cwm_jax.config import layer_types_3_to_1
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.pretrained import load_pretrained
from cwm_jax.rl.batches import Learnable, RowPacker
from cwm_jax.rl.environment import Observation, Task
from cwm_jax.rl.objective import batch_logprobs
from cwm_jax.rl.playing.rollout import Rollouts, Wanted
from cwm_jax.tokenizer import train_tokenizer

CONFIG = tiny_model(
    num_hidden_layers=8, layer_types=layer_types_3_to_1(8), hidden_size=64, head_dim=16
)
NUM_NEW, NUM_EPISODES, T = 48, 12, 96
PROMPTS = np.random.default_rng(0).integers(1, 500, (NUM_EPISODES, 24)).tolist()


class Long(Parity):
    def start(self):
        return Observation(tokens=self.task.data["prompt"], max_action_tokens=NUM_NEW)


def ours(folder):
    """|difference| of each action token."""
    model = load_pretrained(folder, dtype="bfloat16", scan_layers=True)
    options = EngineOptions(max_length=T, max_rows=NUM_EPISODES, page_tokens=16, prefill_tokens=64)
    engine = Engine(model.params, CONFIG, model.tokenizer, options)
    rollouts = Rollouts(
        engine,
        lambda _, task: Long(task, model.tokenizer),
        max_tokens=T,
        ordered=True,
        timeout_s=30,
    )
    for n, prompt in enumerate(PROMPTS):
        task = Task(name=str(n), data={"prompt": prompt})
        rollouts.add(Wanted(environment="e", task=task, group=0, seed=n))
    played = []
    while rollouts.num_playing:
        played += rollouts.step()
    packer = RowPacker(NUM_EPISODES, T)
    for t in played:
        assert packer.add([Learnable(trajectory=t, advantage=1.0)])
    batch = jax.tree.map(jnp.asarray, packer.batch(version=0))
    params = load_pretrained(folder, dtype="bfloat16", scan_layers=True).params
    logprobs, _ = jax.jit(batch_logprobs, static_argnums=1)(params, CONFIG, batch)
    is_action = np.asarray(batch["action_mask"]) > 0
    return np.abs(logprobs - batch["behaviour_logprobs"])[is_action]


def theirs(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.manual_seed(0)
    made = model.generate(
        torch.tensor(PROMPTS),
        max_new_tokens=NUM_NEW,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = made.sequences[:, len(PROMPTS[0]) :]
    cached = torch.stack(made.logits, 1).float().log_softmax(-1)
    with torch.no_grad():
        whole = model(made.sequences[:, :-1]).logits[:, len(PROMPTS[0]) - 1 :]
    whole = whole.float().log_softmax(-1)
    picked = [x.gather(-1, new[..., None])[..., 0] for x in (cached, whole)]
    return (picked[0] - picked[1]).abs().numpy().ravel()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bfloat16_strays_no_further_than_transformers(tmp_path):
    tokenizer = train_tokenizer([" ".join(map(str, range(2000)))], 560)
    save_hf(tmp_path, CONFIG, sharp_params(CONFIG), tokenizer)
    a, b = ours(tmp_path), theirs(tmp_path)
    assert len(a) > 200 and len(b) == NUM_NEW * NUM_EPISODES
    print(f"\nmean {a.mean():.4f} (transformers {b.mean():.4f}), max {a.max():.4f} ({b.max():.4f})")
    assert 0 < a.mean() <= BF16_MISMATCH_RATIO * b.mean()
    assert a.max() <= BF16_MISMATCH_RATIO * b.max()
