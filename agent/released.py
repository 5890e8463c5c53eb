"""The models that are released under names: what `--model deepseek-v4-flash` means where there is no such directory.

Owns names and sizes, as `holdfast model inspect` computes them from the published configurations. Must not load the
engine.
"""

import os
import re
import shutil
from dataclasses import dataclass

NAME = re.compile(r"(?:deepseek)?v4(flash|pro)[a-z0-9]*|(flash|pro)")
NVIDIA = "/dev/nvidiactl"  # there where a GPU and its driver are


@dataclass(frozen=True)
class Release:
    """`disk_bytes` are also the bytes of packed weights on a GPU; a CPU expands them to `cpu_bytes`."""

    name: str
    parameters: str
    disk_bytes: float
    cpu_bytes: float

    def how_to_get(self) -> str:
        """What it is, where it is to be had, and what this machine lacks for it."""
        return (
            f"{self.name} is not on this machine ({self.parameters} parameters): download its"
            f" {self.disk_bytes / 1e9:.0f} GB, for example with `hf download deepseek-ai/{self.name}"
            f" --local-dir DIR`, and"
            f" name it with --model DIR; it takes {self.disk_bytes / 1e9:.0f} GB of memory on GPUs, or"
            f" {self.cpu_bytes / 1e12:.1f} TB on a CPU; {self._lacks()}"
        )

    def _lacks(self) -> str:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free = shutil.disk_usage(".").free
        has = f"this machine has {memory / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB free on this disk"
        if os.path.exists(NVIDIA):
            return f"{has}, and an NVIDIA GPU: `nvidia-smi` says how large"
        return f"{has}, and no NVIDIA GPU"


RELEASES = {
    "flash": Release("DeepSeek-V4-Flash", "284 billion", 159.61e9, 1.16e12),
    "pro": Release("DeepSeek-V4-Pro", "1,573 billion", 864.70e9, 6.40e12),
}


def release_of(name: str) -> Release | None:
    """The release that a name means: `flash`, `deepseek-v4-flash`, `deepseek-ai/DeepSeek-V4-Flash-0731`, ..."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # a path
        return None
    found = NAME.fullmatch(re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower()))
    return RELEASES[found[1] or found[2]] if found else None
