"""What the routes of the WebUI's API keep between requests, and how a request becomes a wish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from fewstep.errors import FewstepError
from fewstep.server import media
from fewstep.server.a1111 import img2img, models, options, pasted, txt2img
from fewstep.server.a1111.tracking import Tracker
from fewstep.server.a1111.wishes import Setting, Wish
from fewstep.server.orders import Image
from fewstep.server.schemas.a1111 import Generation, Img2Img, Txt2Img

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.server.services import Services


@dataclass(kw_only=True, slots=True, eq=False)
class Desk:
    """Options and tasks of all callers; one for an application."""

    options: options.Store = field(default_factory=options.Store)
    tracker: Tracker = field(default_factory=Tracker)
    bench: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Extras enlarge one picture at a time: each takes all cores."""
    waiting: int = 0
    """Extras that want the bench or have it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """A request that can be drawn."""

    wish: Wish
    info: ModelInfo
    options: dict[str, Any]
    """Of the caller, with those of the request."""
    keep: dict[str, Any]
    """Options that the request leaves behind."""


async def desk_of(request: Request) -> Desk:
    """For routes: ``Depends(desk_of)``."""
    state = request.app.state
    if not hasattr(state, "a1111"):
        folder = state.services.settings.data
        state.a1111 = Desk(options=options.Store(folder / options.FILE))
    desk: Desk = state.a1111
    return desk


def prepared(body: Generation, services: Services, desk: Desk, owner: str) -> Prepared:
    """Read a request. Opens pictures and models: not for the event loop.

    Raises:
        UsageError, NotFoundError, DataError, TooLarge, DependencyError: what the request asks for cannot be.
    """
    body, made_by = pasted.filled(body)
    generator = services.generator
    own = options.checked(body.override_settings or {}, strict=False)
    merged = desk.options.get(owner) | own
    named = own.get(options.CHECKPOINT)
    if named is None:
        model = model_of(services, desk, owner)
    else:
        model = own[options.CHECKPOINT] = models.find(named, models.listed(generator))
    info = generator.info(model)
    at = Setting(
        info=info, owner=owner, options=merged, limits=services.settings.limits,
        styles=services.styles.known(owner), decode=decoder(services),
    )  # fmt: skip
    save = services.settings.save and not body.do_not_save_samples
    if isinstance(body, Img2Img):
        wish = img2img.wish(body, at, model=model, save=save)
    else:
        assert isinstance(body, Txt2Img)
        wish = txt2img.wish(body, at, model=model, save=save)
    if made_by is not None and made_by != model and named is None:
        wish.comments.append(
            f"the infotext is of the model {made_by[:60]}, {model} draws: override_settings."
            "sd_model_checkpoint names another"
        )
    keep = {} if body.override_settings_restore_afterwards else own
    return Prepared(wish=wish, info=info, options=merged, keep=keep)


def decoder(services: Services) -> Callable[..., Image]:
    """Reads pictures of requests under the server's limits."""
    settings = services.settings

    def decode(text: str, what: str, *, mask: bool = False) -> Image:
        return media.decode_text(
            text, what=what, limits=settings.limits, mask=mask, allow_urls=settings.allow_urls
        )

    return decode


def set_options(services: Services, desk: Desk, owner: str, values: dict[str, Any]) -> None:
    """Keep checked options for an owner; the model is found before anything is kept.

    Raises:
        NotFoundError, CheckpointError, DependencyError: of the model.
        OutputError: they cannot be written.
    """
    values = dict(values)
    if (named := values.get(options.CHECKPOINT)) is not None:
        values[options.CHECKPOINT] = models.find(named, models.listed(services.generator))
        services.generator.set_model(owner, values[options.CHECKPOINT])
    desk.options.update(owner, values)


def model_of(services: Services, desk: Desk, owner: str) -> str:
    """Name of the model of an owner's requests: of before a restart too, while there is such a model."""
    generator = services.generator
    chosen: str = desk.options.get(owner)[options.CHECKPOINT]
    if chosen and generator.model_of(owner) != chosen:
        with contextlib.suppress(FewstepError):  # it is gone: the server's own draws
            generator.set_model(owner, chosen)
    return generator.model_of(owner)
