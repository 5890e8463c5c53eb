"""Promises about the names of released models: what they are and need is said where they are not there."""

from pathlib import Path

import pytest

from holdfast.agent.cli.main import main
from holdfast.agent.released import RELEASES, release_of
from holdfast.engine import inspect_model

CONFIGS = Path(__file__).parents[1] / "fixtures" / "configs"


@pytest.mark.parametrize("name", RELEASES)
def test_the_sizes_are_those_that_inspect_computes(name: str) -> None:
    release, report = RELEASES[name], inspect_model(CONFIGS / name)
    assert release.name == report.name
    assert release.disk_bytes == pytest.approx(report.memory_bytes, rel=1e-3)
    assert release.cpu_bytes == pytest.approx(report.cpu_bytes, rel=1e-2)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("deepseek-v4-flash", "DeepSeek-V4-Flash"),
        ("deepseek-ai/DeepSeek-V4-Flash", "DeepSeek-V4-Flash"),
        ("DeepSeek_V4_Flash_0731", "DeepSeek-V4-Flash"),
        ("v4-flash", "DeepSeek-V4-Flash"),
        ("flash", "DeepSeek-V4-Flash"),
        ("deepseek-v4-pro", "DeepSeek-V4-Pro"),
        ("deepseek-ai/DeepSeek-V4-Pro-DSpark", "DeepSeek-V4-Pro"),
    ],
)
def test_a_released_model_is_named_with_what_it_needs(model: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hi", "--model", model]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"holdfast: {name} is not on this machine") and err.count("\n") == 1
    assert f"deepseek-ai/{name}" in err and "TB on a CPU; this machine has" in err


@pytest.mark.parametrize("model", ["deepseek-v3", "deepseek-v4.1-flash", "llama", "./flash", "/srv/v4-flash", "prompt"])
def test_other_names_are_no_release(model: str) -> None:
    assert release_of(model) is None


def test_a_directory_of_that_name_is_that_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flash").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["run", "hi", "--model", "flash"]) == 2
    assert "model flash has no config.json" in capfd.readouterr().err
