"""Pages: none is lost, none is given twice, the one that nobody has wanted longest goes first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_jax.inference.pages import PagePool, page_keys

ACTIONS = ("take", "publish", "release", "hold", "forget")


def test_keys_are_of_all_tokens_up_to_the_pages_end():
    tokens = list(range(20))
    keys = page_keys(tokens, 4)
    assert len(keys) == 5 and len(set(keys)) == 5
    assert page_keys(tokens[:19], 4) == keys[:4]
    assert page_keys(tokens, 4, keys[:2]) == keys
    other = [9, *tokens[1:]]
    assert not set(page_keys(other, 4)) & set(keys)
    assert page_keys([*tokens[:16], *tokens[12:16]], 4)[4] != keys[3]  # equal tokens elsewhere


def test_kept_pages_are_found_until_they_are_needed():
    pool = PagePool(3)
    pages = [pool.take() for _ in range(3)]
    assert sorted(pages) == [0, 1, 2] and pool.num_free == 0
    for page, key in zip(pages, (b"a", b"b", b"c"), strict=True):
        pool.publish(page, key)
        pool.release(page)
    assert pool.num_free == pool.num_kept == 3
    found = pool.find(b"a")
    pool.hold(found)
    assert found == pages[0] and pool.held_once(found) and pool.num_free == 2
    assert pool.take() == pages[1] and pool.find(b"b") is None
    pool.hold(found)
    pool.release(found)
    assert pool.num_free == 1 and pool.find(b"a") == found
    pool.forget_all()
    assert pool.find(b"a") is pool.find(b"c") is None
    assert pool.num_free == 1 and pool.num_kept == 0
    pool.release(found)
    assert pool.num_free == 2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)),
        max_size=80,
    )
)
def test_pages_are_free_or_held_and_never_both(actions):
    pool, held = PagePool(5), []
    for action, n in actions:
        page = held[n % len(held)] if held else None
        if action == "take" and pool.num_free:
            page = pool.take()
            assert page not in held
            held.append(page)
        elif action == "publish" and held:
            pool.publish(page, bytes([n]))
        elif action == "release" and held:
            held.remove(page)
            pool.release(page)
        elif action == "hold" and (found := pool.find(bytes([n]))) is not None:
            pool.hold(found)
            held.append(found)
        elif action == "forget":
            pool.forget_all()
        assert pool.num_free == 5 - len(set(held))
