"""A model behind real HTTP, its clients, and what they read."""

import contextlib
import threading
import urllib.request
from collections.abc import Iterator

import openai
import uvicorn

from cwm_jax.serve.app import create_app
from cwm_jax.serve.options import ServeOptions

MODEL = "tiny"
MAX_LENGTH = 512


def serve_options(**changes) -> ServeOptions:
    return ServeOptions(**{"model_names": (MODEL, "alias"), "max_body_bytes": 100_000, **changes})


@contextlib.contextmanager
def served(service, options: ServeOptions) -> Iterator[str]:
    """The URL of a server in a thread."""
    config = uvicorn.Config(
        create_app(service, options), port=0, log_level="warning", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def openai_client(url: str, api_key: str = "none") -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client:
        yield client


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        assert reply.headers["content-type"].startswith("text/plain")
        lines = reply.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}
