"""Continuous batching: requests come and go, and the device runs two programs of fixed shapes.

Each step of the engine admits requests, computes a piece of their prompts, and lets the running
ones decode some tokens; then the host looks at what came out. Shapes are rounded up to few sizes,
which ``warm_up`` compiles: nothing is compiled afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import operator
from collections.abc import Collection, Sequence

import jax
import numpy as np

from cwm_jax.config import FULL_ATTENTION, ExecutionConfig, ModelConfig
from cwm_jax.inference.cache import PAGE_TOKENS, CacheLayout, Extension, init_pages
from cwm_jax.inference.pages import PagePool
from cwm_jax.inference.quantization import cast, check_device
from cwm_jax.inference.requests import (
    Delta,
    QueueFullError,
    RequestError,
    SamplingParams,
    TokenLogprob,
)
from cwm_jax.inference.rows import Made, Rows, decode_rows, extend_rows
from cwm_jax.inference.scheduler import Piece, Request, Row, Scheduler
from cwm_jax.inference.shapes import Shapes
from cwm_jax.inference.text import TextStream
from cwm_jax.kernels.dispatch import pays_to_copy_rows, reads_pages_in_place
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params, separate_layers
from cwm_jax.sharding import shards_of
from cwm_jax.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Sizes of an engine.

    Attributes:
        max_length: tokens of a prompt and its continuation together.
        max_rows: requests that run at once.
        num_pages: of the global layers' cache; None is enough for all rows. Requests that do not
            find room wait, or are put back.
        page_tokens: positions of a page.
        prefill_tokens: of prompts, computed in one call; the longer, the longer running requests
            wait for it.
        decode_steps: tokens of each row between two looks of the host.
        max_waiting: requests that may wait; more are refused.
        kv_dtype: of the cache: ``int8``, or None for the weights' dtype.
        keep_prefixes: whether pages are kept for later requests with the same beginning.
    """

    max_length: int
    max_rows: int = 16
    num_pages: int | None = None
    page_tokens: int = PAGE_TOKENS
    prefill_tokens: int = 512
    decode_steps: int = 8
    max_waiting: int = 256
    kv_dtype: str | None = None
    keep_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("max_rows", "page_tokens", "prefill_tokens", "decode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more: raise it")
        if self.kv_dtype not in (None, "int8"):
            raise ValueError(f"kv_dtype is {self.kv_dtype!r}; expected 'int8' or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine holds now, and has done since its start; pages are the global layers'."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    num_cached_pages: int
    """Free, but kept for requests with the same beginning."""
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    preemptions: int
    finished: dict[str, int]
    """Requests by finish reason."""


class Engine:
    """Runs requests; not for several threads at once: that is ``EngineService``."""

    def __init__(
        self,
        params: Params,
        model_config: ModelConfig,
        tokenizer: Tokenizer | None,
        options: EngineOptions,
        *,
        execution: ExecutionConfig = DEFAULT_EXECUTION,
    ):
        """Allocates the cache; with a mesh in use it is sharded like the weights.

        Args:
            params: as from ``init`` or ``convert.load_hf``.
            model_config: the architecture.
            tokenizer: whose ids the model has; None makes no texts and refuses stop strings.
            options: sizes.
            execution: speed and rounding.

        Raises:
            ValueError: a length that the model is not meant for, fewer pages than a row may need.
        """
        longest = model_config.max_position_embeddings
        if not 2 <= options.max_length <= longest:
            raise ValueError(
                f"max_length is {options.max_length}; expected 2 to {longest}, the model's "
                "max_position_embeddings: lower it, or take a model of longer context"
            )
        self.model_config, self.tokenizer, self.options = model_config, tokenizer, options
        self._execution = execution
        mesh = jax.sharding.get_mesh()
        self._mesh = None if mesh.empty else mesh
        self._layout = CacheLayout(
            model_config,
            options.max_length,
            page_tokens=options.page_tokens,
            spare_tokens=options.decode_steps,
            stacked="layers" in params,
        )
        self._params = self._prepared(params)
        num_pages = self._num_pages()
        self._kv_dtype = options.kv_dtype or _dtype(self._params)
        make = functools.partial(init_pages, self._layout, num_pages, dtype=self._kv_dtype)
        self._caches = jax.jit(make)()  # in one program, and sharded from the start
        pools = {kind: PagePool(num) for kind, num in num_pages.items()}
        self._scheduler = Scheduler(self._layout, pools, options.max_rows)
        self._shapes = Shapes(
            layout=self._layout,
            nowhere=max(num_pages.values()),
            prefill_tokens=options.prefill_tokens,
            max_rows=options.max_rows,
            batch_shards=shards_of("batch"),
            reads_in_place=reads_pages_in_place(execution.attention, model_config.head_dim),
        )
        self._copy_rows = pays_to_copy_rows(execution.attention, model_config.head_dim)
        self._counts = dict.fromkeys(("prompt", "cached", "generated"), 0)
        self._finished: dict[str, int] = {}
        self._seeds = np.random.default_rng()

    # ------------------------------------------------------------ requests

    def submit(
        self, prompt: Sequence[int], sampling: SamplingParams, *, key: np.ndarray | None = None
    ) -> Request:
        """Takes a request in.

        Args:
            prompt: token ids, the begin-of-text token included.
            sampling: how it is continued.
            key: two uint32 for the draws, instead of a seed.

        Raises:
            RequestError: an empty or too long prompt, a token that the model does not have.
            QueueFullError: ``max_waiting`` requests wait.
        """
        request = self.prepare(prompt, sampling, key=key)
        check_queue(len(self._scheduler.waiting), self.options)
        self.enqueue(request)
        return request

    def prepare(
        self, prompt: Sequence[int], sampling: SamplingParams, *, key: np.ndarray | None = None
    ) -> Request:
        """The first half of ``submit``, which any thread may do: a request that is checked."""
        self.check(prompt, sampling)
        limit = min(len(prompt) + sampling.max_tokens, self.longest)
        text = TextStream(self.tokenizer, sampling.stop)
        return Request(
            prompt, sampling, text, limit, self._key(sampling.seed) if key is None else key
        )

    def enqueue(self, request: Request) -> None:
        """The second half: the request waits for its turn."""
        self._counts["prompt"] += request.num_prompt_tokens
        self._scheduler.waiting.append(request)

    def check(self, prompt: Sequence[int], sampling: SamplingParams) -> None:
        """Raises RequestError as ``submit`` does."""
        if not 0 < len(prompt) < self.longest:
            raise RequestError(
                "prompt",
                f"the prompt has {len(prompt)} tokens; expected 1 to {self.longest - 1}, one less "
                "than the longest row: "
                + (
                    "begin it with bos"
                    if not prompt
                    else "shorten it, or raise the engine's max_length"
                ),
            )
        if sampling.stop and self.tokenizer is None:
            raise RequestError("stop", "stop has strings, and the engine no tokenizer; give it one")
        check_ids("prompt", prompt, self.model_config.vocab_size)
        check_ids("stop_token_ids", sampling.stop_token_ids, self.model_config.vocab_size)

    def cancel(self, request: Request) -> None:
        """Ends a request; its place is free from the next step on."""
        request.finish("cancelled")

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.waiting or self._scheduler.rows)

    def step(self) -> list[tuple[Request, Delta]]:
        """Computes some tokens: what each request gained, the cancelled ones included."""
        with self._in_mesh():
            touched = self._requests()
            self._scheduler.remove_finished()
            self._scheduler.admit()
            self._prefill()
            self._decode()
            touched += [request for request in self._requests() if request not in touched]
            self._scheduler.remove_finished()
        deltas = [(request, request.take_delta()) for request in touched]
        for request in touched:
            self._count(request)
        return [(request, delta) for request, delta in deltas if delta is not None]

    def update_weights(self, params: Params) -> None:
        """Other weights of the same shapes: running requests go on with them.

        What they have cached stays as it is; no later request shares it. The arrays are the
        engine's from now on: whoever donates or deletes them gives it copies.
        """
        params = self._prepared(params, like=self._params)
        self._scheduler.forget_prefixes()
        self._params = params

    def _prepared(self, params: Params, *, like: Params | None = None) -> Params:
        """Weights as the steps take them; raises ValueError unless they are like others."""
        if not self._layout.stacked:
            params = separate_layers(params, self.model_config)
        if like is not None and jax.tree.structure(params) != jax.tree.structure(like):
            raise ValueError(
                "the new weights form another tree than the engine's; expected the same: make a "
                "new engine for another model"
            )
        check_device(params)
        if self._execution.dtype is not None:  # once, instead of at each step
            params = cast(params, self._execution.dtype)
        if like is not None:
            _check_same_shapes(like, params)
        return params

    def stats(self) -> EngineStats:
        pool = self._scheduler.pools.get(FULL_ATTENTION) or next(
            iter(self._scheduler.pools.values())
        )
        return EngineStats(
            num_running=len(self._scheduler.rows),
            num_waiting=len(self._scheduler.waiting),
            num_pages=pool.num_pages,
            num_free_pages=pool.num_free,
            num_cached_pages=pool.num_kept,
            prompt_tokens=self._counts["prompt"],
            cached_prompt_tokens=self._counts["cached"],
            generated_tokens=self._counts["generated"],
            preemptions=self._scheduler.num_preemptions,
            finished=dict(self._finished),
        )

    @property
    def cache_bytes(self) -> int:
        """Of keys, values and scales on all devices together."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._caches))

    def row_bytes(self, num_tokens: int) -> int:
        """Of the pages that a row of so many tokens holds."""
        layout, P = self._layout, self.options.page_tokens
        return sum(
            min(-(-num_tokens // P), layout.row_pages(kind))
            * layout.page_bytes(kind, self._kv_dtype)
            for kind in layout.kinds
        )

    # ------------------------------------------------------------ steps

    def _prefill(self) -> None:
        """One call; more while most of the running requests wait for their prompts."""
        while self._scheduler.num_prefilling:
            rows: list[list[Piece]] = []
            for _ in range(self._shapes.batch_shards):
                taken = [piece for row in rows for piece in row]
                rows.append(self._scheduler.next_pieces(self.options.prefill_tokens, taken))
            self._extend(rows)
            if 2 * self._scheduler.num_prefilling <= len(self._scheduler.rows):
                return

    def _extend(self, rows: list[list[Piece]]) -> None:
        self._compute(self._shapes.extension(rows))
        for row in rows:
            for piece in row:
                self._publish(piece.row)

    def _compute(self, extension: Extension) -> None:
        self._caches = extend_rows(
            self._params,
            self._caches,
            extension,
            layout=self._layout,
            execution=self._execution,
        )

    def _decode(self) -> None:
        steps = self.options.decode_steps
        self._run(self._scheduler.next_rows(steps, constrained=False), steps)
        for _ in range(steps):  # between two tokens the host says what may come
            rows = self._scheduler.next_rows(1, constrained=True)
            if not rows:
                return
            self._run(rows, 1)

    def _run(self, rows: list[Row], num_steps: int) -> None:
        rows = [row for row in rows if self._restrict(row)]
        if not rows:
            return
        made = self._generate(
            self._shapes.rows(rows, self.model_config.vocab_size),
            num_steps,
            with_top=any(row.request.sampling.num_logprobs for row in rows),
            num_keys=self._shapes.num_keys(
                max(len(row.request.tokens) for row in rows) + num_steps
            ),
        )
        for b, row in enumerate(rows):
            self._receive(row, made, b)
            self._publish(row)

    def _generate(self, rows: Rows, num_steps: int, *, with_top: bool, num_keys: int) -> Made:
        self._caches, made = decode_rows(
            self._params,
            self._caches,
            rows,
            np.int32(num_steps),
            np.bool_(with_top),
            layout=self._layout,
            execution=self._execution,
            max_steps=self.options.decode_steps,
            num_keys=num_keys,
            copy_rows=self._copy_rows,
        )
        return jax.device_get(made)

    def _receive(self, row: Row, made: Made, b: int) -> None:
        request, count = row.request, int(made.counts[b])
        row.num_cached += count
        top = request.sampling.num_logprobs
        for n in range(count):
            if request.finish_reason is not None:  # a stop string: what follows it is not wanted
                return
            pairs = zip(made.top_tokens[n, b, :top], made.top_logprobs[n, b, :top], strict=True)
            self._counts["generated"] += 1
            request.receive(
                TokenLogprob(
                    int(made.tokens[n, b]),
                    float(made.logprobs[n, b]),
                    [(int(token), float(logprob)) for token, logprob in pairs],
                )
            )

    def _restrict(self, row: Row) -> bool:
        """Asks the constraint what may come next; a request whose constraint fails ends."""
        request, V = row.request, self.model_config.vocab_size
        if request.sampling.constraint is None:
            return True
        try:
            allowed = request.sampling.constraint(request.generated)
            row.allowed = None if allowed is None else [operator.index(token) for token in allowed]
            if row.allowed is not None and not any(0 <= token < V for token in row.allowed):
                raise ValueError("the constraint allows no token of the model")
        except Exception:  # whatever a caller's function does, the others run on
            _LOG.exception("a request's constraint failed: the request ends")
            request.finish("error")
        return request.finish_reason is None

    def _publish(self, row: Row) -> None:
        if self.options.keep_prefixes:
            self._scheduler.publish(row)

    def _requests(self) -> list[Request]:
        return [row.request for row in self._scheduler.rows] + [*self._scheduler.waiting]

    def _count(self, request: Request) -> None:
        if request.finish_reason is not None:
            reason = request.finish_reason
            self._finished[reason] = self._finished.get(reason, 0) + 1
            self._counts["cached"] += request.num_cached_tokens

    def _in_mesh(self) -> contextlib.AbstractContextManager:
        """The mesh of the engine, on whatever thread it runs."""
        return jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()

    # ------------------------------------------------------------ sizes

    def warm_up(self) -> int:
        """Compiles every program that a request can need; the number of their shapes."""
        with self._in_mesh():
            for shape in self._shapes.extensions:
                self._compute(self._shapes.no_extension(*shape))
            for B, num_keys in self._shapes.decodings:
                rows = self._shapes.no_rows(B, self.model_config.vocab_size)
                self._generate(rows, 0, with_top=False, num_keys=num_keys)
        return len(self._shapes.extensions) + len(self._shapes.decodings)

    @property
    def longest(self) -> int:
        """Tokens of a request, as far as the pages go."""
        pages = self._scheduler.pools.get(FULL_ATTENTION)
        if pages is None:
            return self.options.max_length
        return min(self.options.max_length, pages.num_pages * self.options.page_tokens)

    def _num_pages(self) -> dict[str, int]:
        rows, layout = self.options.max_rows, self._layout
        whole = -(-self.options.max_length // self.options.page_tokens)
        most = self.options.num_pages or rows * whole
        pages = {}
        for kind in layout.kinds:
            window = self.model_config.window(kind)
            # half as many again as rows use, for prefixes that are kept
            pages[kind] = (
                most if window is None else min(most, rows * layout.row_pages(kind) * 3 // 2)
            )
            pages[kind] = max(pages[kind], layout.row_pages(kind) if window else 1)
        return pages

    def _key(self, seed: int | None) -> np.ndarray:
        if seed is None:
            return self._seeds.integers(2**32, size=2, dtype=np.uint32)
        return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def check_queue(num_waiting: int, options: EngineOptions) -> None:
    """Raises QueueFullError if no more may wait."""
    if num_waiting >= options.max_waiting:
        raise QueueFullError(
            f"{num_waiting} requests wait, as many as may; expected fewer: try again later"
        )


def _dtype(params: Params) -> str:
    return str(params["norm"]["scale"].dtype)


def _check_same_shapes(old: Params, new: Params) -> None:
    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)

    if shapes(old) != shapes(new):
        raise ValueError(
            "the new weights have other shapes or dtypes than the engine's; expected the same: "
            "make a new engine for another model"
        )


def check_ids(field: str, ids: Collection[int], vocab_size: int) -> None:
    """Raises RequestError, which names ``field``, for a token that the model does not have."""
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:  # JAX would clamp it silently
        raise RequestError(
            field,
            f"{field} has token {wrong[0]}; expected 0 to {vocab_size - 1}: encode with the "
            "model's tokenizer",
        )
