"""finetune/clean_captions_and_tags.py: what it shows is what it writes, and nothing is lost on the way."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.clean_captions_and_tags import main
from library.core.errors import UserError
from tests.training.runs import ROOT, environment

ENTRIES: dict[str, dict[str, Any]] = {
    "絵/猫": {"caption": "a woman and an anime girl.", "tags": "1girl, long_hair", "train_resolution": [512, 448]},
    "b": {"tags": "2girls, red_hair, blue_hair, rating:safe", "mine": {"x": [1, None]}},
    "clean": {"caption": "a dog", "tags": "dog"},
    "c\x1b[31m": {"caption": "two women\na woman\x1b[0m"},
    "gone": {"tags": "rating:safe"},
}
CLEANED = {
    "絵/猫": {"caption": "a girl and a girl", "tags": "1girl, long hair", "train_resolution": [512, 448]},
    "b": {"tags": "2girls", "mine": {"x": [1, None]}},
    "clean": {"caption": "a dog", "tags": "dog"},
    "c\x1b[31m": {"caption": "two girls\na girl\x1b[0m"},
    "gone": {"tags": ""},
}


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "メタ.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "finetune" / "clean_captions_and_tags.py"), *map(str, words)]


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, started from another folder."""
    return subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8"
    )


def applied(diff: Sequence[str], entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries with the changes that a diff shows; its old texts must be those of the entries."""
    names = {key.replace("\x1b", "\\x1b"): key for key in entries}
    result, key = {name: dict(entry) for name, entry in entries.items()}, ""
    for line in diff[2:]:
        if line.startswith("@@"):
            key = names[line.removeprefix("@@ ").removesuffix(" @@")]
            continue
        field, text = line[1:].split(": ", 1)
        text = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
        if line[0] == "-":
            assert result[key][field] == text
        result[key][field] = text
    return result


def test_a_process_of_its_own(metadata: Path, tmp_path: Path) -> None:
    before = metadata.read_bytes()
    result = run(metadata.name, "out/clean.json", folder=tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert read(tmp_path / "out" / "clean.json") == CLEANED and metadata.read_bytes() == before
    assert list(read(tmp_path / "out" / "clean.json")) == list(ENTRIES)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["clean.json", "out", metadata.name]
    told = result.stderr.splitlines()
    assert {
        "girl: 2 captions (3 places)",
        "style: 1 caption",
        "ratings: tags of 2 pictures",
        "beginnings: 0 captions",
    } < set(told)
    assert "4 of 5 entries changed" in told and any(line.endswith("for one of these: gone") for line in told)


def test_a_try_shows_what_would_be_written_and_writes_nothing(metadata: Path, tmp_path: Path) -> None:
    seen = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (metadata,)}
    first = run(metadata, tmp_path / "out.json", "--dry_run", folder=tmp_path)
    again = run(metadata, tmp_path / "out.json", "--dry_run", folder=tmp_path)
    assert first.returncode == 0 and first.stdout == again.stdout and first.stderr == again.stderr
    assert list(tmp_path.iterdir()) == [metadata]
    assert seen == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in seen}
    assert "\x1b" not in first.stdout + first.stderr and "4 of 5 entries changed" in first.stderr
    lines = first.stdout.splitlines()
    assert lines[:2] == [f"--- {metadata}", f"+++ {tmp_path / 'out.json'}"] and "clean" not in "".join(lines[2:])
    assert "-caption: two women\\na woman\\x1b[0m" in lines and "@@ c\\x1b[31m @@" in lines
    main([str(metadata), str(tmp_path / "out.json")])
    assert applied(lines, ENTRIES) == read(tmp_path / "out.json") == CLEANED


def test_the_input_as_output_keeps_a_backup(metadata: Path, tmp_path: Path) -> None:
    before = metadata.read_bytes()
    main([str(metadata), str(metadata)])
    assert read(metadata) == CLEANED
    (backup,) = (path for path in tmp_path.iterdir() if path != metadata)
    assert backup.read_bytes() == before
    cleaned = metadata.read_bytes()
    main([str(metadata), str(metadata)])  # what is clean stays, and needs no backup
    assert metadata.read_bytes() == cleaned and len(list(tmp_path.iterdir())) == 2


def test_an_output_that_is_there_keeps_a_backup(
    metadata: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    out.write_text('{"old": {"tags": "x"}}', encoding="utf-8")
    main([str(metadata), str(out)])
    (backup,) = (path for path in tmp_path.iterdir() if path not in (metadata, out))
    assert read(backup) == {"old": {"tags": "x"}} and read(out) == CLEANED
    assert f"all entries are in {out}; what was there is kept as {backup}" in capfd.readouterr().err


def test_rules_of_ones_own_take_the_place_of_all(metadata: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("[[captions.rule]]\nname = 'dogs'\nreplace = { 'dog' = 'puppy' }\n", encoding="utf-8")
    main([str(metadata), str(tmp_path / "out.json"), "--rules", str(rules)])
    assert read(tmp_path / "out.json") == {**ENTRIES, "clean": {"caption": "a puppy", "tags": "dog"}}


def test_mistakes_in_rules_and_metadata_are_told_together(tmp_path: Path) -> None:
    rules, broken = tmp_path / "rules.toml", tmp_path / "meta.json"
    rules.write_text("[[tags.rule]]\nname = 'x'\nremov = ['a']\nremove = []\n", encoding="utf-8")
    broken.write_text('{"a": {"caption": 3}, "b": "text", "c": {"tags": "x"}}', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        main([str(broken), str(tmp_path), "--rules", str(rules)])
    told = str(caught.value)
    assert all(part in told for part in ("line 3", "did you mean remove", "key a", "key b", "this is a folder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "rules.toml"]
    with pytest.raises(UserError, match="does not exist"):
        main([str(tmp_path / "none.json"), str(tmp_path / "out.json")])


def test_whoever_reads_the_diff_may_stop(tmp_path: Path) -> None:
    metadata = tmp_path / "meta.json"
    metadata.write_text(json.dumps({f"{n}": {"tags": "a_b, " * 20} for n in range(3000)}), encoding="utf-8")
    process = subprocess.Popen(
        command(metadata, "out.json", "--dry_run"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0 and "Traceback" not in told and "3000 of 3000 entries changed" in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_diff_that_cannot_be_written(metadata: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        result = subprocess.run(
            command(metadata, "out.json", "--dry_run"),
            cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
    assert result.returncode == 1 and list(tmp_path.iterdir()) == [metadata]
    told = result.stderr
    assert "standard output: the changes cannot be written: No space left on device" in told
    assert "Traceback" not in told and "Exception ignored" not in told and "1 problem ended the run" in told


@pytest.mark.parametrize("in_place", [False, True])
def test_killed_and_started_again(tmp_path: Path, in_place: bool) -> None:
    """Wherever the kill falls, the second run leaves the files of a clean one."""
    draws = random.Random(7)
    many = {f"{number}": {"caption": "a woman.", "tags": "a_b, rating:safe"} for number in range(2000)}
    original = json.dumps(many).encode()

    def start(name: str) -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "meta.json").write_bytes(original)
        return folder / "meta.json", folder / ("meta.json" if in_place else "out.json")

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    source, out = start("clean")
    began = time.monotonic()
    assert run(source, out, folder=tmp_path).returncode == 0
    length = time.monotonic() - began
    expected = files(source.parent)
    for number in range(2):
        source, out = start(f"killed{number}")
        process = subprocess.Popen(command(source, out), env=environment(), stderr=subprocess.DEVNULL)
        time.sleep(length * draws.uniform(0.3, 1.0))
        process.kill()
        process.wait()
        for name, content in files(source.parent).items():
            assert name.startswith(".tmp-") or content in (original, expected.get(name))
        main([str(source), str(out)])
        assert files(source.parent) == expected
