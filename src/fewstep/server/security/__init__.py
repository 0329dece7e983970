"""What stands between the network and the routes: names, pages, keys, bodies, headers.

`origins` checks Host and Origin, `keys` the key or the login cookie, `bodies` and `json_guard` what is sent,
`headers` what is answered; `guard` does all of it in one middleware.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from fewstep.server import login
from fewstep.server.caller import owner, request_id
from fewstep.server.security.bodies import MULTIPART
from fewstep.server.security.guard import OPEN, Guard
from fewstep.server.security.json_guard import MalformedJson, check_json
from fewstep.server.security.keys import Keyring
from fewstep.server.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["OPEN", "MalformedJson", "check_json", "owner", "protect", "request_id"]


def protect(
    app: FastAPI,
    settings: ServerSettings,
    *,
    pages: Mapping[str, str] = MappingProxyType({}),
    multipart: Sequence[str] = MULTIPART,
) -> None:
    """Guard an application, and give it a login page. Call it last: it must be the outermost middleware.

    Args:
        app: not yet started.
        settings: keys, names, pages and limits.
        pages: Content-Security-Policy by prefix of the path, for what is shown in a browser.
        multipart: paths, also those below them, that take files as forms and as pictures.
    """
    keyring = Keyring(settings)
    login.add_routes(app, keyring)
    app.add_middleware(
        Guard, settings=settings, keyring=keyring, pages=dict(pages), multipart=tuple(multipart)
    )
