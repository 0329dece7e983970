"""Entry of the ``fewstep`` command: finds the subcommand, turns every error into one line and an exit code.

Results go to stdout, everything else to stderr. ``fewstep --help`` imports no subcommand: their names and
short help stand in `COMMANDS`, and their modules are imported when they run.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from fewstep.cli import output
from fewstep.cli.coercion import use_plain_types
from fewstep.errors import Cancelled, FewstepError

COMMANDS: dict[str, str] = {
    "generate": "Draw images from a prompt, or change an image, and save them.",
    "txt2img": "Draw images with the options of CompVis' scripts/txt2img.py.",
    "img2img": "Change an image with the options of CompVis' scripts/img2img.py.",
    "upscale": "Make pictures larger or cleaner, by networks on the CPU.",
    "info": "Say what an image, a weight file or a model folder is.",
    "convert": "Convert weight files and pipeline folders, pickles too, to another layout, type or names.",
    "merge": "Merge checkpoints of one family into one, or make a fine-tune few-step.",
    "models": "List, name, show, forget and download models.",
    "doctor": "Say what was found on this machine and what is missing.",
    "serve": "Serve pictures over HTTP, to clients of the WebUI, of OpenAI, and our own.",
    "data": "Prepare training data.",
    "train": "Train a model from a recipe, or teach one what is on a folder of pictures.",
    "distill": "Turn a teacher of many steps into a student of few.",
    "export": "Turn a pipeline folder into a runtime bundle that needs no PyTorch.",
    "evaluate": "Measure models on prompts, and lay them side by side.",
    "history": "List, search and export what a server drew, and rebuild its database.",
}
"""Every subcommand ``x`` lives in ``fewstep.cli.x`` as the function ``command``; value: its one-line help."""

EPILOG = "Every command takes --debug: show the traceback of an error."
_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, getattr(errno, "EDQUOT", errno.ENOSPC)}


class _Command(TyperCommand):
    """A command whose options are converted without pydantic."""

    def get_params(self, ctx: Any) -> Any:
        return use_plain_types(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        headings = {getattr(param, "rich_help_panel", None) for param in self.get_params(ctx)} - {None}
        if not headings:
            super().format_options(ctx, formatter)
            return
        # Typer shows headings with rich only, whose import takes longer than the help itself.
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (line := param.get_help_record(ctx)) is not None:
                usual = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(line)
        for heading, lines in groups.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


class _LazyGroup(TyperGroup):
    """A group whose commands are imported when they run, and not to list them."""

    def get_params(self, ctx: Any) -> Any:
        return use_plain_types(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    module = importlib.import_module(f"fewstep.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=name, cls=_Command, epilog=EPILOG)(module.command)
    return get_command(app)


def _version(value: bool) -> None:
    if value:
        from fewstep import __version__

        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Draw images with few-step diffusion models, and train them."""


def group() -> Any:
    """Return the command group that `main` runs; the reference page is made from it."""
    app = typer.Typer(name="fewstep", cls=_LazyGroup, rich_markup_mode=None, epilog=EPILOG)
    app.callback()(_root)
    return get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        argv: arguments without the program name; those of the process when left out.

    Returns:
        0, or the ``exit_code`` of the error (see `fewstep.errors`), 2 for a wrong option, 130 after an
        interrupt, 1 for a bug.
    """
    arguments, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A path that is not valid in the terminal's encoding must neither stop the program nor change.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
    try:
        code = group().main(args=arguments or ["--help"], prog_name="fewstep", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        return _report(error, debug=debug)
    if code == 130:  # typer turns KeyboardInterrupt into this
        return _report(KeyboardInterrupt(), debug=False)
    return code if isinstance(code, int) else 0


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove ``--debug`` wherever it stands before a ``--``, so that it also covers errors of parsing."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = [item for item in arguments[:end] if item != "--debug"]
    return head + arguments[end:], len(head) < end


def _report(error: BaseException, *, debug: bool) -> int:
    if isinstance(error, BrokenPipeError):
        # The reader of stdout has gone (``fewstep models | head``): nothing to say, nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    message, code = _describe(error)
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    output.note(message)
    return code


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "cancelled", Cancelled.exit_code
    if isinstance(error, Cancelled):
        return f"cancelled: {error}", error.exit_code
    if isinstance(error, FewstepError):
        return f"error: {error}", error.exit_code
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "fewstep"
        return f"error: {error.format_message().rstrip('.')}; see {command} --help", error.exit_code
    if isinstance(error, MemoryError):
        return "error: out of memory; close other programs, or use a smaller --size or --n", 1
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = error.filename or "disk"
        return f"error: {where}: {error.strerror}; free some space or choose another place", 7
    kind = type(error).__name__
    return f"error: this is a bug: {kind}: {error}; run it again with --debug and report what it prints", 1
