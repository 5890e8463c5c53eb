"""Promises of models.toml and of addresses: what is wrong is one line, and a key never travels readable."""

from pathlib import Path

import pytest

from holdfast.agent.config import UsageError
from holdfast.agent.models.remote.catalogue import endpoint_of, endpoints
from holdfast.agent.models.remote.endpoint import Endpoint


def test_an_address_and_an_entry_are_endpoints(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(
        '[big]\nurl = "https://api.example.com/v1/"\nmodel = "deepseek-v4"\nkey_env = "BIG_KEY"\ncontext = 65536\n'
        "price_in = 0.5\nextra = { seed = 1 }\n"
    )
    found = endpoint_of("big", tmp_path)
    assert found is not None and found.identity == "remote:api.example.com#deepseek-v4"
    assert found.url == "https://api.example.com/v1" and found.extra == {"seed": 1}
    here = endpoint_of("http://127.0.0.1:8080/v1#m:7b", tmp_path)
    assert here is not None and here.model == "m:7b"
    assert endpoint_of("no-such-name", tmp_path) is None and endpoint_of("a/b", tmp_path) is None


WRONG = [
    ("x = 1", "write [x] above its values"),
    ("[a]\nurl = 'ftp://x'\nmodel = 'm'", "url: it must be an address"),
    ("[a]\nurl = 'https://user:secret@x/v1'\nmodel = 'm'", "a key comes from the environment"),
    ("[a]\nurl = 'https://x/v1'", "model: Field required"),
    ("[a]\nurl = 'https://x/v1'\nmodel = 'm'\nkey = 'sk-1'", "key: Extra inputs"),
    ("[a]\nurl = 'https://x/v1'\nmodel = 'm'\ncontext = 7", "context:"),
    ("[a]\nurl = 'https://x/v1'\nmodel = 'm'\ntokenizer = '/nowhere'", "has no tokenizer.json"),
    ("[pocket]\nurl = 'https://x/v1'\nmodel = 'm'", "cannot be the name"),
    ("[a\n", "is not TOML"),
    ("\0", "is not TOML"),
]


@pytest.mark.parametrize(("content", "told"), WRONG)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "models.toml").write_text(content)
    with pytest.raises(UsageError, match=r"models\.toml") as refused:
        endpoints(tmp_path)
    assert told in str(refused.value) and str(refused.value).isprintable() and "sk-1" not in str(refused.value)


def test_an_address_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write it after a #"):
        endpoint_of("https://api.example.com/v1", tmp_path)


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [("https://x.example", True), ("http://127.0.0.1:1", True), ("http://localhost:1", True), ("http://10.1.2.3", True),
     ("http://x.example", False), ("http://8.8.8.8/v1", False), ("http://localhost.example", False)],
)  # fmt: skip
def test_a_key_travels_encrypted_or_not_far(monkeypatch: pytest.MonkeyPatch, url: str, is_sent: bool) -> None:
    endpoint = Endpoint(url=url, model="m")
    monkeypatch.setenv("HOLDFAST_API_KEY", "sk-1")
    if is_sent:
        assert endpoint.key() == "sk-1"
    else:
        with pytest.raises(ValueError, match="is not encrypted") as refused:
            endpoint.key()
        assert "sk-1" not in str(refused.value)
    monkeypatch.delenv("HOLDFAST_API_KEY")
    assert endpoint.key() is None
