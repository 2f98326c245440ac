"""What answers the prompts of an evaluation: a model in this process, or a server."""

from cwm_jax.evals.models.model import Model, ModelFailure, PromptTooLongError

__all__ = ["Model", "ModelFailure", "PromptTooLongError"]
