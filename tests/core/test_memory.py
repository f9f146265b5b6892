"""Main memory of this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from library.core.memory import peak_process_mib
before = peak_process_mib()
held = bytearray(100 << 20)
held[::4096] = b"x" * len(held[::4096])
during = peak_process_mib()
del held
print(before, during, peak_process_mib())
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin", "win32"), reason="not told there")
def test_the_peak_grows_with_what_is_held_and_never_shrinks() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, during, after = map(float, done.stdout.split())
    assert 1 < before < 90
    assert 100 < during < 200
    assert after > during - 1
