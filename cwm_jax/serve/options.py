"""How a server behaves; the command line fills it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Limits and defaults of the HTTP side; those of the engine are ``EngineOptions``.

    Attributes:
        model_names: under which the model is asked for; the first is in the replies.
        api_keys: any of them is let in; empty: everyone is.
        reasoning: whether a chat that does not say reasons before it answers.
        request_timeout_s: from admission to the last token.
        body_timeout_s: in which a request's body must have come.
        max_body_bytes: of a request. 8 MiB hold a prompt of 131,072 tokens in any spelling of JSON.
        max_sequences: prompts times n of one request.
        max_open_requests: without a whole reply, of all clients together.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    reasoning: bool = True
    request_timeout_s: float = 600
    body_timeout_s: float = 30
    max_body_bytes: int = 8 * 2**20
    max_sequences: int = 256
    max_open_requests: int = 1024

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise ValueError(f"model_names is {self.model_names!r}; expected one or more names")
        if not all(key and key.isascii() and key.isprintable() for key in self.api_keys):
            raise ValueError(
                "an API key is empty or has characters that no header carries; expected printable "
                "ASCII"
            )
        for name in (
            "request_timeout_s",
            "body_timeout_s",
            "max_body_bytes",
            "max_sequences",
            "max_open_requests",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
