"""The rules of the house, read from the code itself (docs/architecture.md says why).

A rule is a function from one parsed file to complaints; each rule is also shown a snippet that breaks it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
TRAINER = "library/training/trainer.py"
RANDOMNESS = "library/core/randomness.py"
SIGNALS = "library/training/requests/signals.py"

# Who may import whom. A package may always import itself; a name stands for all that lies below it.
_LEAF = ("library.core", "library.options")
MAY_IMPORT = {
    "library.core": (),
    "library.options": ("library.core",),
    "library.models": _LEAF,
    "library.text": _LEAF,
    "library.data": _LEAF,
    "library.diffusion": _LEAF,
    "library.optim": _LEAF,
    "library.checkpoint": _LEAF,
    "library.preview": (*_LEAF, "library.models", "library.text"),
    "library.captioning": (*_LEAF, "library.data.pictures", "library.data.captions"),
    "library.preparation": (*_LEAF, "library.data"),
    "library.methods": (*_LEAF, "library.models", "library.text"),
    "library.training": ("library",),
    "networks": ("library.core", "library.models"),
}
OUR_PACKAGES = ("library", "networks", "finetune", "tools")
HEAVY = {
    "accelerate", "bitsandbytes", "cv2", "diffusers", "huggingface_hub", "onnxruntime", "tensorboard", "tokenizers",
    "torch", "torchvision", "transformers", "xformers",
}  # fmt: skip
GLOBAL_SEEDS = {
    "accelerate.utils.set_seed", "set_seed", "torch.seed", "torch.manual_seed", "torch.random.manual_seed",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.set_rng_state", "torch.cuda.set_rng_state",
}  # fmt: skip
OWN_GENERATORS = {"Generator", "Philox", "PCG64", "SeedSequence", "BitGenerator", "default_rng"}


@dataclass(frozen=True)
class Source:
    """A file of ours: its path from the root with forward slashes, its text, its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        return cls(path, text, ast.parse(text))

    @property
    def module(self) -> str:
        parts = PurePosixPath(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def is_in(self, *tops: str) -> bool:
        return self.path.split("/")[0] in tops

    @property
    def is_entry_script(self) -> bool:
        return "/" not in self.path and self.path != "setup.py"


Rule = Callable[[Source], Iterator[str]]


@cache
def sources() -> tuple[Source, ...]:
    """Every file of ours that is no test."""
    files = [path for top in (*OUR_PACKAGES, "examples") for path in (ROOT / top).rglob("*.py")]
    files += ROOT.glob("*.py")
    return tuple(Source.parse(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in files)


@cache
def modules() -> dict[str, Source]:
    return {source.module: source for source in sources()}


# --- reading a tree ---------------------------------------------------------------------------------------------------


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, at any depth; `from a import b` names a.b if that is a module."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for name in node.names:
                full = f"{base}.{name.name}"
                yield node.lineno, full if full in modules() else base


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def calls(source: Source) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call; what stands before the dots is `?` when it is no plain name."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node.lineno, dotted(node.func)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def lies_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# --- the rules --------------------------------------------------------------------------------------------------------


def imports_go_downwards(source: Source) -> Iterator[str]:
    package = next((name for name in MAY_IMPORT if lies_in(source.module, name)), None)
    if source.module == "library" or (package is None and not source.is_in("library")):
        return
    if package is None:
        yield f"1: {source.module} stands in no package of the import table"
        return
    for line, name in imports(source):
        ours = any(lies_in(name, top) for top in OUR_PACKAGES)
        if ours and not any(lies_in(name, allowed) for allowed in (package, *MAY_IMPORT[package])):
            yield f"{line}: {package} may not import {name}"


def imports_are_absolute(source: Source) -> Iterator[str]:
    for line, name in imports(source):
        if name.startswith("."):
            yield f"{line}: write the full name instead of {name}"


def nobody_imports_scripts(source: Source) -> Iterator[str]:
    entry_scripts = {item.module for item in sources() if item.is_entry_script}
    tools = {item.module.removeprefix("tools.") for item in sources() if item.is_in("tools")}
    for line, name in imports(source):
        if name in entry_scripts or lies_in(name, "finetune"):
            yield f"{line}: {name} is a script, nobody imports it"
        is_tool = lies_in(name, "tools") or name in tools
        if is_tool and not source.is_in("tools"):
            yield f"{line}: {name} is a tool, only tools import it"


def files_are_short(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > FILE_LINES:
        yield f"{lines}: a file has {FILE_LINES} lines at most"


def functions_are_short(source: Source) -> Iterator[str]:
    for function in functions(source):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{function.lineno}: {function.name} has {length} lines, {FUNCTION_LINES} at most"


def functions_have_few_parameters(source: Source) -> Iterator[str]:
    for function in functions(source):
        count = len(own_arguments(function))
        if count > PARAMETERS:
            yield f"{function.lineno}: {function.name} has {count} parameters, {PARAMETERS} at most"


def functions_are_typed(source: Source) -> Iterator[str]:
    for function in functions(source):
        extra = [argument for argument in (function.args.vararg, function.args.kwarg) if argument is not None]
        untyped = [item.arg for item in [*own_arguments(function), *extra] if item.annotation is None]
        if untyped:
            yield f"{function.lineno}: {function.name} does not type {', '.join(untyped)}"
        if function.returns is None:
            yield f"{function.lineno}: {function.name} does not type what it returns"


def own_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [item for item in every if item.arg not in ("self", "cls")]


def init_files_are_empty(source: Source) -> Iterator[str]:
    if source.path.endswith("__init__.py") and source.text.strip():
        yield "1: __init__.py files stay empty"


def only_the_trainer_goes_backward(source: Source) -> Iterator[str]:
    if source.is_in("library", "networks") and source.path != TRAINER:
        for line, name in calls(source):
            if name.endswith(".backward"):
                yield f"{line}: only {TRAINER} calls backward()"


def handlers_name_what_they_catch(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{node.lineno}: bare except"
            elif dotted(node.type) == "BaseException" and not raises(node):
                yield f"{node.lineno}: BaseException is caught and not raised again"


def raises(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Raise) for part in ast.walk(node))


def nothing_asserts(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert; a user's mistake is a UserError, ours another exception"


def the_library_never_exits(source: Source) -> Iterator[str]:
    if source.is_in("library", "networks") and source.path != SIGNALS:  # that file ends a process that hangs
        for line, name in calls(source):
            if name in ("exit", "quit", "sys.exit", "os._exit", "SystemExit"):
                yield f"{line}: {name}; raise UserError and let the script end"


def randomness_is_never_global(source: Source) -> Iterator[str]:
    if not source.is_in("library", "networks") or source.path == RANDOMNESS:
        return  # that file alone may set torch's state, and puts it back
    for line, name in imports(source):
        if lies_in(name, "random"):
            yield f"{line}: the random module has global state; use library.core.randomness"
    for line, name in calls(source):
        parts = name.split(".")
        legacy = len(parts) >= 3 and parts[-3:-1] in (["np", "random"], ["numpy", "random"])
        if name in GLOBAL_SEEDS or (legacy and parts[-1] not in OWN_GENERATORS):
            yield f"{line}: {name} uses global random state; use library.core.randomness"


def classes_share_nothing_mutable(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, (ast.Assign, ast.AnnAssign)) and is_mutable(statement.value):
                    yield f"{statement.lineno}: class {node.name} shares a mutable attribute between its instances"


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        kinds = ("list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter")
        return dotted(value.func).split(".")[-1] in kinds
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


def globals_are_not_rebound(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global {', '.join(node.names)}"


# Each rule with a snippet that breaks it: (path of the snippet, its text).
BROKEN: dict[Rule, list[tuple[str, str]]] = {
    imports_go_downwards: [
        ("library/core/x.py", "from library.options.base import option"),
        ("library/data/x.py", "import library.models.load"),
        ("library/data/x.py", "def f():\n    from library.text.tokenizer import load_tokenizer"),
        ("library/methods/x.py", "from library.checkpoint.saver import Saver"),
        ("library/preview/x.py", "from library.data.pictures.images import read"),
        ("library/captioning/x.py", "from library.data.index.index import Index"),
        ("library/training/x.py", "import networks.lora"),
        ("networks/x.py", "from library.options.network import NetworkOptions"),
        ("library/newcomer/x.py", "import os"),
    ],
    imports_are_absolute: [("library/core/x.py", "from . import log"), ("networks/x.py", "from .lora import LoRA")],
    nobody_imports_scripts: [
        ("library/training/x.py", "from tools import bootstrap"),
        ("library/training/x.py", "import bootstrap"),
        ("finetune/x.py", "from finetune.make_captions import main"),
    ],
    files_are_short: [("library/core/x.py", "x = 1\n" * (FILE_LINES + 1))],
    functions_are_short: [("library/core/x.py", "def f() -> None:\n" + "    x = 1\n" * FUNCTION_LINES)],
    functions_have_few_parameters: [("tools/x.py", "def f(a, b, c, d, e, f, *, g, h): ...")],
    functions_are_typed: [
        ("tools/x.py", "def f(a) -> None: ..."),
        ("tools/x.py", "def f(a: int): ..."),
        ("tools/x.py", "def f(*a, **b: int) -> None: ..."),
        ("tools/x.py", "class C:\n    async def f(self, *, a) -> None: ..."),
    ],
    init_files_are_empty: [("library/core/__init__.py", "from library.core import log")],
    only_the_trainer_goes_backward: [
        ("library/methods/x.py", "loss.backward()"),
        ("networks/x.py", "self.accelerator.backward(loss)"),
    ],
    handlers_name_what_they_catch: [
        ("tools/x.py", "try:\n    f()\nexcept:\n    raise"),
        ("tools/x.py", "try:\n    f()\nexcept BaseException:\n    g()"),
    ],
    nothing_asserts: [("train_x.py", "assert options.seed")],
    the_library_never_exits: [
        ("library/core/x.py", "import sys\nsys.exit(1)"),
        ("networks/x.py", "exit(1)"),
        ("library/core/x.py", "raise SystemExit(1)"),
    ],
    randomness_is_never_global: [
        ("library/data/x.py", "import random"),
        ("library/data/x.py", "from random import shuffle"),
        ("networks/x.py", "torch.manual_seed(0)"),
        ("library/data/x.py", "torch.cuda.manual_seed_all(0)"),
        ("library/data/x.py", "np.random.seed(0)"),
        ("library/data/x.py", "numpy.random.permutation(3)"),
        ("library/data/x.py", "set_seed(1)"),
    ],
    classes_share_nothing_mutable: [
        ("library/core/x.py", "class C:\n    found = []"),
        ("library/core/x.py", "class C:\n    found: dict[str, int] = {}"),
        ("library/core/x.py", "class C:\n    found: ClassVar[set[str]] = set()"),
        ("library/core/x.py", "class C:\n    found = collections.defaultdict(list)"),
    ],
    globals_are_not_rebound: [("library/core/x.py", "def f() -> None:\n    global count\n    count = 1")],
}

# What looks like a departure and is none.
FINE: list[tuple[Rule, str, str]] = [
    (imports_go_downwards, "library/methods/x.py", "from library.text.encoder import encode_tokens"),
    (imports_go_downwards, "library/training/x.py", "from library.data.index.index import Index"),
    (imports_go_downwards, "library/data/x.py", "from library.data.index.index import Index\nimport torch"),
    (imports_go_downwards, "train_x.py", "from library.training.assemble import assemble"),
    (nobody_imports_scripts, "tools/x.py", "from bootstrap import ROOT"),
    (only_the_trainer_goes_backward, TRAINER, "accelerator.backward(loss)"),
    (randomness_is_never_global, "library/data/x.py", "np.random.Generator(np.random.Philox(key=1))"),
    (randomness_is_never_global, "library/data/x.py", "torch.Generator().manual_seed(1)"),
    (handlers_name_what_they_catch, "tools/x.py", "try:\n    f()\nexcept BaseException:\n    raise"),
    (the_library_never_exits, "tools/x.py", "sys.exit(main())"),
    (classes_share_nothing_mutable, "library/core/x.py", "class C:\n    a = (1,)\n    b: list[int] = field(list)"),
    (functions_are_typed, "tools/x.py", "class C:\n    def f(self, a: int, *b: int) -> None: ..."),
]


def named(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", BROKEN, ids=named)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    complaints = [f"{source.path}:{complaint}" for source in sources() for complaint in rule(source)]
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [(rule, path, text) for rule, snippets in BROKEN.items() for path, text in snippets],
)
def test_the_rule_sees_a_departure(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source.parse(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), FINE)
def test_the_rule_lets_good_code_pass(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source.parse(path, text))) == []


# --- rules about several files ----------------------------------------------------------------------------------------


def reachable(start: str, known: dict[str, Source]) -> set[str]:
    """The modules of ours under `start` and all that they import, directly or through others."""
    waiting = [name for name in known if lies_in(name, start)]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [target for _, target in imports(known[name]) if target in known]
    return seen


def heavy_imports(start: str, known: dict[str, Source]) -> list[str]:
    return [
        f"{known[name].path}:{line}: {target}"
        for name in sorted(reachable(start, known))
        for line, target in imports(known[name])
        if target.split(".")[0] in HEAVY
    ]


def test_options_never_reach_torch() -> None:
    assert "library.options.base" in reachable("library.options", modules())
    assert heavy_imports("library.options", modules()) == []


def test_torch_is_found_behind_another_import() -> None:
    known = {
        "library.options.x": Source.parse("library/options/x.py", "import library.core.device"),
        "library.core.device": Source.parse("library/core/device.py", "def f() -> None:\n    import torch.nn"),
    }
    assert heavy_imports("library.options", known) == ["library/core/device.py:2: torch.nn"]


def test_the_import_table_names_only_what_the_house_knows() -> None:
    for package, allowed in MAY_IMPORT.items():
        for name in allowed:
            assert name == "library" or any(lies_in(name, known) for known in MAY_IMPORT), f"{package}: {name}"


def test_every_package_has_its_init_file() -> None:
    folders = {(ROOT / source.path).parent for source in sources() if source.is_in("library", "networks")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
