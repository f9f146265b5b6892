"""Optional packages: imported where they are used, and named with their pip package when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from library.core.errors import UserError

_DOCTOR = "run python tools/doctor.py, it tells what is wrong with the environment"


def import_optional(module: str, package: str, used_for: str) -> ModuleType:
    """Imports a package that only some options need.

    Args:
        module: dotted name to import.
        package: what pip installs, with the version where it matters (`xformers==0.0.35`).
        used_for: the flag or purpose that needs it; stands as the place of the problem.

    Raises:
        UserError: when the package is missing, or present but broken (wrong CUDA, missing system library).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError.of(
                f"the package {package} is not installed", used_for, f"pip install {package}; or {_DOCTOR}"
            ) from None
        raise _broken(package, used_for, error) from error
    except Exception as error:  # a package built for other versions may raise anything while it is imported
        raise _broken(package, used_for, error) from error


def _broken(package: str, used_for: str, error: Exception) -> UserError:
    reason = str(error).strip() or "no reason given"
    return UserError.of(
        f"the package {package} is installed but cannot be used: {type(error).__name__}: {reason.splitlines()[0]}",
        used_for,
        _DOCTOR,
    )
