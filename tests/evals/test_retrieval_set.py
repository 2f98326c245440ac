"""Haystacks have the length that is asked for, and who reads them can answer."""

import ast
import itertools
import re
from collections import Counter

import pytest

import cwm_jax.tokenizer as tokenizer_module
from cwm_jax.evals.generated import filler
from cwm_jax.evals.generated.retrieval_tasks import TASKS
from cwm_jax.evals.problem import Answer, SetOptions
from cwm_jax.evals.sets.retrieval import ENTRIES, MODES, num_tokens
from cwm_jax.tokenizer import train_tokenizer

LENGTHS = (700, 2500)
NOTE = re.compile(r"^Note: the access code of (\w+) is (\d+)\.$", re.MULTILINE)


@pytest.fixture(scope="module")
def tokenizer():
    rng = filler.Random(0)
    texts = [filler.sentence(rng) for _ in range(300)]
    texts += [filler.function(rng, filler.word(rng)) for _ in range(100)]
    return train_tokenizer(texts, 900)


@pytest.fixture(scope="module")
def load(tokenizer):
    def load(mode="chat", **values):
        values = {"lengths": ",".join(map(str, LENGTHS)), "count": "1", "depths": "40"} | values
        options = SetOptions(mode=mode, tokenizer=tokenizer, values=values)
        return ENTRIES["retrieval"].load(None, options)

    return load


def text_of(prompt) -> str:
    return prompt.text if prompt.messages is None else prompt.messages[-1].content


def haystack(text: str) -> str:
    return text.rpartition("Question: ")[0].partition("\n\n")[2]


def read_answer(task: str, text: str) -> list[str]:
    """The right values, from the prompt alone."""
    lines, question = haystack(text), text.rpartition("Question: ")[2]
    if task in ("needle", "multi_key", "all_keys", "multi_value", "multi_query"):
        notes = NOTE.findall(lines)
        return [value for key, value in notes if re.search(rf"\b{key}\b", question)]
    if task == "variables":
        values: dict[str, str] = {}
        for name, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", lines, re.MULTILINE):
            values[name] = source if source.isdigit() else values[source]
        return [name for name, value in values.items() if value in question]
    if task.endswith("_words"):
        count = int(re.search(r"\d+", question)[0])
        counts = Counter(lines.split()).most_common(count + 1)
        assert counts[count - 1][1] > counts[count][1], counts
        return [word for word, _ in counts[:count]]
    returned = {
        node.name: ast.unparse(node.body[-1].value)
        for node in ast.parse(lines).body
        if isinstance(node, ast.FunctionDef)
    }
    value = re.search(r"(get_\w+)\(\)", question)[1]
    while not value.isdigit():
        value = returned[value.removesuffix("()")]
    return [value]


def judged(problem, text):
    return problem.attempt().step(Answer(text=text, finish_reason="stop"))


@pytest.mark.parametrize("mode", MODES)
def test_prompts_have_the_length_and_who_reads_them_is_right(load, tokenizer, mode):
    problems = load(mode).problems
    assert {p.labels["task"] for p in problems} == {*TASKS}
    for problem in problems:
        prompt, length = problem.attempt().start(), int(problem.labels["length"])
        assert 0.99 * length <= num_tokens(prompt, tokenizer) <= length
        assert prompt.think == (mode == "reasoning")
        values = read_answer(problem.labels["task"], text_of(prompt))
        verdict = judged(problem, f"They are {', '.join(values).upper()}.")
        assert verdict.passed, (problem.name, verdict)
        assert verdict.scores == {"recall": 1.0, "any": 1.0}
        assert sorted(verdict.info["values"]) == sorted(values)


def test_a_part_of_the_values_is_a_part_of_the_recall(load):
    (problem,) = load(tasks="multi_value", lengths="700").problems
    values = read_answer("multi_value", text_of(problem.attempt().start()))
    assert len({*values}) == 4
    verdict = judged(problem, " ".join(values[:3]))
    assert (verdict.passed, verdict.scores) == (False, {"recall": 0.75, "any": 1.0})
    assert verdict.reason == f"not named: {values[3]}"
    assert judged(problem, "").scores == {"recall": 0.0, "any": 0.0}


def test_another_number_or_a_part_of_a_word_is_not_the_value(load):
    for problem in load(tasks="needle,common_words", lengths="700").problems:
        values = judged(problem, "").info["values"]
        assert not judged(problem, "".join(values) + "x").scores["any"]
        assert not judged(problem, " ".join(f"x{v} {v}9" for v in values)).scores["any"]


def test_who_does_not_find_it_cannot_know_it(load):
    """The question alone, as the set's text for people shows, has no value in it."""
    for problem in load(tasks="needle,multi_query,code_chain,variables").problems:
        question = text_of(problem.attempt().start()).rpartition("Question: ")[2]
        assert not judged(problem, question).scores["any"]


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.has_depth])
def test_what_is_asked_for_lies_at_its_depth(load, tokenizer, task):
    problems = load(tasks=task, depths="0,30,100", lengths="2500").problems
    assert [p.labels["depth"] for p in problems] == ["0 %", "30 %", "100 %"]
    for problem, depth in zip(problems, (0.0, 0.3, 1.0), strict=True):
        text = haystack(text_of(problem.attempt().start()))
        (value,) = judged(problem, "").info["values"]
        if task.startswith("code"):
            needle = re.search(rf"def \w+\(\):\n    return {value}\n\n\n", text)
        else:
            needle = re.search(rf"Note: .* {value}\.\n", text)
        before, after = (
            len(tokenizer.encode(part)) for part in (text[: needle.start()], text[needle.end() :])
        )
        # multi_key has three more notes, which are no filler
        assert before / (before + after) == pytest.approx(depth, abs=0.05)
        if depth in (0.0, 1.0) and task != "multi_key":
            assert not (before if depth == 0 else after)


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others(load):
    def prompts(seed):
        return [text_of(p.attempt().start()) for p in load(seed=seed, lengths="700").problems]

    first = prompts("1")
    assert first == prompts("1")
    assert all(a != b for a, b in zip(first, prompts("2"), strict=True))
    both = load(seed="1", lengths="900,700").problems
    assert first == [text_of(p.attempt().start()) for p in both if p.labels["length"] == "700"]
    two = load(tasks="needle", count="2", lengths="700").problems
    assert text_of(two[0].attempt().start()) != text_of(two[1].attempt().start())


def test_text_that_the_tokenizer_cuts_has_the_length_too(load, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "MAX_SLICE_CHARACTERS", 101)
    problems = load(tasks="needle,common_words,code_constant", lengths="2500").problems
    for problem in problems:
        assert 2475 <= num_tokens(problem.attempt().start(), tokenizer) <= 2500


def test_a_haystack_repeats_itself_only_when_it_must(load):
    (problem,) = load(tasks="all_keys", lengths="2500").problems
    keys = Counter(key for key, _ in NOTE.findall(text_of(problem.attempt().start())))
    assert len(keys) > 50
    assert sum(count - 1 for count in keys.values()) <= 3  # what meets the length


def test_what_is_asked_for_is_there_once(load, monkeypatch):
    """Where there are few names to draw from."""
    monkeypatch.setattr(filler, "_CONSONANTS", "bd")
    monkeypatch.setattr(filler, "_VOWELS", "aei")
    for problem in load(tasks="all_keys,code_constant", lengths="2500", count="40").problems:
        text = text_of(problem.attempt().start())
        question = text.rpartition("Question: ")[2]
        (name,) = re.findall(r"code of (\w+)|(get_\w+)", question)
        assert len(re.findall(rf"\b{''.join(name)}\b", haystack(text))) == 1


def test_lines_of_a_file_take_the_place_of_made_ones(load, tokenizer, tmp_path):
    words = ["alpha", "beta", "gamma", "delta", "of", "to"]
    lines = [" ".join(c) for n in (1, 2, 3, 4) for c in itertools.permutations(words, n)]
    (tmp_path / "t.txt").write_text("\n\n".join(lines))
    for problem in load(tasks="needle", text=str(tmp_path / "t.txt")).problems:
        prompt = problem.attempt().start()
        found = {*haystack(text_of(prompt)).splitlines()}
        assert len(found - {*lines}) == 1
        assert num_tokens(prompt, tokenizer) >= 0.99 * int(problem.labels["length"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lengths": "300", "tasks": "common_words"},
            "too short for the task common_words: [0-9]+",
        ),
        ({"lengths": "90", "tasks": "frequent_words"}, "too short for the task frequent_words"),
        ({"lengths": "40", "tasks": "needle"}, "has 40, which is too short for the task needle"),
        ({"lengths": "4k"}, "'4k'; expected a whole number"),
        ({"lengths": "700,700"}, "a value is there twice"),
        ({"depths": "0,101"}, "depths has 101; expected percent"),
        ({"tasks": "needle,words"}, "has 'words'; expected some of needle,"),
        ({"count": "0"}, "'0'; expected a whole number, 1 or more"),
        ({"text": "nowhere.txt"}, "nowhere.txt: cannot be read"),
    ],
)
def test_what_cannot_be_made_is_refused(load, values, message):
    with pytest.raises(ValueError, match=message):
        load(**values)


def test_files_that_are_no_filler_are_refused(load, tmp_path):
    (tmp_path / "special").write_text("plain\nends here <|end_of_text|>\n")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "long").write_text("many words in a single line " * 9)
    with pytest.raises(ValueError, match="name of a special token in 'ends here"):
        load(text=str(tmp_path / "special"))
    with pytest.raises(ValueError, match="has no line"):
        load(text=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="the pieces of text are too long for it"):
        load(text=str(tmp_path / "long"), tasks="needle")


def test_without_a_tokenizer_there_are_no_lengths():
    with pytest.raises(ValueError, match="its tokenizer is not known; expected one"):
        ENTRIES["retrieval"].load(None, SetOptions(mode="chat"))
