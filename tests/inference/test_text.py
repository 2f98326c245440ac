"""Text as it comes: the whole at the end, and never more than is certain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_jax.inference.text import TextStream
from cwm_jax.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["naïve naïve 日本 日本 end ending"], 516)
TEXTS = st.text(alphabet="naïve日本 end😀", max_size=40)


def pieces(text: str, stop=()):
    """What each token of a text made certain, and whether it was stopped."""
    stream, out = TextStream(TOKENIZER, stop), []
    for token in TOKENIZER.encode(text):
        stopped = stream.push(token)
        out.append(stream.take())
        if stopped:
            break
    return [*out, stream.finish()], stream.stopped


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS)
def test_the_pieces_are_the_text_in_whole_characters(text):
    made, stopped = pieces(text)
    assert "".join(made) == text and not stopped
    assert "\ufffd" not in "".join(made)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS, st.lists(st.text(alphabet="naïe 日d", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_string_is_ever_given_out(text, stop):
    made, stopped = pieces(text, tuple(stop))
    # the first to be complete ends the text; of two in one token the first in the text
    tokens, ended = TOKENIZER.encode(text), False
    for n in range(1, len(tokens) + 1):
        so_far = TOKENIZER.decode_bytes(tokens[:n]).decode("utf-8", "ignore")
        found = [so_far.index(s) for s in stop if s in so_far]
        if found:
            text, ended = so_far[: min(found)], True
            break
    assert ("".join(made), stopped) == (text, ended)
    for n in range(len(made)):
        assert text.startswith("".join(made[:n]))


def test_what_can_still_begin_a_stop_string_waits():
    stream = TextStream(TOKENIZER, ("ending",))
    given = []
    for token in [*TOKENIZER.encode("the end"), *TOKENIZER.encode(" of it")]:
        stream.push(token)
        given.append(stream.take())
    before = len(TOKENIZER.encode("the end"))
    assert "".join(given[:before]) == "the " and "".join(given) == "the end of it"


def test_bytes_that_are_no_text_become_replacement_characters():
    stream = TextStream(TOKENIZER)
    for token in TOKENIZER.encode_bytes(b"a\xff\xe6"):
        stream.push(token)
    assert stream.take() == "a\ufffd" and stream.finish() == "\ufffd"


def test_ids_that_the_tokenizer_does_not_have_are_no_text():
    stream = TextStream(TOKENIZER)
    assert not stream.push(TOKENIZER.vocab_size)
    assert stream.take() + stream.finish() == ""


@pytest.mark.parametrize("stop", [(), ("a",)])
def test_without_tokenizer_there_is_no_text(stop):
    stream = TextStream(None, stop)
    assert not any(stream.push(int(token)) for token in np.arange(300))
    assert stream.take() + stream.finish() == ""
