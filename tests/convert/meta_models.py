"""Meta's layout made and run by PyTorch: an independent writer, reader and forward pass."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.nn import functional

_SHARDED_SAVE = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
state_file, folder, rank, rendezvous = sys.argv[1:]
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=int(rank), world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = torch.load(state_file, weights_only=True)
sharded = {
    name: distribute_tensor(tensor, mesh, [Shard(1 if "w2" in name or "wk" in name else 0)])
    for name, tensor in state.items()
}
dcp.save({"model": sharded}, checkpoint_id=folder)
dist.destroy_process_group()
os._exit(0)  # PyTorch's threads sometimes abort the interpreter's own exit
"""


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight, by the key below ``model``, as PyTorch's own library loads it."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    state = {
        name.removeprefix("model."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
    }
    _quietly(dcp.load, {"model": state}, checkpoint_id=folder, no_dist=True)
    return state


def save_state(folder: Path, state: dict) -> None:
    """What one process of PyTorch writes."""
    _quietly(dcp.save, {"model": state}, checkpoint_id=folder, no_dist=True)


def save_state_sharded(folder: Path, state: dict, scratch: Path) -> None:
    """What two processes write: rows divided, columns for some tensors."""
    torch.save(state, scratch / "state.pt")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-c", _SHARDED_SAVE),
                *(str(scratch / "state.pt"), str(folder), str(rank), str(scratch / "rendezvous")),
            ]
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


def _quietly(function, *arguments, **options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.distributed is not initialized
        function(*arguments, **options)


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """[B, T] to [B, T, V]: RoPE rotates the pairs (2i, 2i + 1), as Meta's engine does."""
    model = json.loads((folder / "params.json").read_text())["model"]
    state = {name: tensor.float() for name, tensor in load_state(folder).items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], state[f"{name}.weight"], model["norm_eps"])

    x = state["tok_embeddings.weight"][tokens]
    for i in range(model["n_layers"]):
        layer = {
            name.removeprefix(f"layers.{i}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"layers.{i}.")
        }
        x = x + _attention(norm(x, f"layers.{i}.attention_norm"), layer, model, _window(model, i))
        y = norm(x, f"layers.{i}.ffn_norm")
        gate = functional.silu(y @ layer["feed_forward.w1.weight"].T)
        x = x + (gate * (y @ layer["feed_forward.w3.weight"].T)) @ layer["feed_forward.w2.weight"].T
    return norm(x, "norm") @ state["output.weight"].T


def _window(model: dict, layer: int) -> int:
    """Keys that a query of a layer sees, its own included."""
    window = model["window_attn"]
    last = window["global_last_layer"] and layer == model["n_layers"] - 1
    if last or layer % window["window_pattern"] == 0:
        return model["max_seq_len"]
    return window["local_window"]


def _attention(x: torch.Tensor, layer: dict, model: dict, window: int) -> torch.Tensor:
    B, T, _ = x.shape
    q, k, v = (
        (x @ layer[f"attention.{name}.weight"].T).view(B, T, -1, model["head_dim"])
        for name in ("wq", "wk", "wv")
    )
    q, k = _rotate(q, model), _rotate(k, model)
    repeats = model["n_heads"] // model["n_kv_heads"]
    k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("btnh,bsnh->bnts", q, k) / model["head_dim"] ** 0.5
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    scores = scores.masked_fill((distance < 0) | (distance >= window), -math.inf)
    mixed = torch.einsum("bnts,bsnh->btnh", scores.softmax(-1), v)
    return mixed.reshape(B, T, -1) @ layer["attention.wo.weight"].T


def _rotate(x: torch.Tensor, model: dict) -> torch.Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    angles = torch.outer(torch.arange(x.shape[1]), _frequencies(model)).float()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.view_as_real(turned).reshape(x.shape)


def _frequencies(model: dict) -> torch.Tensor:
    width = model["head_dim"]
    plain = model["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if model["pos_embed_impl"] == "rope":
        return plain
    scaled = model["scaled_rope"]
    old, low, high = (scaled[k] for k in ("old_context_len", "low_freq_factor", "high_freq_factor"))
    blend = ((old * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / scaled["scale_factor"] + blend * plain
