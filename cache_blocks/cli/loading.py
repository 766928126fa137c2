"""Functions that the command line calls without knowing them: a pipeline's own, found in the working directory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_blocks.errors import ConfigurationError


def load_function(name: str, *, optional: bool = False) -> Callable[..., Any] | None:
    """Return the function ``module:function``, its module looked for in the working directory first.

    Args:
        name: What to load.
        optional: Return None when there is no such module.

    Raises:
        ConfigurationError: There is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigurationError(f"{name!r} is not MODULE:FUNCTION, such as flows.importing:import_archive")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        if optional:
            return None
        raise ConfigurationError(
            f"there is no module {module_name} here; change to the directory of your pipeline, or name another function"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigurationError(f"module {module_name} has no function {function_name}")
    return function
