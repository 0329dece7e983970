"""Everything that decides how a server behaves, checked once, before anything is opened."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from fewstep.errors import UsageError

MIB = 1 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """How much one caller may ask for. All are checked before the work begins."""

    max_body: int = Field(64 * MIB, ge=1024)
    """Bytes of a request."""
    max_pixels: int = Field(1 << 24, ge=4096)
    """Of a picture that is sent, after decoding."""
    max_output: int = Field(1 << 24, ge=4096)
    """Pixels of a picture that is made, after upscaling."""
    min_side: int = Field(16, ge=1)
    """Pixels of the shorter side of a picture that is sent."""
    max_images: int = Field(16, ge=1, le=64)
    """Of one order."""
    max_steps: int = Field(150, ge=1)
    max_work: int = Field(1 << 31, ge=1)
    """Pixels times steps times images of one order."""
    max_prompt: int = Field(20_000, ge=1)
    """Characters."""
    max_adapters: int = Field(8, ge=0)
    """Of one order."""
    queue: int = Field(16, ge=1)
    """Orders that wait; the one that is being drawn does not count."""
    deadline: float = Field(300.0, gt=0)
    """Seconds from the arrival of an order to its end; a caller may ask for less."""
    body_seconds: float = Field(30.0, gt=0)
    """Until a request's body has arrived."""


class Key(_Frozen):
    """A secret that lets a caller in, and whose pictures and jobs are then the name's."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    secret: Annotated[SecretStr, Field(min_length=8)]


def _data() -> Path:
    return Path(platformdirs.user_data_dir("fewstep", appauthor=False)) / "server"


class ServerSettings(_Frozen):
    """See the fields. Made by ``fewstep serve`` from its options, environment and file.

    Raises:
        UsageError: by `check`, where a public address has no key.
    """

    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    keys: tuple[Key, ...] = ()
    """Without any, everyone who reaches the port may draw."""
    insecure: bool = False
    """Listen on a public address without a key all the same."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beside the loopback's that a request's Host may have; ``*`` takes every name."""
    origins: tuple[str, ...] = ()
    """Web pages beside the server's own that may send requests, as ``https://example.org``."""
    allow_urls: bool = False
    """Fetch pictures that a request names by URL."""
    model: str | None = None
    """Name of the model that draws when none is asked for; None is the default model."""
    engine: Literal["auto", "openvino", "torch", "fake"] = "auto"
    threads: int | None = Field(None, ge=1)
    models_dirs: tuple[Path, ...] = ()
    loras_dirs: tuple[Path, ...] = ()
    manage_models: bool = False
    """Whoever may draw may download models and remove those that were made or downloaded here."""
    data: Path = Field(default_factory=_data)
    """Where pictures and the database lie."""
    database: str | None = None
    """A SQLAlchemy URL; None is SQLite in ``data``."""
    save: bool = True
    """Keep pictures in the history; single requests may ask not to."""
    batch: int = Field(8, ge=1)
    """Orders that are drawn together when they fit, and images in one call (docs/results/serving.md)."""
    grace: float = Field(30.0, ge=0)
    """Seconds that running orders have when the server is stopped."""
    limits: Limits = Limits()

    @property
    def outputs(self) -> Path:
        """Folder of the pictures."""
        return self.data / "images"

    @property
    def database_url(self) -> str:
        """What SQLAlchemy opens."""
        return self.database or f"sqlite:///{self.data / 'fewstep.db'}"

    @property
    def private(self) -> bool:
        """Whether only this machine's own user is expected: no keys, and no name but the loopback's."""
        return not (self.keys or self.insecure or self.allowed_hosts) and is_loopback(self.host)

    @property
    def managed(self) -> bool:
        """Whether models may be downloaded and removed by requests."""
        return self.manage_models or self.private

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same name; give each its own")
        if len({key.secret.get_secret_value() for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same secret; give each its own")
        return self

    def check(self) -> None:
        """Refuse a public address without a key.

        Raises:
            UsageError: says how to set a key.
        """
        if self.keys or self.insecure or is_loopback(self.host):
            return
        raise UsageError(
            f"host {self.host} can be reached from other machines and no key is set: give --key NAME:SECRET "
            "(or FEWSTEP_KEYS), listen on 127.0.0.1, or give --insecure-no-auth"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine and nothing else."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
