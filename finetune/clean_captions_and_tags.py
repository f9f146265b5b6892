"""Makes captions and tags of a metadata file uniform, by rules in a file.

    python finetune/clean_captions_and_tags.py meta_cap_dd.json meta_clean.json --dry_run

finetune/cleaning_rules.toml holds the rules and says how to write others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import Problems, printable, run_script
from library.core.log import get_logger
from library.options.command_line import read_command_line
from library.options.preparation import CleaningOptions

if TYPE_CHECKING:
    from library.preparation.rules import Rules

SCRIPT = "finetune/clean_captions_and_tags.py"
DEFAULT_RULES = Path(__file__).resolve().parent / "cleaning_rules.toml"


def main(words: Sequence[str] | None = None) -> None:
    """Reads rules and metadata, then shows what would change, or writes it.

    Raises:
        UserError: with every mistake in the options, or in the rules and the metadata; nothing is written then.
    """
    values = read_command_line(SCRIPT, words)
    if values is None:
        return
    options = values.of(CleaningOptions)
    from library.preparation.metadata_file import check_output, read_entries
    from library.preparation.rules import read_rules

    problems = Problems()
    rules_file = DEFAULT_RULES if options.rules is None else Path(options.rules)
    rules = problems.attempt(lambda: read_rules(rules_file, "--rules"))
    entries = read_entries(Path(options.in_json), problems)
    if not options.dry_run:
        check_output(Path(options.out_json), "IN_JSON OUT_JSON", problems)
    problems.raise_if_any()
    if rules is not None:
        _clean(entries, rules, options)


def _clean(entries: dict[str, dict[str, Any]], rules: Rules, options: CleaningOptions) -> None:
    """Cleans all entries; shows the changes or writes the file, and tells the counts."""
    from library.preparation.cleaning import Cleaner, Tally
    from library.preparation.diff import diff_entry, diff_head, print_lines
    from library.preparation.metadata_file import write_entries

    cleaner, tally, differences = Cleaner(rules), Tally(), list(diff_head(options.in_json, options.out_json))
    for key, entry in entries.items():
        cleaned = cleaner.clean(entry)
        tally.add(key, entry, cleaned)
        if options.dry_run:
            differences += diff_entry(key, entry, cleaned.entry)
        entries[key] = cleaned.entry
    log, end = get_logger(__name__), "nothing is written, because of --dry_run"
    if options.dry_run:
        print_lines(differences)
    else:
        backup = write_entries(Path(options.out_json), entries)
        end = f"all entries are in {options.out_json}" + (f"; what was there is kept as {backup}" if backup else "")
    for line in tally.told(rules):
        log.info(printable(line))
    if warning := tally.warning():
        log.warning(printable(warning))
    log.info(printable(end))


if __name__ == "__main__":
    sys.exit(run_script(main))
