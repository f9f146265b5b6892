"""What is told of latents of other programs that are trusted and cannot be used: they must never be replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from library.core.errors import Problems
from library.core.wording import some_of
from library.data.cache.foreign_latents import Lack

TRUST_FLAG = "--trust_foreign_latents"
_NAMES_TOLD = 3
_ANEW = f"leave out {TRUST_FLAG} to encode them anew"
_FIXES: Mapping[Lack, str] = MappingProxyType(
    {
        Lack.WHOLE: f"bring them back whole or move them away, or {_ANEW}",
        Lack.LATENTS: f"train at the size they were made for, move them away, or {_ANEW}",
        Lack.MIRRORED: f"leave out --flip_aug, or {_ANEW}",
        Lack.MASK: f"leave out --alpha_mask, or {_ANEW}",
        Lack.MASK_FILE: f"leave out conditioning_data_dir, or {_ANEW}",
    }
)


def report_lacking(lacking: Mapping[Lack, Sequence[Path]], problems: Problems) -> None:
    """One problem for each thing that files lack; they are named together, at least the first of them."""
    for lack, fix in _FIXES.items():
        if paths := lacking.get(lack):
            names = some_of([str(path) for path in paths[:_NAMES_TOLD]], len(paths))
            problems.add(f"latents of another program are trusted and {lack.value}: {names}", TRUST_FLAG, fix)


def refuse_lacking(path: Path, lacks: Sequence[Lack]) -> None:
    """Raises:
    UserError: when the file at `path` lacks anything.
    """
    problems = Problems()
    report_lacking({lack: [path] for lack in lacks}, problems)
    problems.raise_if_any()
