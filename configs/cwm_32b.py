"""The released Code World Model, 32.58B parameters, as Hugging Face's CwmConfig describes it.

Command:   python train.py --config configs/cwm_32b.py --dry-run
Hardware:  64 GPUs with 80 GB
Time:      not run; 9.6 days if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    each with its source; imports never use them: they read layer_types from config.json

configs/pretrain_32b.py and configs/midtrain_32b.py train this architecture from nothing. As a run
this file fine-tunes an imported checkpoint at 8k tokens on 100B tokens; set your own corpus with
--set data.sources.0.path=FOLDER and the weights with --set checkpoint.load_parameters_path=FOLDER.
"""

from cwm_jax.config import (
    BatchConfig,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    layer_types_3_to_1,
)

MODEL = ModelConfig(
    vocab_size=128_256,  # report: 128000 BPE + 256 reserved
    hidden_size=6144,  # HF, report
    intermediate_size=21_504,  # HF: 3.5 x 6144
    num_hidden_layers=64,  # report
    num_attention_heads=48,  # report
    num_key_value_heads=8,  # report
    head_dim=128,  # report
    layer_types=layer_types_3_to_1(64),  # assumed: HF's default, 16 global layers, layer 63 local
    sliding_window=8192,  # report
    rope_parameters=RopeParameters(  # report: from mid-training on
        rope_theta=1_000_000.0,
        rope_type="llama3",
        factor=16.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    rms_norm_eps=1e-5,  # report
    max_position_embeddings=131_072,  # report
    bos_token_id=128_000,
    eos_token_id=(128_001, 128_008, 128_009),
)

CODE = DataConfig(
    sources=(SourceConfig(name="code", kind="folder", path="corpus/code", glob="**/*.py"),)
)
LLAMA3_TOKENIZER = TokenizerConfig(path="tokenizer/tokenizer.model")  # yours to provide (gated)
EXECUTION = ExecutionConfig(dtype="bfloat16", remat_policy="full", loss_chunk_tokens=2048)


def get_config() -> RunConfig:
    return RunConfig(
        run_name="cwm_32b",
        model=MODEL,
        data=CODE,
        tokenizer=LLAMA3_TOKENIZER,
        batch=BatchConfig(
            max_target_length=8192, per_device_batch_size=0.125, global_batch_tokens=2**21
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-5,  # report: SFT's constant rate
            schedule="constant",
            warmup_tokens=1000 * 2**21,  # report: 1000 steps
            train_tokens=100_000_000_000,  # report: SFT's 100B
        ),
        execution=EXECUTION,
        mesh=MeshConfig(fsdp=8, tensor=8),  # assumed
    )
