"""Set-up shared by all tests: no network, one thread, a device chosen by `tools/test.py --device`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before any library reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # comparisons on a card need all the digits of float32

PHOTOS = ROOT / "tests" / "fixtures" / "photos"


SLOW_CASES = ROOT / "tests" / "slow_cases.txt"


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the listed cases as slow; a line without a case would do nothing, so it is an error."""
    lines = SLOW_CASES.read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
    if any("::" in argument for argument in config.args):  # single tests were asked for
        return
    files = {item.nodeid.split("::")[0] for item in items}
    lost = {case for case in listed if case.split("::")[0] in files} - {item.nodeid for item in items}
    if lost:
        raise pytest.UsageError(f"{SLOW_CASES}: no such test: {', '.join(sorted(lost))}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where device-dependent tests run; `python tools/test.py --device cuda` sets it."""
    return torch.device(os.environ.get("SD_ATELIER_TEST_DEVICE", "cpu"))


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of real photographs of differing shapes, each with a caption file."""
    return PHOTOS


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models as single files, by kind: sd1, sd2, sd2_v."""
    from library.models.save import save_single_file
    from library.models.tiny import make_tiny_model

    folder = tmp_path_factory.mktemp("tiny_models")
    paths = {kind: folder / f"{kind}.safetensors" for kind in ("sd1", "sd2", "sd2_v")}
    for kind, path in paths.items():
        save_single_file(make_tiny_model(kind, seed=0), path, {})
    return paths


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the precision of the first run of a process; here each begins anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
