"""JSON files that hold one object, read with messages a person can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from library.core.errors import UserError

_COPY_AGAIN = "copy the file again"


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError.of(
            f"cannot be read: {error.strerror}", str(path), "check that it exists and its rights"
        ) from None
    except ValueError as error:
        raise UserError.of(f"not valid JSON: {error}", str(path), _COPY_AGAIN) from None
    if not isinstance(content, dict):
        raise UserError.of("holds no JSON object", str(path), _COPY_AGAIN)
    return content
