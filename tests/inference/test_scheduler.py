"""Who runs where, without a device: what a call is given never changes while it is made up."""

import pytest
from inference.models import CONFIG

from cwm_jax.inference.cache import CacheLayout
from cwm_jax.inference.pages import PagePool
from cwm_jax.inference.requests import SamplingParams, TokenLogprob
from cwm_jax.inference.scheduler import Request, Scheduler
from cwm_jax.inference.text import TextStream

PAGE, STEPS = 4, 8


def make_scheduler(num_pages):
    layout = CacheLayout(CONFIG, 200, page_tokens=PAGE, spare_tokens=STEPS)
    pools = {kind: PagePool(num_pages) for kind in layout.kinds}
    return Scheduler(layout, pools, max_rows=8)


def submit(scheduler, prompt):
    sampling = SamplingParams(max_tokens=60, temperature=0.0)
    request = Request(prompt, sampling, TextStream(None, ()), len(prompt) + 60, None)
    scheduler.waiting.append(request)
    return request


def prefill(scheduler, shards, num_tokens):
    call = []
    for _ in range(shards):
        call += scheduler.next_pieces(num_tokens, call)
    assert call
    for kind in scheduler.pools:
        written = [
            (page, (piece.start + n) % PAGE)
            for piece in call
            for n, page in enumerate(piece.pages[kind].tolist())
            if page >= 0
        ]
        assert len(written) == len(set(written)), "two tokens in one place"
    assert all(piece.row in scheduler.rows for piece in call), "put back by another of the call"
    for piece in call:
        scheduler.publish(piece.row)


def decode(scheduler):
    for row in scheduler.next_rows(STEPS, constrained=False):
        for _ in range(min(STEPS, row.request.limit - len(row.request.tokens))):
            row.num_cached += 1
            row.request.receive(TokenLogprob(1, 0.0, []))
        scheduler.publish(row)


@pytest.mark.parametrize("num_pages", range(44, 54))
@pytest.mark.parametrize("num_tokens", [16, 64])
def test_rows_of_a_call_are_not_put_back_for_each_other(num_tokens, num_pages):
    """Four decode; then a later shard's row wants more pages than are left."""
    scheduler = make_scheduler(num_pages)
    requests = [submit(scheduler, [10 + n]) for n in range(4)]
    for step in range(200):
        scheduler.remove_finished()
        scheduler.admit()
        while scheduler.num_prefilling:
            prefill(scheduler, 2, num_tokens)
            if 2 * scheduler.num_prefilling <= len(scheduler.rows):
                break
        decode(scheduler)
        if not step:
            requests += [submit(scheduler, [n] * size) for n, size in ((1, 41), (2, 57), (3, 9))]
    assert scheduler.num_preemptions > 0
    assert all(len(request.generated) == 60 for request in requests)
    scheduler.remove_finished()
    assert not scheduler.rows
    assert all(pool.num_free == num_pages for pool in scheduler.pools.values())
