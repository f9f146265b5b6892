"""--debug_dataset: the walk through the batches, the page where no window opens, and that nothing ever hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from library.data.index.index import ImageIndex
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.training.checks.preflight import check_embedding_run, check_network_run
from library.training.debug import dataset as debug_dataset
from library.training.debug.dataset import PAGE_NAME, can_open_window, show_dataset
from library.training.debug.walk import Walk, head_line
from library.training.methods import make_tokenizer
from library.training.run import NetworkRun
from tests.data.data_helpers import save_picture
from tests.data.report.test_dataset_report import lively, source_of  # noqa: F401  # the fixture of many looks


@pytest.fixture
def run(tmp_path: Path, tiny_models: dict[str, Path]) -> NetworkRun:
    for number in range(3):
        save_picture(tmp_path / "data" / "2_mira cat" / f"{number}.png", (64, 64), number)
    entry = SCRIPTS["train_network.py"]
    words = [
        *("--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--train_data_dir", str(tmp_path / "data")),
        *("--resolution", "64", "--max_train_steps", "5", "--output_dir", str(tmp_path / "out")),
        *("--network_module", "networks.lora"),
        "--debug_dataset",
    ]
    return check_network_run(parse_options("train_network.py", entry.description, entry.groups, words))


def test_keys_walk_through_batches_and_epochs(lively: ImageIndex) -> None:  # noqa: F811
    planner = source_of(lively).planner
    walk = Walk(planner)
    first = planner.epoch_plan(0)
    assert walk.request == first[0] and walk.batches == len(first) > 3
    assert walk.press("s") and walk.request == first[1]
    assert walk.press("S") and walk.request == first[2]
    second = planner.epoch_plan(1, len(first))
    assert walk.press("e") and walk.request == second[0]
    assert walk.press("E") and walk.request.epoch == 2 and walk.request.position == 0
    assert walk.request.step == len(first) + len(second)
    assert walk.press("x") and walk.press("Return") and walk.request.position == 0
    assert not walk.press("Escape")


def test_the_last_batch_leads_to_the_next_epoch(lively: ImageIndex) -> None:  # noqa: F811
    planner = source_of(lively).planner
    walk = Walk(planner)
    seen = [walk.request]
    for _ in range(walk.batches):
        walk.press("s")
        seen.append(walk.request)
    assert seen[:-1] == list(planner.epoch_plan(0))
    assert (seen[-1].epoch, seen[-1].position) == (1, 0)


@pytest.mark.parametrize("display", [None, "", ":987", "no such display"])
def test_without_a_display_there_is_a_page_at_once(
    run: NetworkRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], display: str | None
) -> None:
    if sys.platform in ("win32", "darwin"):
        pytest.skip("this system always has a display")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    started = time.monotonic()
    show_dataset(run)
    assert time.monotonic() - started < 10
    page = run.files.result.parent / PAGE_NAME
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.count('<article class="picture">') == 3 and "Ready to train" in text
    assert not run.files.result.exists()


def test_a_display_that_never_answers_is_given_up(run: NetworkRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(debug_dataset, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(debug_dataset, "_PROBE_SECONDS", 0.5)
    started = time.monotonic()
    assert not can_open_window()
    show_dataset(run)
    assert time.monotonic() - started < 10
    assert (run.files.result.parent / PAGE_NAME).exists()


def test_a_python_without_tk_makes_the_page(run: NetworkRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(debug_dataset, "_PROBE", "import no_such_toolkit")
    show_dataset(run)
    assert (run.files.result.parent / PAGE_NAME).exists()


def test_of_several_processes_one_shows_it(run: NetworkRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    show_dataset(run)
    assert not run.files.result.parent.exists()


def test_it_plans_for_as_many_processes_as_were_launched(run: NetworkRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    page = run.files.result.parent / PAGE_NAME
    for processes, updates in (("1", 6), ("2", 3), ("4", 2)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        show_dataset(run)
        text = page.read_text(encoding="utf-8")
        assert f"<b>{updates}</b><span>updates an epoch" in text and f"update {updates}" in text
        assert "batch 6" in text.lower() and "batch 7" not in text.lower()  # with 4 the plan has 8, two of them copies


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system always has a display")
def test_a_new_word_counts_as_its_tokens(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word of 70 vectors is 70 tokens, and pushes the end of a caption out."""
    monkeypatch.delenv("DISPLAY", raising=False)
    save_picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("zumira, a cat on a green sofa", encoding="utf-8")
    script = "train_textual_inversion.py"
    words = [
        *("--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--train_data_dir", str(tmp_path / "data")),
        *("--resolution", "64", "--max_train_steps", "5", "--output_dir", str(tmp_path / "out")),
        *("--token_string", "zumira", "--num_vectors_per_token", "70", "--init_word", "cat", "--debug_dataset"),
    ]
    entry = SCRIPTS[script]
    checked = check_embedding_run(parse_options(script, entry.description, entry.groups, words))
    expected = make_tokenizer(checked).count_tokens(["zumira, a cat on a green sofa"])[0]
    assert expected == 77
    show_dataset(checked)
    text = (checked.files.result.parent / PAGE_NAME).read_text(encoding="utf-8")
    assert "77 tokens" in text and "2 tokens not read" in text


def test_no_model_library_is_needed() -> None:
    """What the page needs imports neither diffusers nor accelerate, which take seconds."""
    code = (
        "import sys, library.training.debug.pictures_told; "
        "print([name for name in ('diffusers', 'accelerate') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb, a display without a screen, is not installed")
def test_the_window_shows_batches_and_closes(lively: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-nolisten", "tcp"], pass_fds=[write])
    try:
        os.close(write)
        monkeypatch.setenv("DISPLAY", f":{os.read(read, 16).decode().strip()}")
        assert can_open_window()
        from library.training.debug.window import Window

        source = source_of(lively)
        window = Window(source)
        window.root.focus_force()
        shown = [window.head]
        for key in ("s", "E", "x"):
            window.root.update()
            window.root.event_generate(f"<KeyPress-{key}>")
            shown.append(window.head)
        starts = ["epoch 1, batch 1 of", "epoch 1, batch 2 of", "epoch 2, batch 1 of", "epoch 2, batch 1 of"]
        assert [line.startswith(start) for line, start in zip(shown, starts, strict=True)] == [True] * 4, shown
        window.root.after(200, lambda: window.root.event_generate("<KeyPress-Escape>"))
        window.run()  # returns
    finally:
        os.close(read)
        server.terminate()
        server.wait(10)


def test_the_head_line_names_epoch_and_batch(lively: ImageIndex) -> None:  # noqa: F811
    from library.data.report.dataset_report import batch_facts

    source = source_of(lively)
    batch = batch_facts(source, source.planner.epoch_plan(0)[1])
    assert head_line(batch, 1, 9) == f"epoch 1, batch 2 of 9, update 2, bucket {batch.bucket}"
