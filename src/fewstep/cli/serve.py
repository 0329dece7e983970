"""``fewstep serve``: one process that clients of the WebUI, of OpenAI and our own talk to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fewstep
from fewstep.cli import output
from fewstep.errors import DependencyError, EngineError, UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fewstep.server.settings import Key, ServerSettings

INSTALL = 'pip install "fewstep[serve]"'
_SAFETY = "Who may come in"
_WORK = "How it works"
_MANY = "More than one"


def command(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 7860,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Draws when a request names none.")
    ] = None,
    models_dir: Annotated[
        list[Path] | None, typer.Option("--models-dir", metavar="DIR", help="Further folder of models.")
    ] = None,
    loras_dir: Annotated[
        list[Path] | None, typer.Option("--loras-dir", metavar="DIR", help="Further folder of adapters.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="auto|openvino|torch|fake")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of drawing.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Where pictures and the database are kept.")
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="URL", help="Another database, by SQLAlchemy URL.")
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep no pictures.")] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="NAME:SECRET",
            rich_help_panel=_SAFETY,
            help="Let in who has a key; several times. Better in FEWSTEP_KEYS, separated by commas, or in a "
            "file that FEWSTEP_KEYS_FILE names.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure-no-auth", help="A public address without a key.", rich_help_panel=_SAFETY),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            rich_help_panel=_SAFETY,
            help="Name by which the server may be called, besides this machine's loopback.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin", metavar="URL", rich_help_panel=_SAFETY, help="Web page that may send requests."
        ),
    ] = None,
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Fetch pictures named by URL.", rich_help_panel=_SAFETY),
    ] = False,
    manage_models: Annotated[
        bool,
        typer.Option(
            "--manage-models",
            rich_help_panel=_SAFETY,
            help="Whoever may draw may download models, and delete those that were made or downloaded here.",
        ),
    ] = False,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Orders that may wait.", rich_help_panel=_WORK)
    ] = 16,
    deadline: Annotated[
        float, typer.Option("--deadline", min=1.0, help="Seconds for one order.", rich_help_panel=_WORK)
    ] = 300.0,
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, help="Orders drawn together.", rich_help_panel=_WORK),
    ] = 8,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0.0, rich_help_panel=_WORK, help="Seconds for running orders when it is stopped."
        ),
    ] = 30.0,
    studio: Annotated[
        bool,
        typer.Option(
            "--studio/--no-studio", help="The web page, at the address itself.", rich_help_panel=_WORK
        ),
    ] = True,
    json_logs: Annotated[
        bool, typer.Option("--json-logs", help="One JSON object a line.", rich_help_panel=_WORK)
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="As replicas of a Ray Serve deployment.", rich_help_panel=_MANY)
    ] = False,
    replicas: Annotated[
        str, typer.Option("--replicas", metavar="N|MIN-MAX", help="With --ray.", rich_help_panel=_MANY)
    ] = "1",
) -> None:
    """Serve pictures over HTTP, to clients of the WebUI, of OpenAI, and our own.

    It listens on http://127.0.0.1:7860 and takes no requests from other machines unless you say so.
    """
    try:
        import uvicorn

        from fewstep.server import early, fleet, stopping
    except ImportError as error:
        raise DependencyError(f"serve: {error.name} is not installed; install it with: {INSTALL}") from None
    keys = fleet.keys(os.environ, *(key or []))
    given: dict[str, Any] = {
        "host": host, "port": port, "model": model, "engine": engine,
        "models_dirs": (*(models_dir or ()), *_beside("")),
        "loras_dirs": (*(loras_dir or ()), *_beside("*-styles")),
        "threads": threads, "save": not no_save, "keys": keys, "insecure": insecure,
        "allowed_hosts": tuple(allow_host or ()), "origins": tuple(allow_origin or ()),
        "allow_urls": allow_urls, "manage_models": manage_models, "batch": batch, "grace": grace,
        "database": database, "limits": {"queue": queue, "deadline": deadline},
    }  # fmt: skip
    if data is not None:
        given["data"] = data
    settings = _settings(given)
    settings.check()
    if ray:
        _logs(json_logs)
        _with_ray(given | {"replicas": replicas, "json_logs": json_logs}, keys)
        return
    if replicas != "1":
        raise UsageError("--replicas is for --ray: without it there is one server")
    endings: list[Callable[[], None]] = []
    app = early.Early(settings, lambda: _build(settings, endings, studio=studio, json_logs=json_logs))
    server = stopping.Server(
        uvicorn.Config(
            app, host=host, port=port, log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=30, h11_max_incomplete_event_size=64 * 1024,
        ),
        app,
        lambda found: output.note(f"listening on http://{host}:{found} (Ctrl-C stops it)"),
        endings,
    )  # fmt: skip
    server.run()
    if isinstance(app.error, ImportError):
        raise DependencyError(f"serve: {app.error.name} is not installed; install it with: {INSTALL}")
    if app.error is not None:
        raise app.error
    if server.broken:
        raise EngineError(
            "serve: the worker broke down too often and the server ended; see its log, then start it again"
        )


def _build(
    settings: ServerSettings, endings: list[Callable[[], None]], *, studio: bool, json_logs: bool
) -> FastAPI:
    """The application, whose imports take longer than opening the port; `endings` gets what ends streams."""
    from fewstep.server.app import create_app
    from fewstep.studio import mount

    _logs(json_logs)
    if not studio:
        return create_app(settings)
    app = create_app(settings, pages=mount.POLICIES, uploads=mount.UPLOADS)
    services = app.state.services
    endings.append(
        mount.attach(app, warm=lambda: services.started or services.failure is not None, data=settings.data)
    )
    return app


def _beside(pattern: str) -> tuple[Path, ...]:
    """The weights of a source checkout that runs from itself, or folders in them; none of an installation."""
    root = Path(fewstep.__file__).resolve().parents[2]
    weights = root / "weights"
    if not (root / "pyproject.toml").is_file() or not weights.is_dir():
        return ()
    return tuple(sorted(weights.glob(pattern))) if pattern else (weights,)


def _logs(json: bool) -> None:
    from fewstep.server import logs

    logs.configure(json=json)


def _settings(given: dict[str, Any]) -> ServerSettings:
    from pydantic import ValidationError

    from fewstep.server.settings import ServerSettings

    try:
        return ServerSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not isinstance(part, int)) or "options"
        raise UsageError(f"{where}: {first['msg']}") from None


def _with_ray(given: dict[str, Any], keys: tuple[Key, ...]) -> None:
    """Run as replicas. Their keys are in the environment, which processes of Ray inherit."""
    from fewstep.server import fleet

    if not keys:
        given["insecure"] = True  # `ServerSettings.check` has let this address pass
    os.environ.pop(fleet.KEYS_FILE, None)
    os.environ[fleet.KEYS] = ",".join(f"{key.name}:{key.secret.get_secret_value()}" for key in keys)
    given.pop("keys")
    settings = fleet.parse(given).named(keys)
    output.note("starting Ray, which takes a while (Ctrl-C stops it)")
    fleet.prepare()

    from fewstep.server import ray as replicas

    replicas.run(settings, host=given["host"], port=given["port"])
