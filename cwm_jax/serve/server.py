"""What the endpoints of one server share."""

from __future__ import annotations

from cwm_jax.serve.errors import ApiError
from cwm_jax.serve.generation import Generation, Job, Service
from cwm_jax.serve.metrics import Metrics
from cwm_jax.serve.options import ServeOptions
from cwm_jax.serve.replies import now_s


class Server:
    """The engine's service, its options and its counters.

    Attributes:
        tokenizer: the model's.
        is_draining: no request is admitted any more; those that run are finished.
        num_open: requests without a whole reply.
    """

    def __init__(self, service: Service, options: ServeOptions) -> None:
        if service.tokenizer is None:
            raise ValueError("the engine has no tokenizer; expected the model's: texts come and go")
        self.service, self.options, self.tokenizer = service, options, service.tokenizer
        self.metrics = Metrics(service)
        self.created = now_s()
        self.is_draining = False
        self.num_open = 0

    def model_name(self, asked: str | None) -> str:
        """Raises ApiError for a model that is not served."""
        names = self.options.model_names
        if asked is not None and asked not in names:
            raise ApiError(
                404,
                f"model: there is no {asked!r}; expected one of {', '.join(names)}",
                param="model",
                code="model_not_found",
            )
        return asked or names[0]

    def generate(self, job: Job) -> Generation:
        """Admits a job; raises ApiError where `Generation` does, and for one that is too wide."""
        self.check_alive()
        num_sequences = len(job.prompts) * job.n
        if num_sequences > self.options.max_sequences:
            param = "n" if job.n > 1 else "prompt"
            raise ApiError(
                400,
                f"{param}: {len(job.prompts)} prompts, each continued {job.n} times; expected at "
                f"most {self.options.max_sequences} continuations in a request",
                param=param,
                code="invalid_value",
            )
        return Generation(self.service, job, self.metrics)

    def check_alive(self) -> None:
        """Raises ApiError once the engine's loop has died."""
        if self.service.failure is not None:
            raise ApiError(503, "the engine has failed; restart the server", code="engine_failed")
        if not self.service.healthy:
            raise ApiError(503, "the server shuts down", code="shutting_down")
