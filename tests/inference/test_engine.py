"""The engine: many requests at once give what each gives alone, in the pages that there are."""

import asyncio
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from inference.models import CONFIG, EXECUTION
from tiny import VOCAB_SIZE, sharp_params
from tolerances import LOGITS_ATOL

from cwm_jax.inference import rows as rows_module
from cwm_jax.inference.constraints import ChoicesAfter
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.requests import QueueFullError, RequestError, SamplingParams
from cwm_jax.inference.service import EngineService, ServiceClosedError
from cwm_jax.model.transformer import forward, separate_layers
from cwm_jax.tokenizer import train_tokenizer

OPTIONS = dict(max_length=200, max_rows=4, page_tokens=16, prefill_tokens=64, decode_steps=4)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(VOCAB_SIZE, size=n).tolist() for n in (90, 3, 150, 17, 1, 60, 33)]
NUM_NEW = 40  # five windows


@pytest.fixture(scope="module")
def params():
    return sharp_params(CONFIG)


@pytest.fixture(scope="module")
def tokenizer():
    text = " ".join(f"word{n} word{n} ünï{n} ünï{n}" for n in range(200))
    return train_tokenizer([text], VOCAB_SIZE)


@pytest.fixture(scope="module")
def make_engine(params, tokenizer):
    def make(**changes):
        options = EngineOptions(**{**OPTIONS, **changes})
        return Engine(params, CONFIG, tokenizer, options, execution=EXECUTION)

    return make


def greedy(max_tokens=NUM_NEW, **changes):
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **changes)


def finish(engine, requests):
    """Runs until nothing is left: (tokens, text, finish reason) of each request."""
    tokens, texts, reasons = ({request: [] for request in requests} for _ in range(3))
    while engine.has_work:
        for request, delta in engine.step():
            tokens[request] += delta.token_ids
            texts[request].append(delta.text)
            reasons[request].append(delta.finish_reason)
    assert all(r[-1] is not None and set(r[:-1]) <= {None} for r in reasons.values())
    return [(tokens[r], "".join(texts[r]), reasons[r][-1]) for r in requests]


def run(engine, prompts, sampling):
    return finish(engine, [engine.submit(prompt, sampling) for prompt in prompts])


def assert_nothing_held(engine):
    stats = engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    for pool in engine._scheduler.pools.values():
        assert pool.num_free == pool.num_pages


@pytest.fixture(scope="module")
def expected(make_engine):
    """Greedy, each request alone; against the model without a cache in ``test_decoder``."""
    return [run(make_engine(), [prompt], greedy())[0] for prompt in PROMPTS]


def test_expected_is_the_most_likely_without_a_cache(params, expected):
    for prompt, (tokens, _, reason) in zip(PROMPTS, expected, strict=True):
        row = np.zeros((1, 200), np.int32)
        row[0, : len(prompt) + NUM_NEW] = [*prompt, *tokens]
        logits = np.asarray(jax.jit(forward, static_argnums=1)(params, CONFIG, row))[0]
        assert tokens == logits[len(prompt) - 1 :][:NUM_NEW].argmax(-1).tolist()
        assert reason == "length"


def test_requests_that_come_and_go_give_what_each_gives_alone(make_engine, expected):
    engine = make_engine()
    made, requests = {}, [engine.submit(prompt, greedy()) for prompt in PROMPTS[:3]]
    later = list(PROMPTS[3:])
    while engine.has_work or later:
        if later:
            requests.append(engine.submit(later.pop(0), greedy()))
        for request, delta in engine.step():
            made.setdefault(request, []).extend(delta.token_ids)
    assert [made[request] for request in requests] == [tokens for tokens, _, _ in expected]
    assert_nothing_held(engine)


def test_nothing_is_compiled_after_the_warm_up(make_engine):
    engine = make_engine(max_length=180)  # shapes of its own
    before = [rows_module.extend_rows._cache_size(), rows_module.decode_rows._cache_size()]
    num_shapes = engine.warm_up()
    warm = [rows_module.extend_rows._cache_size(), rows_module.decode_rows._cache_size()]
    assert sum(warm) - sum(before) == num_shapes
    samplings = [
        greedy(num_logprobs=5),
        SamplingParams(max_tokens=20, seed=1, top_k=5, top_p=0.9, min_p=0.1),
        SamplingParams(max_tokens=9, constraint=lambda _: [1, 2], stop_token_ids=(2,)),
    ]
    requests = [
        engine.submit(prompt[:130], sampling) for prompt in PROMPTS for sampling in samplings
    ]
    finish(engine, requests)
    after = [rows_module.extend_rows._cache_size(), rows_module.decode_rows._cache_size()]
    assert after == warm


@pytest.mark.parametrize("copy_rows", [False, True])
def test_rows_in_pages_or_copied_whole_give_the_same(make_engine, expected, copy_rows):
    engine = make_engine(num_pages=14)
    engine._copy_rows = copy_rows
    assert run(engine, PROMPTS, greedy()) == expected
    assert run(engine, PROMPTS[2:], greedy()) == expected[2:]  # of kept pages
    assert_nothing_held(engine)


def test_weights_layer_by_layer_give_the_same(params, expected):
    apart = separate_layers(params, CONFIG)
    engine = Engine(apart, CONFIG, None, EngineOptions(**OPTIONS), execution=EXECUTION)

    def tokens():
        return [row for row, _, _ in run(engine, PROMPTS, greedy())]

    alone = [row for row, _, _ in expected]
    assert tokens() == alone
    engine.update_weights(jax.tree.map(lambda x: x * 1.25, params))  # in stacks, as trainers do
    assert tokens() != alone
    engine.update_weights(apart)
    assert tokens() == alone


@pytest.mark.parametrize("copy_rows", [False, True])
def test_the_loop_writes_the_cache_in_place(params, make_engine, copy_rows):
    engine = make_engine(max_rows=16)
    rows = engine._shapes.no_rows(2, VOCAB_SIZE)
    compiled = rows_module.decode_rows.lower(
        params,
        engine._caches,
        rows,
        np.int32(4),
        np.bool_(False),
        layout=engine._layout,
        execution=EXECUTION,
        max_steps=4,
        num_keys=64,
        copy_rows=copy_rows,
    ).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= engine.cache_bytes
    assert memory.temp_size_in_bytes < engine.cache_bytes / 2


def test_a_shared_beginning_is_computed_once(make_engine, expected):
    engine = make_engine()
    tokens = run(engine, [PROMPTS[2]], greedy())[0][0]
    assert tokens == expected[2][0]
    computed = engine.stats()
    longer = [*PROMPTS[2], *tokens[:20]]
    request = engine.submit(longer, greedy(20))
    other = engine.submit([*PROMPTS[2][:100], *PROMPTS[0]], greedy(4))  # its ring is gone
    made = finish(engine, [request, other])
    assert made[0][0] == tokens[20:]
    assert request.num_cached_tokens == 160  # whole pages of 170 tokens
    assert engine.stats().cached_prompt_tokens == 160 + other.num_cached_tokens
    assert computed.num_cached_pages > 0
    fresh = run(make_engine(keep_prefixes=False), [[*PROMPTS[2][:100], *PROMPTS[0]]], greedy(4))
    assert made[1] == fresh[0]


def test_without_kept_prefixes_nothing_is_shared(make_engine, expected):
    engine = make_engine(keep_prefixes=False)
    assert run(engine, [PROMPTS[2]] * 2, greedy()) == [expected[2]] * 2
    assert engine.stats().cached_prompt_tokens == engine.stats().num_cached_pages == 0


def test_requests_beyond_the_pages_are_put_back_and_go_on(make_engine, expected):
    # 190 tokens at the longest take 12 pages; four rows would want up to 37
    engine = make_engine(num_pages=14)
    assert run(engine, PROMPTS, greedy()) == expected
    assert engine.stats().preemptions > 0
    assert_nothing_held(engine)


def test_draws_depend_on_the_seed_alone(make_engine):
    sampling = SamplingParams(max_tokens=12, temperature=1.5, top_p=0.9, seed=2**40 + 7)
    alone = run(make_engine(), [PROMPTS[0]], sampling)[0]
    busy, engine = [], make_engine(num_pages=14)
    for prompt in (PROMPTS[2], PROMPTS[0], PROMPTS[0], PROMPTS[5]):
        other = SamplingParams(max_tokens=30, seed=1)
        busy.append(engine.submit(prompt, sampling if prompt is PROMPTS[0] else other))
    made = finish(engine, busy)
    assert made[1] == made[2] == alone
    for seed in (7, None):
        changed = SamplingParams(max_tokens=12, temperature=1.5, top_p=0.9, seed=seed)
        assert run(engine, [PROMPTS[0]], changed)[0] != alone


def test_first_tokens_have_the_exact_distribution(params, make_engine):
    """Chi-square of a thousand requests against the model's own probabilities."""
    logits = np.asarray(forward(params, CONFIG, jnp.asarray([PROMPTS[1]])))[0, -1]
    order = np.argsort(-logits)[:6]
    weights = np.exp(logits[order].astype(np.float64) / 0.8)
    engine = make_engine(max_rows=16, max_waiting=1000)
    sampling = [
        SamplingParams(max_tokens=1, temperature=0.8, top_k=6, seed=seed) for seed in range(1000)
    ]
    requests = [engine.submit(PROMPTS[1], one) for one in sampling]
    tokens = [made[0][0] for made in finish(engine, requests)]
    counts = [tokens.count(token) for token in order]
    assert sum(counts) == 1000
    assert scipy.stats.chisquare(counts, 1000 * weights / weights.sum()).pvalue > 1e-3


def test_logprobs_are_the_models_own(params, make_engine):
    engine = make_engine()
    request = engine.submit(PROMPTS[0], SamplingParams(max_tokens=6, seed=0, num_logprobs=3))
    records = []
    while engine.has_work:
        records += [record for _, delta in engine.step() for record in delta.logprobs]
    row = jnp.asarray([[*PROMPTS[0], *request.generated]])
    logits = forward(params, CONFIG, row)[0, len(PROMPTS[0]) - 1 : -1]
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for record, given in zip(records, logprobs, strict=True):
        assert abs(record.logprob - given[record.token_id]) <= LOGITS_ATOL
        assert [token for token, _ in record.top] == np.argsort(-given)[:3].tolist()
        assert all(abs(value - given[token]) <= LOGITS_ATOL for token, value in record.top)


def test_stop_tokens_and_strings_end_a_request(make_engine, tokenizer, expected):
    engine, (tokens, text, _) = make_engine(), expected[3]
    stop_token = tokens[10]
    first = tokens.index(stop_token) + 1
    made = run(engine, [PROMPTS[3]], greedy(stop_token_ids=(0, stop_token)))[0]
    assert made == (tokens[:first], tokenizer.decode(tokens[: first - 1]), "stop")
    middle = len(text) // 2
    stop_text = text[middle : middle + 4]  # most likely across tokens
    made = run(engine, [PROMPTS[3]], greedy(stop=("not there", stop_text)))[0]
    assert made[1:] == (text[: text.index(stop_text)], "stop")
    assert stop_text in tokenizer.decode(made[0])
    assert made[0] == tokens[: len(made[0])]
    assert_nothing_held(engine)


def test_a_constraint_holds_at_every_token(make_engine, expected):
    tokens = expected[0][0]
    after = tokens[5]
    choices = ((7, 8), (7, 9, 10), (11,))
    constraint = ChoicesAfter(after, choices, then=(12, 13))
    made, _, _ = run(make_engine(), [PROMPTS[0]], greedy(constraint=constraint))[0]
    place = made.index(after)
    assert made[: place + 1] == tokens[: tokens.index(after) + 1]
    behind = tuple(made[place + 1 : place + 5])
    assert any(behind[: len(c)] == c and behind[len(c)] in (12, 13) for c in choices)


def test_a_constraint_that_fails_ends_its_request_alone(make_engine, expected):
    def fails(generated):
        if len(generated) == 3:
            raise KeyError("nothing comes after three")

    engine = make_engine()
    samplings = [greedy(), greedy(constraint=fails), greedy(constraint=lambda _: [])]
    samplings += [greedy(constraint=lambda _: [7.5])]
    requests = [engine.submit(PROMPTS[3], sampling) for sampling in samplings]
    whole, three, none, no_ids = finish(engine, requests)
    assert whole == expected[3]
    assert three[0] == expected[3][0][:3] and three[2] == none[2] == no_ids[2] == "error"
    assert_nothing_held(engine)


def test_a_cancelled_request_frees_its_place(make_engine, expected):
    engine = make_engine(max_rows=1)
    running, waiting, last = (engine.submit(PROMPTS[n], greedy()) for n in (0, 1, 3))
    engine.step()
    engine.cancel(running)
    engine.cancel(waiting)
    made = finish(engine, [running, waiting, last])
    assert [reason for _, _, reason in made] == ["cancelled", "cancelled", "length"]
    assert made[0][0] == expected[0][0][: len(made[0][0])] and made[1][0] == []
    assert made[2] == expected[3]
    assert engine.stats().finished == {"cancelled": 2, "length": 1}
    assert_nothing_held(engine)


def test_new_weights_forget_what_is_kept_and_drop_no_request(params, make_engine, expected):
    engine = make_engine()
    run(engine, [PROMPTS[2]], greedy())
    running = engine.submit(PROMPTS[0], greedy())
    short = engine.submit(PROMPTS[1], greedy())
    while not running.generated:
        engine.step()
    assert 0 < len(short.tokens) < OPTIONS["page_tokens"]
    other = jax.tree.map(lambda x: 0.9 * x, params)
    engine.update_weights(other)
    assert engine.stats().num_cached_pages == 0
    finish(engine, [running, short])
    assert len(running.generated) == NUM_NEW
    fresh = Engine(other, CONFIG, None, EngineOptions(**OPTIONS), execution=EXECUTION)
    half = [*PROMPTS[1], *short.generated]  # the first page's tokens are of old and new weights
    for prompt in (half, PROMPTS[2], PROMPTS[0]):
        request = engine.submit(prompt, greedy())
        assert finish(engine, [request])[0][0] == run(fresh, [prompt], greedy())[0][0]
        assert request.num_cached_tokens == 0
    with pytest.raises(ValueError, match="other shapes or dtypes"):
        engine.update_weights({**params, "norm": {"scale": np.ones(3)}})


@pytest.mark.parametrize(
    ("prompt", "changes", "field", "message"),
    [
        ([], {}, "prompt", "0 tokens; expected 1 to 199, .* begin it with bos"),
        ([1] * 200, {}, "prompt", "200 tokens; expected 1 to 199"),
        ([VOCAB_SIZE], {}, "prompt", f"token {VOCAB_SIZE}; expected 0 to"),
        ([1], {"stop_token_ids": (-1,)}, "stop_token_ids", "token -1"),
        ([1], {"stop_token_ids": (1,) * 17}, "stop_token_ids", "at most 16 tokens"),
        ([1], {"max_tokens": 0}, "max_tokens", "0; expected 1 or more"),
        ([1], {"temperature": float("nan")}, "temperature", "nan; expected 0"),
        ([1], {"temperature": 1e39}, "temperature", "expected 0 .* to 1e\\+06"),
        ([1], {"top_p": 0}, "top_p", "0; expected above 0"),
        ([1], {"top_k": -1}, "top_k", "-1; expected 0"),
        ([1], {"top_k": 2**31}, "top_k", "expected 0"),
        ([1], {"min_p": 1.1}, "min_p", "1.1; expected 0 to 1"),
        ([1], {"num_logprobs": 21}, "num_logprobs", "21; expected 0 to 20"),
        ([1], {"seed": 2**63}, "seed", "64 bit"),
        ([1], {"stop": ("a", "")}, "stop", "not empty"),
    ],
)
def test_what_cannot_be_served_is_refused(make_engine, prompt, changes, field, message):
    with pytest.raises(RequestError, match=message) as refused:
        make_engine().submit(prompt, SamplingParams(**{"max_tokens": 1, **changes}))
    assert refused.value.field == field


def test_too_many_are_refused(make_engine):
    engine = make_engine(max_waiting=2)
    for _ in range(2):
        engine.submit([1], greedy(1))
    with pytest.raises(QueueFullError, match="2 requests wait"):
        engine.submit([1], greedy(1))
    engine.step()
    engine.submit([1], greedy(1))


def test_an_engine_without_tokenizer_refuses_stop_strings(params):
    engine = Engine(params, CONFIG, None, EngineOptions(**OPTIONS))
    with pytest.raises(RequestError, match="the engine no tokenizer"):
        engine.submit([1], greedy(stop=("a",)))


# ---------------------------------------------------------------- on its own thread


def test_a_service_streams_to_threads_and_to_asyncio(make_engine, expected):
    service = EngineService(make_engine())
    results = {}

    def read(n):
        results[n] = [token for d in service.submit(PROMPTS[n], greedy()) for token in d.token_ids]

    threads = [threading.Thread(target=read, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()

    async def read_many():
        streams = [service.submit(PROMPTS[n], greedy()) for n in (2, 3)]
        return await asyncio.gather(*map(collect, streams))

    async def collect(stream):
        return [token async for delta in stream for token in delta.token_ids]

    made = asyncio.run(read_many())
    for thread in threads:
        thread.join()
    assert [results[0], results[1], *made] == [tokens for tokens, _, _ in expected[:4]]
    assert service.stats().finished == {"length": 4} and service.healthy
    service.close()
    assert not service.healthy
    with pytest.raises(ServiceClosedError, match="being closed"):
        service.submit([1], greedy())


def test_a_stream_is_cancelled_and_a_closing_service_drains(make_engine, expected):
    service = EngineService(make_engine(max_rows=1))
    first, second = (service.submit(PROMPTS[0], greedy(100)) for _ in range(2))
    deltas = iter(first)
    next(deltas)
    first.cancel()
    first.cancel()
    assert [delta.finish_reason for delta in deltas][-1] == "cancelled"
    service.close(drain=True)
    assert [delta.finish_reason for delta in second][-1] == "length"
    assert service.stats().finished == {"cancelled": 1, "length": 1}


def test_what_does_not_finish_in_time_is_cancelled(make_engine):
    service = EngineService(make_engine(max_rows=1))
    streams = [service.submit(PROMPTS[0], greedy(100)) for _ in range(3)]
    service.close(timeout_s=0.0)
    assert [[d.finish_reason for d in stream][-1] for stream in streams] == ["cancelled"] * 3


def test_weights_change_between_steps(params, make_engine, expected):
    def tokens(stream):
        return [token for delta in stream for token in delta.token_ids]

    other = jax.tree.map(lambda x: 1.25 * x, params)
    fresh = Engine(other, CONFIG, None, EngineOptions(**OPTIONS), execution=EXECUTION)
    service = EngineService(make_engine())
    stream = service.submit(PROMPTS[0], greedy())
    service.update_weights(other)
    with pytest.raises(ValueError, match="another tree"):
        service.update_weights({})
    assert len(tokens(stream)) == NUM_NEW
    made = tokens(service.submit(PROMPTS[0], greedy()))
    assert made == run(fresh, PROMPTS[:1], greedy())[0][0] != expected[0][0]
    service.close()


def test_what_overflowed_is_gone_with_its_request(params, make_engine, expected):
    engine = make_engine(num_pages=14)  # the same pages again
    engine.update_weights(jax.tree.map(lambda x: x * jnp.nan, params))
    run(engine, PROMPTS[:3], greedy())
    engine.update_weights(params)
    assert run(engine, PROMPTS, greedy()) == expected


def test_an_engine_that_fails_ends_every_stream(make_engine, monkeypatch):
    engine = make_engine()
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    service = EngineService(engine)
    stream = service.submit(PROMPTS[0], greedy())
    assert [delta.finish_reason for delta in stream] == ["error"]
    assert isinstance(service.failure, ZeroDivisionError) and not service.healthy
    with pytest.raises(ServiceClosedError, match="the engine failed"):
        service.update_weights({})
    with pytest.raises(ServiceClosedError, match=r"the engine failed.*ZeroDivisionError"):
        service.submit([1], greedy())
