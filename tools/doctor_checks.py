"""What doctor.py looks at. A check takes the surroundings and returns findings; nothing risky runs in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap import CUDA_TORCH_INDEX, read_pins
from doctor_probes import MARK

OK, NOTE, PROBLEM = "ok", "note", "problem"

_PROBE_SECONDS = 240
_LOW_DISK_GIB, _NO_DISK_GIB = 10, 1
_IMPORT_NAMES = {"pillow": "PIL", "opencv-python-headless": "cv2", "lycoris-lora": "lycoris"}
_OPTIONAL = {  # package: what it is for; pins, where there are any, stand in requirements-gpu.txt
    "xformers": "memory-saving attention (--xformers)",
    "bitsandbytes": "8-bit optimizers",
    "onnxruntime-gpu": "tagging pictures on the card",
    "wandb": "logging to Weights & Biases",
    "prodigyopt": "the Prodigy optimizer",
    "dadaptation": "the D-Adaptation optimizers",
    "lycoris-lora": "LyCORIS networks",
}
_TRIED = {"xformers": "xformers", "bitsandbytes": "bitsandbytes", "onnxruntime-gpu": "onnxruntime"}


@dataclass(frozen=True)
class Finding:
    """One line of the page; `fix` is the mend of a problem (or of a note worth acting on)."""

    area: str
    level: str
    name: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Probe:
    """What a probe process came back with; `error` is empty when it went well."""

    data: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Surroundings:
    """Where we look: the project folder, the Python that runs it, and what probes found out beforehand."""

    root: Path
    python: Path
    versions: dict[str, str | None]
    torch: Probe
    nvidia: dict[str, str]

    @property
    def pip(self) -> str:
        return f"{self.python} -m pip"


def run_probe(root: Path, python: Path, words: Sequence[str]) -> Probe:
    """Runs one probe of doctor_probes.py in a process of its own; a crash or a hang becomes its `error`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python), str(root / "tools" / "doctor_probes.py"), *words]
    try:
        ended = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, encoding="utf-8", errors="replace",
            timeout=_PROBE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Probe(error=f"did not end within {_PROBE_SECONDS} seconds")
    except OSError as error:
        return Probe(error=f"could not be started: {error}")
    for line in reversed(ended.stdout.splitlines()):
        if line.startswith(MARK):
            return Probe(json.loads(line[len(MARK) :]))
    return Probe(error=explain_end(ended.returncode, ended.stderr))


def explain_end(code: int, stderr: str) -> str:
    """Why a probe gave no answer: the last line of its traceback, or the signal that killed it."""
    if code < 0:
        return f"crashed (signal {-code})"
    if code > 255:  # Windows reports a crash as a large status code
        return f"crashed (code {code:#x})"
    lines = [line for line in stderr.strip().splitlines() if re.match(r"[\w.]+(Error|Exception|Warning|Exit)\b", line)]
    return (lines or stderr.strip().splitlines() or [f"ended with code {code}"])[-1]


def look_around(root: Path, python: Path) -> Surroundings:
    """Gathers what several checks need: package versions, torch's own report, nvidia-smi."""
    names = [*read_pins(root / "requirements.txt"), *_OPTIONAL]
    with ThreadPoolExecutor(2) as pool:
        versions = pool.submit(run_probe, root, python, ["versions", *names])
        torch = pool.submit(run_probe, root, python, ["torch"])
        return Surroundings(root, python, versions.result().data, torch.result(), ask_nvidia_smi())


def ask_nvidia_smi() -> dict[str, str]:
    """Driver version and the newest CUDA it can run; empty where there is no NVIDIA driver."""
    try:
        answer = subprocess.run(["nvidia-smi"], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_nvidia_smi(answer.stdout) if answer.returncode == 0 else {}


def parse_nvidia_smi(text: str) -> dict[str, str]:
    """Reads the heading of nvidia-smi's table."""
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", text)
    return {"driver": driver.group(1) if driver else "?", "cuda": cuda.group(1) if cuda else "?"}


# --- the machine ------------------------------------------------------------------------------------------------------


def check_machine(around: Surroundings) -> list[Finding]:
    """Python, operating system, CPU threads, disk space."""
    probe = run_probe(around.root, around.python, ["python"])
    if probe.error:
        mend = "delete the folder .venv and run python tools/quickstart.py"
        return [Finding("Machine", PROBLEM, "Python", f"{around.python}: {probe.error}", mend), check_disk(around.root)]
    facts = probe.data
    shown = f"{facts['version']}, {facts['executable']}"
    version = tuple(int(part) for part in facts["version"].split(".")[:2])
    if version < (3, 11) or not facts["is_64_bit"]:
        mend = "install 64-bit Python 3.11 or newer, delete .venv, start again"
        python = Finding("Machine", PROBLEM, "Python", shown, mend)
    elif facts["in_venv"]:
        python = Finding("Machine", OK, "Python", shown)
    else:
        python = Finding(
            "Machine", NOTE, "Python", f"{shown}, not a virtual environment", "python tools/quickstart.py makes .venv"
        )
    return [
        python,
        Finding("Machine", OK, "System", facts["system"]),
        Finding("Machine", OK, "CPU", f"{os.cpu_count()} threads"),
        check_disk(around.root),
    ]


def check_disk(folder: Path) -> Finding:
    """Free space where the results go."""
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{free:.0f} GiB free"
    if free < _NO_DISK_GIB:
        return Finding("Machine", PROBLEM, "Disk", text, "free some space: a saved model takes 2 to 5 GiB")
    if free < _LOW_DISK_GIB:
        return Finding("Machine", NOTE, "Disk", text, "a saved model takes 2 to 5 GiB, so plan for it")
    return Finding("Machine", OK, "Disk", text)


# --- torch and the graphics card --------------------------------------------------------------------------------------


def check_torch(around: Surroundings) -> list[Finding]:
    """Does torch start, does its build fit the driver, does every card compute?"""
    if around.torch.error:
        mend = "the packages below say more" if around.versions.get("torch") else _install_mend()
        return [Finding("Graphics card", PROBLEM, "torch", around.torch.error, mend)]
    facts = around.torch.data
    findings = [_judge_build(facts, around.nvidia, around.pip)]
    for number, gpu in enumerate(facts["gpus"]):
        findings.append(_judge_gpu(number, gpu))
    return findings


def _judge_build(facts: dict[str, Any], nvidia: dict[str, str], pip: str) -> Finding:
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "CPU only"
    text = f"torch {facts['version']} ({build})"
    public = facts["version"].split("+")[0]
    if nvidia:
        text += f"; driver {nvidia['driver']}, good for CUDA up to {nvidia['cuda']}"
    if facts["available"]:
        return Finding("Graphics card", OK, "torch", text)
    if nvidia and not facts["cuda"]:
        mend = f"{pip} install --force-reinstall --no-deps torch=={public} --index-url {CUDA_TORCH_INDEX}"
        return Finding("Graphics card", PROBLEM, "torch", f"{text}; this build cannot use your NVIDIA card", mend)
    if nvidia and _is_newer(facts["cuda"], nvidia["cuda"]):
        mend = "install the newest driver from https://www.nvidia.com/drivers"
        return Finding("Graphics card", PROBLEM, "torch", f"{text}; the driver is too old for this build", mend)
    if nvidia:
        mend = "restart the machine (driver updates need it), check that CUDA_VISIBLE_DEVICES is not set"
        return Finding("Graphics card", PROBLEM, "torch", f"{text}; the driver answers, torch finds no card", mend)
    return Finding("Graphics card", NOTE, "torch", f"{text}; no NVIDIA driver: training runs on the CPU, far slower")


def _is_newer(version: str, limit: str) -> bool:
    """Is the CUDA of the build of a later major version than the driver knows? Minor versions are compatible."""
    return limit != "?" and int(version.split(".")[0]) > int(limit.split(".")[0])


def _judge_gpu(number: int, gpu: dict[str, Any]) -> Finding:
    precision = "bf16 and fp16" if gpu["bf16"] else "fp16 (no bf16: use --mixed_precision fp16)"
    text = f"{gpu['name']}, {gpu['memory_gib']} GiB, {precision}"
    if gpu["error"]:
        mend = "install another build of torch for this card: https://pytorch.org/get-started/locally/"
        return Finding("Graphics card", PROBLEM, f"card {number}", f"{text}; it does not compute: {gpu['error']}", mend)
    return Finding("Graphics card", OK, f"card {number}", text)


# --- packages ---------------------------------------------------------------------------------------------------------


def check_packages(around: Surroundings) -> list[Finding]:
    """Each package of requirements.txt: present, of the pinned version, and can it be imported?"""
    pins = read_pins(around.root / "requirements.txt")
    if around.versions.get("onnxruntime-gpu") and not around.versions.get("onnxruntime"):
        pins.pop("onnxruntime")  # its place is taken, which is as it should be
    present = [name for name in pins if around.versions.get(name)]
    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 2) // 2))) as pool:
        waiting = {
            name: pool.submit(run_probe, around.root, around.python, ["import", import_name(name)]) for name in present
        }
    errors = {name: probe.result().error for name, probe in waiting.items()}
    return [_judge_package(around, name, pin, errors.get(name, "")) for name, pin in pins.items()]


def import_name(distribution: str) -> str:
    """What `import` calls a package that pip knows by another name."""
    return _IMPORT_NAMES.get(distribution, distribution.replace("-", "_"))


def _judge_package(around: Surroundings, name: str, pin: str, error: str) -> Finding:
    found = around.versions.get(name)
    if found is None:
        return Finding("Packages", PROBLEM, name, "missing", _install_mend())
    mend = f"{around.pip} install --force-reinstall --no-deps {name}=={pin}"
    if error:
        return Finding("Packages", PROBLEM, name, f"{found}, cannot be imported: {error}", mend)
    if found.split("+")[0] != pin:
        return Finding("Packages", PROBLEM, name, f"{found}, tested with {pin}", mend)
    return Finding("Packages", OK, name, found)


def _install_mend() -> str:
    return "python tools/quickstart.py installs what is missing"


def check_optional(around: Surroundings) -> list[Finding]:
    """Packages that only some options need. That one is missing is no fault."""
    pins = read_pins(around.root / "requirements-gpu.txt")
    findings = [_judge_optional(around, name, purpose, pins.get(name)) for name, purpose in _OPTIONAL.items()]
    if around.versions.get("onnxruntime") and around.versions.get("onnxruntime-gpu"):
        mend = (
            f"{around.pip} uninstall -y onnxruntime onnxruntime-gpu, "
            f"then {around.pip} install onnxruntime-gpu=={pins['onnxruntime-gpu']}"
        )
        text = "both onnxruntime and onnxruntime-gpu are installed; they share a folder and break each other"
        findings.append(Finding("Optional packages", PROBLEM, "onnxruntime", text, mend))
    return findings


def _judge_optional(around: Surroundings, name: str, purpose: str, pin: str | None) -> Finding:
    area = "Optional packages"
    found = around.versions.get(name)
    wanted = f"{name}=={pin}" if pin else name
    extra = "--no-deps " if name in ("xformers", "bitsandbytes") else ""
    if found is None:
        return Finding(area, OK, name, f"not installed; for {purpose}")
    if pin and found != pin:
        mend = f"{around.pip} install {extra}{wanted}"
        return Finding(area, NOTE, name, f"{found}, tested with {pin}; {purpose}", mend)
    words = [_TRIED[name]] if name in _TRIED else ["import", import_name(name)]
    probe = run_probe(around.root, around.python, words)
    if probe.error:
        mend = f"{around.pip} install --force-reinstall {extra}{wanted}"
        return Finding(area, NOTE, name, f"{found}, cannot be used: {probe.error}", mend)
    return Finding(area, *judge_trial(name, found, probe.data))


def judge_trial(name: str, version: str, result: dict[str, Any]) -> tuple[str, str, str, str]:
    """Level, name, text and mend for a package whose trial ran to its end."""
    if "real" in result:
        if "CUDAExecutionProvider" in result["real"]:
            return OK, name, f"{version}, computes on the card", ""
        text = f"{version}, but a session gets only {', '.join(result['real'])}"
        return NOTE, name, text, "it needs an NVIDIA driver for CUDA 13 and cuDNN 9; without them use onnxruntime"
    if result.get("tried") is False:
        return NOTE, name, f"{version}, starts; without a graphics card it cannot be tried", ""
    if result.get("finite") is False:
        return NOTE, name, f"{version}, gives wrong results", "leave out the option that uses it, and report this page"
    where = f" {result['where']}" if "where" in result else ""
    return OK, name, f"{version}, tried{where}", ""


# --- settings ---------------------------------------------------------------------------------------------------------


def check_settings(around: Surroundings) -> list[Finding]:
    """What else decides how a run behaves: accelerate's saved answers, offline mode, the tokenizer."""
    findings = [check_accelerate(accelerate_config_path(dict(os.environ), Path.home()))]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    text = "set: nothing is downloaded" if offline else "not set: models named by a Hugging Face id may be downloaded"
    findings.append(Finding("Settings", OK, "HF_HUB_OFFLINE", text))
    tokenizer = run_probe(around.root, around.python, ["tokenizer"])
    if tokenizer.error:
        mend = "git checkout -- library/text brings the vocabulary back; the packages above must be in order as well"
        findings.append(Finding("Settings", PROBLEM, "tokenizer", tokenizer.error, mend))
    else:
        text = f"{tokenizer.data['sd1']} tokens, gives the known ids"
        findings.append(Finding("Settings", OK, "tokenizer", text))
    return findings


def accelerate_config_path(environment: dict[str, str], home: Path) -> Path:
    """Where `accelerate config` keeps its answers."""
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return Path(environment.get("HF_HOME") or cache / "huggingface") / "accelerate" / "default_config.yaml"


def check_accelerate(path: Path) -> Finding:
    """Only `accelerate launch` reads that file; its precision can differ from --mixed_precision, which decides."""
    if not path.is_file():
        return Finding("Settings", OK, "accelerate", "no saved configuration; none is needed")
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^mixed_precision:\s*['\"]?(\w+)", text, re.MULTILINE)
    precision = found.group(1) if found else "no"
    if precision == "no":
        return Finding("Settings", OK, "accelerate", f"{path}, no mixed precision")
    mend = f"give --mixed_precision {precision} with every training command if you want it"
    return Finding("Settings", NOTE, "accelerate", f"{path} says {precision}; our --mixed_precision decides", mend)
