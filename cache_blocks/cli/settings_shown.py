"""Settings for people: what is in force and where it comes from, never a secret."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson
from pydantic import SecretStr

from cache_blocks.settings import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "CACHE_BLOCKS_"
MASK: Final = "**********"


def settings_shown(settings: CacheSettings, environment: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """Return name, value and source of every setting.

    Args:
        settings: Settings in force.
        environment: Environment variables; a setting that comes from one is said to.
    """
    names = {name.upper() for name in environment}
    shown: list[dict[str, str]] = []
    for field in CacheSettings.model_fields:
        variable = f"{PREFIX}{field.upper()}"
        source = "environment" if variable in names else "code" if field in settings.model_fields_set else "default"
        shown.append({"name": variable, "value": _shown(field, getattr(settings, field)), "source": source})
    return shown


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return variables that look like settings and are none."""
    known = {f"{PREFIX}{field.upper()}" for field in CacheSettings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)


def _shown(field: str, value: Any) -> str:
    if not isinstance(value, SecretStr):
        return str(value)
    text = value.get_secret_value()
    if field == "private_keys":
        return MASK if text else ""
    if field == "object_store_options":
        return _options(text)
    try:
        return masked_url(text)
    except ValueError:
        return MASK


def masked_url(url: str) -> str:
    """Return a URL without user, password and query, all of which may be secrets.

    Raises:
        ValueError: It is not a URL.
    """
    parts = urlsplit(url)
    host = f"{MASK}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{host}{parts.path}{f'?{MASK}' if parts.query else ''}"


def _options(text: str) -> str:
    """Show the names of the options; any value may be a secret."""
    try:
        options: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return MASK
    if not isinstance(options, dict):
        return MASK
    names: list[str] = [str(name) for name in options]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return f"{{{', '.join(f'{name}: {MASK}' for name in names)}}}"
