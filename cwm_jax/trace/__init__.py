"""Execution traces: programs run under ``sys.settrace`` in the sandbox, frames, text, corpora."""

from cwm_jax.trace.format import parse_frames, parse_trace, render_frames, render_prompt
from cwm_jax.trace.frames import TraceEvent, TraceFrame
from cwm_jax.trace.tracer import TraceError, TraceLimits, Tracer, trace_context

__all__ = [
    "TraceError",
    "TraceEvent",
    "TraceFrame",
    "TraceLimits",
    "Tracer",
    "parse_frames",
    "parse_trace",
    "render_frames",
    "render_prompt",
    "trace_context",
]
