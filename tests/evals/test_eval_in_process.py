"""A model folder on the engine answers as the same model behind this project's server."""

import concurrent.futures
import dataclasses
import shutil
import textwrap
from pathlib import Path

import jax
import pytest
from serve.serving import serve_options, served
from tiny import VOCAB_SIZE, tiny_model
from toy_set import write_toy_file

from convert import save_hf
from cwm_jax.__main__ import main
from cwm_jax.data.chat import Message
from cwm_jax.evals import catalog
from cwm_jax.evals.models import ModelFailure, PromptTooLongError, in_process
from cwm_jax.evals.models.in_process import EngineModel, fingerprint, open_folder
from cwm_jax.evals.models.openai import ServerModel, ServerOptions
from cwm_jax.evals.problem import Prompt
from cwm_jax.evals.runs.records import read_records, read_run
from cwm_jax.model.transformer import init
from cwm_jax.tokenizer import train_tokenizer

MAX_LENGTH = 256
ASKED = (Message("system", "be brief"), Message("user", "What is 1 + 2?"))
PROMPTS = {
    "dialog": Prompt(messages=ASKED, max_tokens=12),
    "reasoning": Prompt(messages=ASKED[1:], max_tokens=12, think=True),
    "begun": Prompt(messages=(*ASKED, Message("assistant", "<think>\nIt")), max_tokens=12),
    "text": Prompt(text="<|begin_of_text|>def f<|frame_sep|>", max_tokens=40, stop=("e", "  ")),
    "tokens": Prompt(tokens=[1, 2, 3], max_tokens=500, stop=("<|frame_sep|>",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config = tiny_model(num_hidden_layers=2, max_position_embeddings=MAX_LENGTH)
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], VOCAB_SIZE)
    path = tmp_path_factory.mktemp("run") / "tiny"
    save_hf(path / "export", config, init(config, jax.random.key(0)), tokenizer)
    return path


@pytest.fixture(scope="module")
def model(folder):
    model = open_folder(folder, parallel=4)
    yield model
    model.close()


@pytest.fixture(scope="module")
def url(model):
    with served(model._service, serve_options()) as url:
        yield url


def ask(model, prompt, seed=5):
    return model.answer(prompt, temperature=1.0, top_p=0.95, seed=seed)


@pytest.mark.parametrize("name", PROMPTS)
def test_engine_and_server_give_the_same_answers(model, url, name):
    prompt = PROMPTS[name]
    own = ask(model, prompt)
    assert own.num_tokens == len(own.token_ids) > 0
    assert own.text or own.reasoning
    servers = [ServerModel(url, model.tokenizer, ServerOptions(completions=c)) for c in (0, 1)]
    for server in servers:
        other = ask(server, prompt)
        token_ids = other.token_ids if other.token_ids is not None else own.token_ids
        assert dataclasses.replace(other, token_ids=token_ids) == own
    assert ask(servers[1], prompt).token_ids == own.token_ids
    assert ask(model, prompt, seed=6).token_ids != own.token_ids


def test_answers_end_at_stops_and_at_the_end_of_the_row(model):
    stopped, cut = ask(model, PROMPTS["text"]), ask(model, PROMPTS["tokens"])
    assert stopped.finish_reason == "stop" and "e" not in stopped.text
    assert (cut.finish_reason, cut.num_tokens) == ("length", MAX_LENGTH - 3) or (
        cut.finish_reason == "stop" and cut.num_tokens < MAX_LENGTH - 3
    )


def test_the_name_of_a_special_token_ends_an_answer_at_that_token(model, url):
    names = {i: name for name, i in model.tokenizer.special_tokens.items()}
    plain = Prompt(tokens=[1, 2, 3], max_tokens=60)
    whole = ask(model, plain).token_ids
    place = next(n for n, token in enumerate(whole[:-1]) if token in names and n > 2)
    prompt = dataclasses.replace(plain, stop=(names[whole[place]],))
    answer = ask(model, prompt)
    assert answer.token_ids == whole[: place + 1] and answer.finish_reason == "stop"
    assert answer.text == model.tokenizer.decode(whole[:place])
    assert ask(ServerModel(url, model.tokenizer, ServerOptions()), prompt) == answer


def test_a_prompt_without_room_is_too_long(model, url):
    long = Prompt(tokens=[1] * MAX_LENGTH, max_tokens=1)
    with pytest.raises(PromptTooLongError, match=r"has 256 tokens; the model's rows hold 256"):
        ask(model, long)
    with pytest.raises(PromptTooLongError):
        ask(ServerModel(url, model.tokenizer, ServerOptions()), long)
    assert ask(model, Prompt(tokens=[1] * (MAX_LENGTH - 1), max_tokens=9)).num_tokens == 1


def test_threads_share_the_batch_and_change_nothing(model):
    alone = [ask(model, PROMPTS["dialog"], seed=s).token_ids for s in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        found = threads.map(lambda s: ask(model, PROMPTS["dialog"], seed=s).token_ids, range(6))
        assert [*found] == alone


def test_a_runs_folder_stands_for_its_export_and_checkpoints_for_none(
    folder, model, tmp_path, monkeypatch
):
    assert model.name == "tiny/export"
    assert model.identity()["fingerprint"] == fingerprint(folder / "export")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"without an export.*convert to-hf"):
        open_folder(tmp_path, parallel=1)
    copy = tmp_path / "copy"
    shutil.copytree(folder / "export", copy)
    monkeypatch.setattr(in_process, "_FINGERPRINT_BYTES", 64)
    (weights,) = copy.glob("*.safetensors")
    content = weights.read_bytes()
    assert fingerprint(copy) == fingerprint(folder / "export")
    for place in (8, len(content) - 1):  # at either end
        changed = bytearray(content)
        changed[place] ^= 1
        weights.write_bytes(changed)
        assert fingerprint(copy) != fingerprint(folder / "export")


def test_the_command_measures_a_folder(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(catalog, "MODULES", ("toy_set",))
    data, out = write_toy_file(tmp_path / "toy.jsonl", 3), tmp_path / "out"
    arguments = ["eval", "toy", "--model", str(folder), "--data", str(data), "--mode", "text"]
    assert main([*arguments, "--out", str(out), "--parallel", "4"]) == 0
    records = read_records(out)
    assert len(records) == 6 and all(0 < record.num_tokens <= 8 for record in records.values())
    assert read_run(out)["model"]["name"] == "tiny/export"
    assert "toy/text: mean" in capfd.readouterr().out
    assert main([*arguments, "--out", str(out), "--max-length", "64"]) == 2
    assert "model.max_length was 256 and is 64" in capfd.readouterr().err


def test_a_closed_engine_says_so(folder):
    model = open_folder(folder, parallel=1)
    assert isinstance(model, EngineModel)
    model.close()
    with pytest.raises(ModelFailure, match="being closed"):
        ask(model, PROMPTS["dialog"])
