"""The command ``lifecycle``."""

from __future__ import annotations

from typing import Annotated

import typer

from cache_blocks.cli.output import emit, seconds, this_cache


def lifecycle(
    *,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="NAME=AGE", help="Lifetime of a kind of your own, such as podcast=14d.")
    ] = None,
) -> None:
    """Write a lifecycle configuration for the bucket: a second net, should `gc` not be run.

    It is JSON as `aws s3api put-bucket-lifecycle-configuration --lifecycle-configuration` takes it. That command
    replaces what the bucket has, so merge the rules of other namespaces, and your own, into one file.
    """
    from cache_blocks.maintenance.lifecycle import lifecycle as configuration

    emit(configuration(this_cache(), dict(_lifetime(text) for text in kind or [])))


def _lifetime(text: str) -> tuple[str, float]:
    name, separator, age = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text!r} is not NAME=AGE, such as podcast=14d")
    return name, seconds(age)
