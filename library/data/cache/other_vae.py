"""Whether the latents that lie on disk were made with another VAE: to be told before they are replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from library.data.cache.disk_latents import LatentFiles
from library.data.cache.latent_files import FINGERPRINT
from library.data.cache.npz_files import read_arrays, read_object

_LOOKED_AT = 16


def file_of_other_vae(files: LatentFiles) -> Path | None:
    """One of the files whose latents another VAE made; None where there seem to be none. Only a few are looked at."""
    count = len(files.views.index)
    for record in np.linspace(0, count - 1, min(_LOOKED_AT, count), dtype=np.int64).tolist():
        path = files.paths.latents(record)
        vae = _vae_of(path)
        if vae is not None and vae != files.vae.digest:
            return path
    return None


def _vae_of(path: Path) -> str | None:
    """Digest of the VAE that made the latents; None where no such file is, or it is not ours."""
    try:
        content = read_arrays(path, lambda names: names & {FINGERPRINT})
    except OSError:  # told when the file is read
        return None
    stored = read_object(content.arrays[FINGERPRINT]) if FINGERPRINT in content.arrays else None
    vae = stored.get("vae") if stored is not None else None
    return vae if isinstance(vae, str) else None
