"""Finished orders as files, with what an answer says about them."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.server import media
from fewstep.server.openai.wishes import Wish
from fewstep.server.orders import Drawn, Image

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pictures:
    """What an answer is made from; the same however often it is asked for."""

    files: list[bytes]
    ids: list[str]
    """In the history; empty when they were not kept."""
    width: int
    height: int
    created: int
    """Seconds since 1970."""
    tokens: int
    """Of the prompt."""
    sent: int
    """Pictures that came with the request."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(len, self.files))


def finish(wish: Wish, drawn: Drawn, *, tokens: int, sent: int) -> Pictures:
    """Write the files, where they are wanted. Takes a while: not for the event loop."""
    files = []
    if not wish.as_url:
        files = [
            encode(wish, image, infotext=infotext, record=record)
            for image, infotext, record in zip(drawn.images, drawn.infotexts, drawn.records, strict=True)
        ]
    return Pictures(
        files=files, ids=list(drawn.ids), width=drawn.width, height=drawn.height, created=int(time.time()),
        tokens=tokens, sent=sent,
    )  # fmt: skip


def encode(
    wish: Wish, image: Image, *, infotext: str | None = None, record: Mapping[str, Any] | None = None
) -> bytes:
    """A picture as a file of the kind that is wanted."""
    quality = None if wish.kind == "png" else wish.compression
    return media.encode(image, kind=wish.kind, infotext=infotext, record=record, quality=quality)


def count_tokens(info: ModelInfo, text: str) -> int:
    """How many tokens a text has for the model's first text encoder, its begin and end among them.

    A class-conditional model reads no text: its class counts as 1.
    """
    encoder = info.encoders[0]
    if encoder.kind == "class":
        return 1
    return len(_tokenizer(encoder.tokenizer_json).encode(text).ids)


@functools.lru_cache(maxsize=4)
def _tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
