"""The commands and what they have in common: options, errors, exit codes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cache_blocks import __version__
from cache_blocks.cli import doctor, inspecting, lifecycle, planning, rekeying, removing, setting_up
from cache_blocks.cli.output import complain
from cache_blocks.errors import CacheError


class _Group(TyperGroup):
    """Tells what the package raises on purpose in one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        from pydantic import ValidationError

        try:
            return super().invoke(ctx)
        except CacheError as error:
            complain(str(error))
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False, include_context=False):
                name = "_".join(str(part) for part in problem["loc"]).upper()
                complain(f"CACHE_BLOCKS_{name}: {problem['msg']}" if name else problem["msg"])
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Group,
    name="cache-blocks",
    help="Look into a tiered cache and look after it. Settings come from the environment, CACHE_BLOCKS_*.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer's signature
    if asked:
        typer.echo(f"cache-blocks {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None:
    """Take what holds for all commands."""
    del version


for _command in (
    inspecting.stats,
    inspecting.ls,
    inspecting.show,
    inspecting.metrics,
    planning.explain,
    planning.plan,
    removing.invalidate,
    removing.forget,
    removing.gc,
    removing.verify,
    rekeying.rekey,
    doctor.doctor,
    setting_up.init,
    lifecycle.lifecycle,
):
    app.command(_command.__name__)(_command)
app.add_typer(rekeying.keys, name="keys")
app.command("import")(setting_up.import_transcripts)
