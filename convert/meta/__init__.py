"""Meta's native layout: PyTorch's distributed checkpoints and params.json."""
