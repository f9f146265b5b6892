"""Tells what a model file or folder is: kind, parts, precision, what is missing, hashes, metadata. Reads no weight.

python tools/inspect_model.py model.safetensors
python tools/inspect_model.py diffusers_folder --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import UserError, run_script
from library.core.log import start_logging

if TYPE_CHECKING:
    from library.models.files.weights import WeightsFile
    from library.models.identify import ModelIdentity

SHOWN_METADATA = 100  # characters of a value; tag counts are pages long
SHOWN_FAULTS = 20
WEB_UI_DIGITS = 10  # of the SHA-256, as the Web UI shows them behind a model's name


@dataclass(frozen=True)
class Part:
    """Tensors that belong together: how many, how many numbers, how many bytes, tensors by precision."""

    name: str
    tensors: int
    weights: int
    bytes: int
    precisions: Mapping[str, int]


@dataclass
class Report:
    """All that is told; `faults` is None where nobody can say what should be there."""

    path: str
    what: str
    kind: str
    family: str | None = None
    form: str | None = None
    prediction_type: str | None = None
    told_by: str | None = None
    parts: list[Part] = field(default_factory=list)
    faults: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Parses the command line, then imports what is slow."""
    arguments = _parser().parse_args()
    start_logging()  # before the imports: it keeps libraries from talking while they load
    report = inspect(arguments.path)
    if arguments.json:
        print(json.dumps(asdict(report), indent=2))  # in ASCII: texts out of a file could command the terminal
    else:
        print("\n".join(lines_of(report)))


def inspect(path: Path) -> Report:
    """What can be said of a file or folder.

    Raises:
        UserError: nothing there, or damaged so that it cannot be opened.
    """
    if not path.exists():
        raise UserError.of("no such file or folder", str(path), "check the path")
    return _inspect_folder(path) if path.is_dir() else _inspect_file(path)


def _inspect_file(path: Path) -> Report:
    from library.core.tensor_files import data_hash, file_hash, legacy_hash
    from library.models.files.weights import SAFETENSORS_SUFFIX, open_weights
    from library.models.identify import identify
    from library.models.recognise import MODEL, recognise

    file = open_weights(path)
    found = recognise(file.shapes)
    report = Report(str(path), found.detail, found.kind, found.family, parts=list(_parts_of_file(file)))
    report.notes, report.metadata = list(file.notes), dict(file.metadata)
    if found.kind == MODEL:
        _add_identity(report, identify(path))
    whole = file_hash(path)
    report.hashes = {"sha256": whole, "web_ui": whole[:WEB_UI_DIGITS], "legacy": legacy_hash(path)}
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        report.hashes["weights_sha256"] = data_hash(path)
    return report


def _inspect_folder(folder: Path) -> Report:
    from library.models.extras import EXTRAS_FILE
    from library.models.files.folder_weights import STEMS, weights_files
    from library.models.files.weights import open_weights, open_weights_or_metadata
    from library.models.identify import identify
    from library.models.recognise import FAMILY_NAMES, MODEL

    identity = identify(folder)
    report = Report(str(folder), f"a full {FAMILY_NAMES[identity.family]} model", MODEL, identity.family)
    for name, stem in STEMS.items():
        try:
            files = [open_weights(path) for path in weights_files(folder / name, stem)]
        except UserError:
            continue  # the faults below name it
        report.parts.append(_part(name, [(file, tensor) for file in files for tensor in file.shapes]))
        report.notes += [note for file in files for note in file.notes]
    if (folder / EXTRAS_FILE).is_file():
        extras = open_weights_or_metadata(folder / EXTRAS_FILE)
        if extras.shapes:
            report.parts.append(_part(f"kept extras ({EXTRAS_FILE})", [(extras, name) for name in extras.shapes]))
        report.metadata = dict(extras.metadata)
    _add_identity(report, identity)
    return report


def _add_identity(report: Report, identity: ModelIdentity) -> None:
    from library.models.load import faults_of

    report.form, report.told_by = identity.form, identity.told_by
    report.prediction_type = identity.prediction_type
    report.faults = faults_of(identity)


def _parts_of_file(file: WeightsFile) -> Iterator[Part]:
    from library.models.convert import text_encoder, unet, vae

    prefixes = {
        "U-Net": (unet.PREFIX,),
        "text encoder": (text_encoder.CLIP_PREFIX, text_encoder.OPENCLIP_PREFIX),
        "VAE": (vae.PREFIX,),
    }
    left = list(file.shapes)
    for part, starts in prefixes.items():
        names = [name for name in left if name.startswith(starts)]
        left = [name for name in left if not name.startswith(starts)]
        if names:
            yield _part(part, [(file, name) for name in names])
    if left:
        yield _part("other" if len(left) < len(file.shapes) else "all", [(file, name) for name in left])


def _part(part: str, tensors: Iterable[tuple[WeightsFile, str]]) -> Part:
    import math

    precisions: Counter[str] = Counter()
    count = weights = size = 0
    for file, name in tensors:
        numbers, dtype = math.prod(file.shapes[name]), file.dtypes[name]
        precisions[str(dtype).removeprefix("torch.")] += 1
        count, weights, size = count + 1, weights + numbers, size + numbers * dtype.itemsize
    return Part(part, count, weights, size, dict(precisions))


def lines_of(report: Report) -> list[str]:
    """The report for people; what of the file's texts is not printable is escaped, so that each stays on its line."""
    lines = [f"{report.path}: this is {report.what}" + (f", form {report.form}" if report.form else "")]
    if report.kind == "model":
        lines.append(f"predicts: {_prediction_words(report)}")
    lines += ["", f"{'part':<42}{'tensors':>8}{'weights':>15}{'MB':>10}  precision"]
    for part in report.parts:
        precisions = ", ".join(
            f"{name} ({n})" if len(part.precisions) > 1 else name for name, n in part.precisions.items()
        )
        lines.append(f"{part.name:<42}{part.tensors:>8}{part.weights:>15,}{part.bytes / 1e6:>10.1f}  {precisions}")
    lines.append("")
    if report.faults is not None:
        lines.append("complete: yes" if not report.faults else f"complete: no, {len(report.faults)} faults")
        lines += [f"  {fault}" for fault in report.faults[:SHOWN_FAULTS]]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"{name}: {value}" for name, value in report.hashes.items()]
    lines.append(f"metadata: {len(report.metadata)} entries")
    lines += [f"  {_shortened(key)}: {_shortened(value)}" for key, value in sorted(report.metadata.items())]
    return [_printable(line) for line in lines]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _prediction_words(report: Report) -> str:
    if report.prediction_type is None:
        return "noise (epsilon) or v; the file does not tell, so --v_parameterization has to"
    words = "v" if report.prediction_type == "v_prediction" else "noise (epsilon)"
    return f"{words}, told by {report.told_by}" if report.told_by else f"{words}, as models of its family do"


def _shortened(value: str) -> str:
    return value if len(value) <= SHOWN_METADATA else f"{value[:SHOWN_METADATA]}… ({len(value):,} characters)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Tell what a model file or folder is. Nothing of it is run.")
    parser.add_argument("path", type=Path, help="a .safetensors, .ckpt or .pt file, or a Diffusers folder")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, metadata in full")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
