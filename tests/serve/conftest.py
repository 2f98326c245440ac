"""A tiny model behind real HTTP, and one whose answers are written in advance."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import jax
import openai
import pytest
from fake_service import FakeService
from serving import MAX_LENGTH, openai_client, serve_options, served
from tiny import VOCAB_SIZE, tiny_model

from cwm_jax.config import ModelConfig
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.service import EngineService
from cwm_jax.model.transformer import init
from cwm_jax.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], VOCAB_SIZE)


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return tiny_model(num_hidden_layers=2, max_position_embeddings=MAX_LENGTH)


@pytest.fixture(scope="session")
def service(tokenizer, model_config) -> Iterator[EngineService]:
    options = EngineOptions(
        max_length=MAX_LENGTH, max_rows=4, max_waiting=8, page_tokens=16, prefill_tokens=128
    )
    params = init(model_config, jax.random.key(0))
    service = EngineService(Engine(params, model_config, tokenizer, options))
    yield service
    service.close(drain=False)


@pytest.fixture(scope="session")
def url(service) -> Iterator[str]:
    with served(service, serve_options()) as url:
        yield url


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai_client(url) as client:
        yield client


@pytest.fixture
def fake(tokenizer, model_config) -> FakeService:
    return FakeService(tokenizer, model_config, max_length=4096)


@pytest.fixture
def fake_url(fake) -> Iterator[str]:
    with served(fake, serve_options(request_timeout_s=1.0, body_timeout_s=0.5)) as url:
        yield url


@pytest.fixture
def fake_client(fake_url) -> Iterator[openai.OpenAI]:
    with openai_client(fake_url) as client:
        yield client
