"""One model behind HTTP: where it is, how it is asked, what it holds and costs.

Owns the checks of these values, and where a key comes from: the environment alone. Must not connect to anything.
"""

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

KEY_ENV = "HOLDFAST_API_KEY"
MOST_OUTPUT = 16_384  # of one answer or round of calls, where the entry does not say
# pocket's vocabulary of 1,536 needs 1.7 to 2 tokens for one of a large model's (1.9 characters of source against 3.6)
OURS_PER_TOKEN = 1.5


class Endpoint(BaseModel):
    """One model behind HTTP. Prices are per million tokens; `context` and `output` are tokens of the endpoint.

    `api`: `chat` (chat completions), or the server that takes token ids. `reasoning_field` is where it wants its
    earlier reasoning back. `tools`: `simple` is the six that pocket has. `extra` is sent with every request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str = Field(min_length=1, max_length=256)
    key_env: str = Field(default=KEY_ENV, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    api: Literal["chat", "vllm", "sglang", "llama.cpp"] = "chat"
    tokenizer: Path | None = None
    context: int = Field(default=131_072, ge=2048)
    output: int | None = Field(default=None, ge=1)
    thinking: bool = True
    tools: Literal["full", "simple"] = "full"
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    extra: dict[str, Any] = Field(default_factory=dict)
    price_in: float | None = Field(default=None, ge=0)
    price_cached: float | None = Field(default=None, ge=0)
    price_out: float | None = Field(default=None, ge=0)

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise ValueError("it must be an address such as https://api.example.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("it must have no user, password, query or fragment; a key comes from the environment")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _has_vocabulary(self) -> "Endpoint":
        if self.api != "chat" and self.tokenizer is None:
            raise ValueError(
                f"api = {self.api!r} takes token ids: name the directory of the model's tokenizer as `tokenizer`"
            )
        return self

    @field_validator("tokenizer")
    @classmethod
    def _is_there(cls, directory: Path | None) -> Path | None:
        if directory is not None and not (directory := directory.expanduser()).joinpath("tokenizer.json").is_file():
            raise ValueError(f"{directory} has no tokenizer.json: name the directory of the model's tokenizer")
        return directory

    @property
    def identity(self) -> str:
        """Binds a session to who wrote it: a host and the name of a model there."""
        return f"remote:{urlsplit(self.url).netloc}#{self.model}"

    @property
    def share(self) -> float:
        """Tokens of our log for one of the endpoint's."""
        return OURS_PER_TOKEN if self.tokenizer is None else 1.0

    @property
    def most_output(self) -> int:
        """Tokens of our log that one answer may have."""
        return int((self.output or MOST_OUTPUT) * self.share)

    def key(self) -> str | None:
        """From the environment. Raises ValueError for one that would travel readable, or that no header can hold."""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            return None
        if not key.isascii() or not key.isprintable():
            raise ValueError(f"{self.key_env} has characters that no HTTP header can hold: set it again")
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not _is_near(parts.hostname or ""):
            raise ValueError(
                f"{self.url} is not encrypted, and the key of {self.key_env} would be readable on the way:"
                f" use https, or unset {self.key_env}"
            )
        return key


def _is_near(host: str) -> bool:
    """Whether a host is this machine or an address of a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
