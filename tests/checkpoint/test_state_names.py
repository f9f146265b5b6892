"""Whose a state is, and where it stands."""

from __future__ import annotations

from pathlib import Path

from library.checkpoint.naming import state_folder
from library.checkpoint.state import FACTS, names_of, place_of, states_of, write_state


def test_a_state_is_of_the_run_that_its_facts_name_and_stands_where_they_say(tmp_path: Path) -> None:
    """Where it has lost them its name has to do, which may be that of two runs."""
    for name, told in (("a-000001", "a-000001"), ("a", "a"), ("at-step00000005", None)):
        write_state(state_folder(tmp_path, name), {"w": 1}, {"step": 7, "epoch": 2, "name": told})
    folder = tmp_path / "a-000001-state"
    assert states_of(tmp_path, "a") == [tmp_path / "a-state"] and states_of(tmp_path, "a-000001") == [folder]
    assert states_of(tmp_path, "at") == [] and states_of(tmp_path, None) == [tmp_path / "at-step00000005-state"]
    assert names_of(folder) == {"a-000001"} and place_of(folder) == (7, 2)
    (folder / FACTS).write_text((folder / FACTS).read_text(encoding="utf-8").replace("7", "8"), encoding="utf-8")
    assert names_of(folder) == {"a-000001", "a"} and place_of(folder) == (None, 1), "changed facts tell nothing"
    step = tmp_path / "at-step00000005-state"
    (step / FACTS).unlink()
    assert names_of(step) == {"at-step00000005", "at", None} and place_of(step) == (5, None)
    assert names_of(tmp_path / "elsewhere") == frozenset() and place_of(tmp_path / "a-state") == (7, 2)
