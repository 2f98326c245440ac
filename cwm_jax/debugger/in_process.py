"""A model in this process: an engine on a thread of its own."""

from __future__ import annotations

from cwm_jax.debugger.prediction import PredictionError, PredictionRequest
from cwm_jax.inference.requests import QueueFullError, RequestError, SamplingParams
from cwm_jax.inference.service import EngineService, ServiceClosedError


class EnginePredictor:
    """Asks an engine's service; many sessions may share it."""

    def __init__(self, service: EngineService) -> None:
        self._service = service

    def predict(self, request: PredictionRequest) -> list[int]:
        """As `Predictor.predict`; an exception, such as Ctrl-C, cancels the request."""
        room = self._service.max_length - len(request.prompt)
        if room < 1:
            raise PredictionError(
                f"the program and its frames have {len(request.prompt)} tokens; expected fewer "
                f"than {self._service.max_length}, which the engine reads: go `back`, or take a "
                "model of longer context"
            )
        try:
            sampling = SamplingParams(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop_token_ids=request.stop_token_ids,
                constraint=request.constraint,
            )
            stream = self._service.submit(request.prompt, sampling)
        except (RequestError, QueueFullError, ServiceClosedError) as error:
            raise PredictionError(str(error)) from error
        predicted, reason = [], None
        try:
            for delta in stream:
                predicted += delta.token_ids
                reason = delta.finish_reason
        except BaseException:
            stream.cancel()
            raise
        if reason not in ("stop", "length"):
            raise PredictionError(f"the prediction ended with {reason!r}; expected a whole frame")
        return predicted
