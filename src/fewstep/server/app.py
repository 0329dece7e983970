"""The FastAPI application: routes of three APIs, and what guards them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastapi import FastAPI

from fewstep import __version__
from fewstep.errors import FewstepError
from fewstep.server import faults, security
from fewstep.server.routes import (
    a1111,
    adapters,
    datasets,
    images,
    jobs,
    live,
    models,
    openai,
    ops,
    preferences,
    reading,
    styles,
    work,
)
from fewstep.server.security.bodies import MULTIPART
from fewstep.server.services import Services
from fewstep.server.settings import ServerSettings

if TYPE_CHECKING:
    from fewstep.server.pool import Opener

_log = logging.getLogger("fewstep.server")


def create_app(
    settings: ServerSettings | None = None,
    *,
    opener: Opener | None = None,
    pages: Mapping[str, str] = MappingProxyType({}),
    uploads: Sequence[str] = (),
) -> FastAPI:
    """The application of one server; it opens its database and model when it is started.

    Args:
        settings: how it behaves; None is the defaults.
        opener: opens engines; for tests.
        pages: Content-Security-Policy by prefix of the path, for pages that the caller adds.
        uploads: paths of such pages that take files as forms.

    Raises:
        UsageError: a public address without a key.
    """
    settings = settings or ServerSettings()
    settings.check()
    # No pages of Swagger or ReDoc: they load scripts from other servers.
    app = FastAPI(
        title="fewstep", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        summary="Few-step diffusion, by the APIs of the Stable Diffusion WebUI, of OpenAI, and our own",
    )  # fmt: skip
    app.state.services = Services(settings, opener)
    parts = (
        ops, adapters, jobs, models, images, work, datasets, preferences, styles, reading, live, openai,
        a1111,
    )  # fmt: skip
    for part in parts:
        app.include_router(part.router)
    faults.install(app)
    security.protect(app, settings, pages=pages, multipart=(*MULTIPART, *uploads))
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    opening = asyncio.create_task(asyncio.to_thread(_open, services))
    try:
        yield
    finally:
        services.begin_drain()
        await opening
        await asyncio.to_thread(services.close)


def _open(services: Services) -> None:
    try:
        services.open()
    except FewstepError as error:
        _log.error("the server cannot work: %s", error)
    except Exception:
        _log.exception("the server could not start")
