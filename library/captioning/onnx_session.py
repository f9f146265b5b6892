"""ONNX files run by onnxruntime: on a card where there is one, else on the CPU, and the log says which it became.

onnxruntime itself refuses files that reach for data outside their folder (`../`, whole paths, links).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from library.core.errors import UserError
from library.core.log import get_logger
from library.core.optional import import_optional

CPU = "CPUExecutionProvider"
PACKAGE = "onnxruntime==1.31.1"

_LOG = get_logger(__name__)
# In the order of trial. The settings of CUDA keep results from changing from run to run: no search for the quickest
# convolution by the clock, no numbers of 19 bits.
_CARDS: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "CUDAExecutionProvider": ("an NVIDIA card", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        "ROCMExecutionProvider": ("an AMD card", {}),
        "MIGraphXExecutionProvider": ("an AMD card", {}),
        "DmlExecutionProvider": ("a card by DirectML", {}),
    }
)
_FATAL_ONLY = 4  # of onnxruntime's grades of messages; what it raises says the same
_MOST_TOLD = 300  # characters of what onnxruntime says
_SOURCE_LINE = re.compile(r"\S+\.(?:cc|h):\d+ ")
_SIGNATURE = re.compile(r"[\w:<>&* ]*::[\w~]+\(.*\) ")  # of a function in C++


@dataclass(frozen=True)
class OnnxModel:
    """An open model: onnxruntime's session, and whether a card runs it."""

    session: Any
    on_card: bool


def open_onnx(path: Path, fix: str) -> OnnxModel:
    """Opens a model and logs what runs it.

    Args:
        path: the file; larger ones have their data in further files beside it.
        fix: what to do when the file is not whole.

    Raises:
        UserError: the file is damaged, too new for onnxruntime, or its data is missing or lies outside its folder.
    """
    runtime = import_optional("onnxruntime", PACKAGE, "tagging")
    wanted = [name for name in _CARDS if name in runtime.get_available_providers()]
    if "CUDAExecutionProvider" in wanted:
        _find_cuda(runtime)
    providers = [*((name, dict(_CARDS[name][1])) for name in wanted), CPU]
    try:
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
        ):  # it prints of fallbacks
            session = runtime.InferenceSession(str(path), _settings(runtime, wanted), providers=providers)
    except onnx_errors(runtime) as error:
        raise _unusable(path, error, fix) from error
    running = session.get_providers()[0]
    if running in _CARDS:
        _LOG.info("tagging on %s (%s)", _CARDS[running][0], running)
        return OnnxModel(session, True)
    _LOG.info("tagging on CPU (%s)", running)
    if wanted:
        _LOG.warning("%s was there to choose and could not be started: %s", wanted[0], _why_not(runtime, wanted[0]))
    return OnnxModel(session, False)


def onnx_errors(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its errors have no common base of their own."""
    state = runtime.capi.onnxruntime_pybind11_state
    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, ValueError, RuntimeError)


def reason_of(error: Exception) -> str:
    """What onnxruntime says, without the names of its own source files in front, in one line."""
    text = " ".join(str(error).split())
    for mark in ("failed:", "Error: "):
        text = text.rpartition(mark)[2] if mark in text else text
    text = _SOURCE_LINE.split(text)[-1]
    if _SIGNATURE.match(text):
        text = text.rpartition(") ")[2]
    return text if len(text) <= _MOST_TOLD else text[:_MOST_TOLD] + "…"


def _settings(runtime: ModuleType, wanted: list[str]) -> Any:
    settings = runtime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    settings.use_deterministic_compute = True
    # Threads that wait for work would otherwise keep the cores from those that decode pictures.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if "DmlExecutionProvider" in wanted:  # its documentation asks for both
        settings.enable_mem_pattern = False
        settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    return settings


def _find_cuda(runtime: ModuleType) -> None:
    """CUDA's libraries are those that came with torch, where no others are installed."""
    runtime.set_default_logger_severity(_FATAL_ONLY)
    if hasattr(runtime, "preload_dlls"):
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            runtime.preload_dlls()


def _why_not(runtime: ModuleType, provider: str) -> str:
    """The reason and the mend; onnxruntime writes its own words to the console and hands none of them out."""
    if provider != "CUDAExecutionProvider":
        return "look at the card's driver"
    version = getattr(runtime, "cuda_version", "") or "13"
    fix = f"this onnxruntime needs the libraries of CUDA {version.split('.')[0]} and cuDNN 9; see requirements-gpu.txt"
    name = "onnxruntime_providers_cuda.dll" if os.name == "nt" else "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(Path(str(runtime.__file__)).parent / "capi" / name))
    except OSError as error:
        return f"{' '.join(str(error).split())}; {fix}"
    return f"no card or driver that it can use was found; {fix}"


def _unusable(path: Path, error: Exception, fix: str) -> UserError:
    kind, reason = type(error).__name__, reason_of(error)
    if "IR version" in reason or "opset" in reason.lower():
        newer = "a newer onnxruntime reads it (pip install -U onnxruntime), or take another tagger"
        return UserError.of(f"it is too new for this onnxruntime: {reason}", str(path), newer)
    if "escapes model directory" in reason or "Absolute path" in reason:
        other = "such a file is not opened; take the tagger from another source"
        return UserError.of(f"it reaches for data outside its folder: {reason}", str(path), other)
    if "External data path does not exist" in str(error):
        return UserError.of(f"a further file of the model is missing: {reason}", str(path), fix)
    if "xternal" in str(error):
        return UserError.of(f"a further file of the model is not whole: {reason}", str(path), fix)
    return UserError.of(f"it is no ONNX model that onnxruntime opens ({kind}: {reason})", str(path), fix)


def fixed(axis: Any) -> int | None:
    """The length of an axis as the file gives it; None where any length will do."""
    return axis if isinstance(axis, int) and axis > 0 else None
