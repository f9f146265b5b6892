"""Small experiments for doctor.py. Each runs in a process of its own, so that a crash is a finding and not the end.

    python tools/doctor_probes.py import diffusers
    python tools/doctor_probes.py torch

A probe returns a table; the last line it prints is that table as JSON behind `MARK`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "doctor-result:"

# An ONNX model of one Identity node (IR 8, opset 13): enough to see which provider a session really gets.
_IDENTITY_MODEL = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02"
    "080142040a00100d"
)


def probe_versions(*distributions: str) -> dict[str, Any]:
    """Installed version of each package, None where it is missing."""
    return {name: _version(name) for name in distributions}


def probe_import(module: str) -> dict[str, Any]:
    """Imports a module."""
    importlib.import_module(module)
    return {}


def probe_python() -> dict[str, Any]:
    """Which Python this is."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "is_64_bit": sys.maxsize > 2**32,
        "in_venv": sys.prefix != sys.base_prefix,
        "system": platform.platform(),
    }


def probe_torch() -> dict[str, Any]:
    """Torch's build and the cards it can use, each tried with a small product of matrices."""
    import torch

    available = torch.cuda.is_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "available": available,
        "architectures": torch.cuda.get_arch_list() if available else [],
        "gpus": [_try_gpu(index) for index in range(torch.cuda.device_count())] if available else [],
    }


def _try_gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    row: dict[str, Any] = {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": properties.major >= 8,  # Ampere and later compute it in hardware
        "error": None,
    }
    try:
        for dtype in (torch.float16, torch.bfloat16) if row["bf16"] else (torch.float16,):
            square = torch.ones(64, 64, dtype=dtype, device=f"cuda:{index}")
            row["error"] = None if (square @ square)[0, 0].item() == 64 else f"wrong result in {dtype}"
    except RuntimeError as error:
        row["error"] = str(error).strip().splitlines()[0]
    return row


def probe_xformers() -> dict[str, Any]:
    """Memory-saving attention on the card; `tried` is false where there is none."""
    import torch
    import xformers.ops

    if not torch.cuda.is_available():
        return {"tried": False}
    query = torch.ones(1, 16, 2, 32, dtype=torch.float16, device="cuda")
    result = xformers.ops.memory_efficient_attention(query, query, query)
    return {"tried": True, "where": "on the card", "finite": bool(torch.isfinite(result).all())}


def probe_bitsandbytes() -> dict[str, Any]:
    """One step of the 8-bit AdamW, on the card if there is one."""
    import bitsandbytes
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.nn.Parameter(torch.ones(8192, device=device))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1, min_8bit_size=1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moved = bool((weight.detach() < 1).all())
    return {"tried": True, "where": "on the card" if device == "cuda" else "on the CPU", "finite": moved}


def probe_onnxruntime() -> dict[str, Any]:
    """The providers that a session really gets; the list of available ones only says what was compiled in."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    offered = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
    session = onnxruntime.InferenceSession(_IDENTITY_MODEL, providers=wanted)
    return {"offered": offered, "real": session.get_providers()}


def probe_tokenizer() -> dict[str, Any]:
    """Our own tokenizer, which checks itself with a known sentence while it is made."""
    from library.text.tokenizer import load_tokenizer

    return {family: len(load_tokenizer(family)) for family in ("sd1", "sd2")}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probes() -> dict[str, Callable[..., dict[str, Any]]]:
    return {
        "versions": probe_versions,
        "import": probe_import,
        "python": probe_python,
        "torch": probe_torch,
        "xformers": probe_xformers,
        "bitsandbytes": probe_bitsandbytes,
        "onnxruntime": probe_onnxruntime,
        "tokenizer": probe_tokenizer,
    }


def main() -> None:
    """Runs the probe named first with the words that follow."""
    here = Path(__file__).resolve().parent
    sys.path[0] = str(here.parent)  # the library, and not tools/, whose test.py hides the standard library's `test`
    result = _probes()[sys.argv[1]](*sys.argv[2:])
    print(f"\n{MARK}{json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
