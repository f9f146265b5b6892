"""The pages against the code: links, options, examples, figures, and the map of requirement rows."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import Field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import train_network
from library.core.sizes import Size
from library.data.buckets import BucketLimits, place
from library.data.description import schema
from library.data.description.config import describe
from library.data.pictures.images import check_image, load_pixels
from library.data.placement import place_all
from library.data.planner import Planner
from library.models.save import save_diffusers, save_single_file
from library.models.tiny import make_tiny_model
from library.options.base import default_of, info_of, option_fields
from library.options.config import ConfigOptions
from library.options.data import DataOptions, default_worker_count
from library.options.parse import build_parser, names_of, parse_options
from library.options.scripts import SCRIPTS
from library.text.tokenizer import CaptionTokenizer, tokenizer_files
from library.training.checks.preflight import check_full_model_run, check_network_run
from library.training.progress import plan_run
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GUIDES = [ROOT / "README.md", DOCS / "train_network.md", DOCS / "dataset.md", DOCS / "models.md"]
CHECKS = {"train_network.py": check_network_run, "train_db.py": check_full_model_run}
DESIGN_PAGE = DOCS / "architecture.md"  # draws the finished house and speaks of options to come

GROUPS = {
    "SCR": 26, "DAT": 69, "BKT": 18, "CAP": 14, "TEN": 15, "MOD": 26, "TRN": 42, "OPT": 31, "SCH": 8,
    "NOI": 10, "CCH": 10, "SAV": 19, "SMP": 16, "LOG": 6, "PRE": 40, "PRF": 17, "DOC": 11, "CON": 10,
}  # fmt: skip
FOREIGN_OPTIONS = {
    *("--force-reinstall", "--no-deps", "--index-url"),  # pip
    *("--standalone", "--nproc_per_node"),  # torchrun
    *("--cpu", "--multi_gpu", "--num_processes", "--num_cpu_threads_per_process"),  # accelerate launch
    "--logdir",  # tensorboard
    *("--n", "--w", "--h", "--d", "--l", "--s", "--ss"),  # lines of prompt files
}
NOT_YET = re.compile(r"not existing (here )?(yet|today)|not here yet|does not exist|planned", re.IGNORECASE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The text without fenced code."""
    return FENCE.sub("", read(page))


def fences(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(read(page)) if kind == language]


def table_rows(page: Path, first_head: str) -> list[list[str]]:
    """The cells of every row of the tables whose first column has this head."""
    rows: list[list[str]] = []
    inside = False
    for line in read(page).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first_head:
            inside = True
        elif inside and not cells[0].startswith("---"):
            rows.append([cell.strip(" |") for cell in cells])
    assert rows, f"{page.name}: no table headed {first_head}"
    return rows


# --- the map of requirement rows --------------------------------------------------------------------------------------

REQUIREMENTS = DOCS / "requirements.md"
ROW = re.compile(r"^[A-Z]{3}-\d\d$")


def requirement_rows() -> list[list[str]]:
    rows = table_rows(REQUIREMENTS, "ID")
    assert all(len(row) == 5 for row in rows), [row for row in rows if len(row) != 5]
    return rows


def state_of(row: list[str]) -> str:
    return re.split(r"[ :(]", row[4])[0]


def test_every_requirement_row_stands_in_the_map_once() -> None:
    ids = [row[0] for row in requirement_rows()]
    assert ids == [f"{group}-{number:02}" for group, count in GROUPS.items() for number in range(1, count + 1)]
    assert len(ids) == 388


def test_states_of_the_map_are_known_and_counted() -> None:
    rows = requirement_rows()
    for row in rows:
        assert re.fullmatch(r"done|partly: .+|open \(issue \d\)|open \(no issue yet\)", row[4]), row
    told = {row[0]: int(row[1]) for row in table_rows(REQUIREMENTS, "State")}
    assert told == {**Counter(state_of(row) for row in rows), "all": len(rows)}


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.walk(ast.parse(read(path))) if isinstance(node, ast.FunctionDef))


def test_every_path_and_test_of_the_map_exists() -> None:
    for row in requirement_rows():
        for cited in re.findall(r"`([^`]+)`", f"{row[2]} {row[3]}"):
            path, _, name = cited.partition("::")
            if name:
                assert name in names_of_tests(ROOT / path), row
            elif re.fullmatch(r"[\w./-]+\.(py|md|txt|toml)|[\w.-]+/[\w./-]*", path):
                assert (ROOT / path).exists(), row


def test_rows_that_are_done_say_where_and_are_shown() -> None:
    for row in requirement_rows():
        if state_of(row) == "open":
            assert row[2:4] == ["", ""], row
        else:
            assert "::" in row[3] or "](" in row[3] or row[3].startswith("`python "), row
            assert row[2] or "](" in row[3], row


# --- links and options ------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target


@cache
def known_options() -> frozenset[str]:
    groups = {group for script in SCRIPTS.values() for group in (*script.groups, ConfigOptions)}
    ours = (f"--{name}" for group in groups for item in option_fields(group) for name in names_of(item))
    tools = chain.from_iterable(
        re.findall(r'add_argument\(\s*"(--[\w-]+)"', read(path)) for path in (ROOT / "tools").glob("*.py")
    )
    return frozenset((*ours, *tools, *FOREIGN_OPTIONS, "--help"))


@pytest.mark.parametrize("page", [page for page in PAGES if page != DESIGN_PAGE], ids=lambda page: page.name)
def test_options_exist_or_are_said_not_to(page: Path) -> None:
    rows = requirement_rows() if page == REQUIREMENTS else []
    blocks = [" | ".join(row) for row in rows if state_of(row) == "done"] or re.split(r"\n\s*\n", read(page))
    for block in blocks:
        unknown = {word for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", block)} - known_options()
        unknown = {word for word in unknown if not word.endswith("_")}  # a family, such as --network_...
        assert not unknown or NOT_YET.search(block), f"{page.name}: {sorted(unknown)}"


def test_help_names_every_option() -> None:
    for name, script in SCRIPTS.items():
        shown = build_parser(name, script.description, (*script.groups, ConfigOptions)).format_help()
        for group in (*script.groups, ConfigOptions):
            assert all(f"{words_for(item)} " in shown for item in option_fields(group))


def words_for(item: Field[Any]) -> str:
    """What stands in `--help` and docs/options.md for an option."""
    info = info_of(item)
    return f"{info.metavar}" if info.positional else f"--{item.name}"


# --- commands and examples --------------------------------------------------------------------------------------------


def for_this_machine(text: str) -> str:
    """The guides speak to owners of a card; without one fp16 is refused."""
    return text if torch.cuda.is_available() else text.replace("fp16", "bf16")


def commands(page: Path, name: str = "train_network.py") -> list[list[str]]:
    """The words after a script's name of every command in the page's code; back-slashes as Linux writes them."""
    found = []
    for _, body in FENCE.findall(read(page)):
        for line in body.replace("\\\n", " ").splitlines():
            launcher, script, words = line.strip().partition(f"{name} ")
            if script and re.match(r"(\.venv\S+|python|accelerate|torchrun)( |$)", launcher):
                found.append(shlex.split(for_this_machine(words.replace("\\", "/"))))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The folder that the guides speak of: a (tiny) model in both forms, pictures, and the two TOML files."""
    root = tmp_path_factory.mktemp("guide")
    model = make_tiny_model("sd1", seed=0)
    save_single_file(model, root / "models" / "sd15.safetensors", {})
    save_diffusers(model, root / "models" / "sd15", tokenizer_files("sd1"))
    leaf = root / "my_pictures" / "10_mira cat"
    leaf.mkdir(parents=True)
    for source, name in (("cat.jpg", "garden.jpg"), ("cat.txt", "garden.txt"), ("coins.png", "sofa.png")):
        shutil.copy(photos / source, leaf / name)
    (options_file,) = fences(DOCS / "train_network.md", "toml")
    (root / "mira.toml").write_text(for_this_machine(options_file), encoding="utf-8")
    return root


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_commands_pass_every_check(world: Path, monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    monkeypatch.chdir(world)
    found = [(name, words) for name in CHECKS for words in commands(page, name)]
    assert found
    for name, words in found:
        script = SCRIPTS[name]
        options = parse_options(name, script.description, script.groups, words)
        if not options.of(ConfigOptions).output_config:
            run = CHECKS[name](options)
            assert len(run.index) == 2 and run.files.result.suffix == ".safetensors"
        else:
            train_network.main(words)
            assert tomllib.loads(read(Path("saved.toml")))["DataOptions"]["resolution"] == [512, 512]


def test_commands_of_the_preparation_are_understood() -> None:
    used = Counter[str]()
    for name, script in SCRIPTS.items():
        for words in commands(DOCS / "preparation.md", name):
            parse_options(name, script.description, script.groups, words)
            used[name] += 1
    preparing = {name for name in SCRIPTS if name.startswith("finetune/")}
    assert {*preparing, "tools/find_duplicates.py", "tools/resize_images_to_resolution.py"} <= set(used)


def test_windows_and_linux_commands_are_the_same() -> None:
    linux, windows = commands(DOCS / "train_network.md")[:2]
    assert linux == windows


def small(words: list[str]) -> list[str]:
    """The same command for a toy: smaller, shorter, on any device."""
    changes = {"--resolution": "64", "--max_train_steps": "2", "--mixed_precision": "no"}
    changed = [changes.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return [*changed, "--min_bucket_reso", "64", "--max_data_loader_n_workers", "0"]


@pytest.fixture(scope="module")
def first_lora(world: Path) -> Path:
    """The folder after the guide's first command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        train_network.main(small(commands(DOCS / "train_network.md")[0]))
    return world


def test_the_first_lora_leaves_what_the_guide_says(first_lora: Path) -> None:
    assert {path.name for path in (first_lora / "output" / "mira").iterdir()} == {"mira.safetensors", "mira-log.jsonl"}
    assert len(list(first_lora.glob("logs/mira_*/network_train/events*"))) == 1
    with safe_open(str(first_lora / "output" / "mira" / "mira.safetensors"), "pt") as file:
        metadata = file.metadata()
    told = {
        "ss_output_name": "mira",
        "ss_sd_model_name": "sd15.safetensors",
        "ss_network_dim": "16",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_steps": "2",
        "ss_seed": "42",
        "modelspec.title": "mira",
    }
    assert {key: metadata[key] for key in told} == told
    assert '"10_mira cat": {"n_repeats": 10, "img_count": 2}' in metadata["ss_dataset_dirs"]
    assert {"sshs_model_hash", "ss_new_sd_model_hash", "ss_bucket_info", "ss_tag_frequency"} <= set(metadata)
    assert str(first_lora) not in str(metadata)


def test_the_diffusers_sample_makes_a_picture(first_lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first_lora)
    (code,) = fences(DOCS / "train_network.md", "python")
    for shown, quick in (("num_inference_steps=30", "num_inference_steps=2"), ("512", "64")):
        assert shown in code
        code = code.replace(shown, quick)
    exec(compile(code, "docs/train_network.md", "exec"), {})
    assert Image.open("mira.png").size == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate launch --num_cpu", "torchrun --standalone"])
def test_launchers_start_the_training(world: Path, tmp_path: Path, launcher: str) -> None:
    (line,) = [line for body in fences(DOCS / "train_network.md", "bash") for line in body.splitlines()
               if line.startswith(launcher)]  # fmt: skip
    program, *before = shlex.split(line.partition("train_network.py")[0])
    options = ["--output_dir", str(tmp_path), "--resolution", "64", "--min_bucket_reso", "64", "--max_train_steps", "2"]
    command = [str(Path(sys.executable).parent / program), *before, str(ROOT / "train_network.py")]
    command += ["--config_file", "mira.toml", *options, "--mixed_precision", "no", "--max_data_loader_n_workers", "0"]
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONUTF8": "1"}
    result = subprocess.run(command, cwd=world, env=settings, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"x processes {2 if program == 'torchrun' else 1}" in result.stderr
    assert (tmp_path / "last.safetensors").is_file()


def test_dataset_examples_are_understood(tmp_path: Path) -> None:
    examples = fences(DOCS / "dataset.md", "toml")
    assert examples and r"D:\pictures\bob" in str(tomllib.loads(examples[0])).replace("\\\\", "\\")
    for number, text in enumerate(examples):
        folder = save_picture(tmp_path / str(number) / "a.png").parent
        file = tmp_path / f"{number}.toml"
        file.write_text(re.sub(r"(image_dir = )(\"[^\"]*\"|'[^']*')", rf"\1'{folder}'", text), encoding="utf-8")
        first, second = describe(DataOptions(dataset_config=str(file))).datasets
        assert (first.resolution, first.batch_size, first.bucketing) == (
            Size(512, 512), 4, BucketLimits(256, 1024, 64)
        )  # fmt: skip
        assert [(s.num_repeats, s.is_reg) for s in first.subsets] == [(10, False), (10, False), (1, True)]
        assert (second.resolution, second.batch_size, second.bucketing) == (
            Size(512, 768), 2, BucketLimits(384, 1024, 64)
        )  # fmt: skip
        assert {subset.image_dir for subset in (*first.subsets, *second.subsets)} == {folder}


# --- figures and words ------------------------------------------------------------------------------------------------


def test_keys_of_a_dataset_file_are_all_listed_with_their_levels() -> None:
    spelt = {"all three": {schema.GENERAL, schema.DATASET, schema.SUBSET}}
    told = {
        row[0].strip("`"): spelt.get(row[2]) or {level.strip("`") for level in row[2].split(", ")}
        for row in table_rows(DOCS / "dataset.md", "Key")
    }
    keys = set().union(*schema._LEVEL_KEYS.values())
    assert told == {key: {level for level, known in schema._LEVEL_KEYS.items() if key in known} for key in keys}


def test_bucket_table_is_what_happens() -> None:
    def size(text: str) -> Size:
        width, height = text.split("x")
        return Size(int(width), int(height))

    for picture, bucket, scaled, lost in table_rows(DOCS / "dataset.md", "Picture"):
        placed = place(size(picture), Size(512, 512), BucketLimits(256, 1024, 64))
        assert (placed.bucket, placed.resized) == (size(bucket), size(scaled))
        share = round(100 * (1 - placed.bucket.area / placed.resized.area))
        assert lost == (f"{share} %" if share else "nothing")


def test_epochs_have_the_updates_that_the_guide_counts(tmp_path: Path) -> None:
    """20 pictures x 10 repeats at batch size 4: 50 updates in one bucket, 51 in three; 1500 updates are 30 epochs."""
    shapes = [(64, 64)] * 14 + [(128, 32)] * 5 + [(32, 128)]
    for number, shape in enumerate(shapes):
        save_picture(tmp_path / "cats" / f"{number}.png", shape)
    subset = make_subset(tmp_path / "cats", num_repeats=10)
    planners = []
    for bucketing in (BucketLimits(32, 128, 16), None):
        index = index_of(make_dataset(subset, batch_size=4, bucketing=bucketing))
        planners.append(Planner(index, place_all(index), [4], 0))
    assert [planner.updates_per_epoch for planner in planners] == [51, 50]
    assert plan_run(planners[1], 1500, None).epochs == 30
    assert plan_run(planners[1], 1500, 2).total_updates == 100  # epochs win over steps
    with_reg = index_of(make_dataset(subset, make_subset(tmp_path / "cats", is_reg=True), batch_size=4, bucketing=None))
    planner = Planner(with_reg, place_all(with_reg), [4], 0)
    assert planner.updates_per_epoch == 100 and planner.reg_uses_per_epoch(0) == (200, 20)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_suggested_identifiers_are_short_and_one_token(family: str) -> None:
    (listed,) = re.findall(r"single tokens in SD1 and SD2: `([^`]+)`", read(DOCS / "dataset.md"))
    names = listed.split()
    assert len(names) == 18 and all(len(name) <= 3 for name in names)
    assert CaptionTokenizer(family).count_tokens(names) == [1] * len(names)


def test_a_picture_above_3000_pixels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (4000, 3200), (200, 0, 0)).save(path, compress_level=1)
    assert check_image(path) is None
    assert load_pixels(path, Size(640, 512), (64, 0, 576, 512)).shape == (512, 512, 3)


def test_defaults_in_the_guide_are_those_of_the_options() -> None:
    fields = {
        item.name: item for script in SCRIPTS.values() for group in script.groups for item in option_fields(group)
    }
    values = {"none": (None, ()), "off": (False,)}
    pages = ("train_network.md", "dataset.md", "models.md", "captions.md")
    rows = [row for page in pages for row in table_rows(DOCS / page, "Option")]
    for names, told, *_ in rows:
        for name in re.findall(r"`--(\w+)`", names):
            default = default_of(fields[name])
            if told.startswith("that of"):
                assert default is None, name
            else:
                assert default in values.get(told, ()) or told == str(default) or float(told) == default, name


def test_loader_processes_are_counted_as_the_guide_says(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for threads in (1, 2, 6, 64):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        counts.append(default_worker_count())
    assert counts == [0, 1, 5, 8]


def explained_messages() -> Iterator[str]:
    for page in (DOCS / "dataset.md", DOCS / "train_network.md"):
        for row in table_rows(page, "The message says"):
            yield from re.findall(r"`([^`]+)`", row[0])


def test_explained_messages_are_those_of_the_code() -> None:
    code = "\n".join(read(path) for path in sorted((ROOT / "library").rglob("*.py")))
    assert [message for message in explained_messages() if message not in code] == []


def test_tensorboard_comes_with_the_installation() -> None:
    assert "\ntensorboard==" in read(ROOT / "requirements.txt")
