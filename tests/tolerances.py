"""All tolerances of the tests, in one place; never loosened to make a test pass."""

# Logits against transformers' CwmForCausalLM in float32: max |difference|.
LOGITS_ATOL = 1e-4
# Gradient of each leaf against torch autograd: ||difference|| / ||gradient||.
GRADIENT_RTOL = 1e-4
# Attention implementations against the dense oracle, unit-normal inputs: max |difference|.
ATTENTION_F32_ATOL = 1e-5
ATTENTION_BF16_ATOL = 6e-2
# Loss between accumulation counts, meshes and chunkings in float32: relative.
LOSS_RTOL = 1e-6
# Gradient of each leaf between accumulation counts and meshes: ||difference|| / ||gradient||.
ACCUMULATION_RTOL = 1e-5

# Pallas kernels against the reference, float32 and N(0, 1) inputs, relative to max(1, its largest)
KERNEL_F32_RTOL = 5e-6
KERNEL_F32_GRADIENT_RTOL = 3e-5
# The same in 16 bit against the reference in float32: 2 and 4 roundings of bfloat16 (2**-8)
KERNEL_BF16_RTOL = 2 * 2**-8
KERNEL_BF16_GRADIENT_RTOL = 4 * 2**-8
# Loss of a run's steps on other meshes and processes in float32, a dozen Adam steps: relative.
TRAJECTORY_RTOL = 1e-5

# Log-probabilities of a rollout, cached decoding against the trainer's packed rows, in float32: the
# issue's bound.
SAMPLER_ATOL = 1e-4

# How far bfloat16's log-probabilities of a rollout may stray from the trainer's, mean and max, over
# transformers' cached decoding against its full forward: the issue's bound.
BF16_MISMATCH_RATIO = 2.0

# Log-probabilities in chunks, entropies and gradients against all logits at once, float32: max
# |difference| relative to max(1, the largest).
LOGPROBS_ATOL = 1e-5
# Policy objectives in float32 against slow float64: max |difference| relative to the largest.
POLICY_RTOL = 1e-5
