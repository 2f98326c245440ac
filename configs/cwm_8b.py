"""CWM's shape at 8B parameters (embeddings not counted), a rung of the ladder.

Command:   python train.py --config configs/cwm_8b.py --set data.sources.0.path=FOLDER
Hardware:  128 GPUs with 80 GB
Time:      not run; 1.9 days if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    see configs/cwm_60m.py; the mesh is assumed
"""

from configs.cwm_60m import ladder_model, ladder_run
from cwm_jax.config import MeshConfig, RunConfig

MODEL = ladder_model(num_key_value_heads=6, num_hidden_layers=28)


def get_config() -> RunConfig:
    return ladder_run("cwm_8b", MODEL, per_device_batch_size=1, mesh=MeshConfig(fsdp=128))
