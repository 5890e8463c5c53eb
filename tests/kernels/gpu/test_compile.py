"""Every kernel compiles at the shapes of the real models, and the hot ones keep everything in registers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.kernels.gpu import jit

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

ROOT = Path(__file__).parents[3]
FAMILIES = sorted(p.stem for p in (ROOT / "kernels" / "bench").glob("*.py") if "def cases(" in p.read_text())
MAY_SPILL: set[str] = set()  # kernels whose time is not spent in a loop, and why


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("capability", "models"), [(90, ("flash", "pro")), (100, ("flash",))], ids=["sm_90", "sm_100"])
def test_kernels_compile_without_spills(
    capability: int, models: tuple[str, ...], family: str, clean_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "tests.kernels.gpu.aot", str(capability), family, *models]
    result = subprocess.run(command, cwd=ROOT, env=clean_environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert kernels
    spilled = [k for k in kernels if k["spilled_bytes"] and k["kernel"] not in MAY_SPILL]
    assert not spilled, json.dumps(spilled, indent=1)
