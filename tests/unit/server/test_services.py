"""What a server does before it is ready."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from fewstep.engine.backends.fake import FakeBackend
from fewstep.server.pool import Pool
from fewstep.server.services import _load_ahead


def test_networks_are_loaded_ahead_and_what_fails_is_left_to_the_warming_up() -> None:
    pool = Pool("emoji-128", threads=1)
    _load_ahead(pool)
    with pool.using() as engine:
        parts = {part for part, _ in engine.backend._loaded}  # type: ignore[attr-defined]
    assert {"denoiser", "students/lcm", "text_encoder", "vae_decoder"} <= parts
    pool.close()
    _load_ahead(Pool("nobody"))


def test_the_model_itself_and_its_student_of_the_most_steps_are_loaded_ahead() -> None:
    info, prepared = FakeBackend(students={"four": (4,), "one": (1,), "two": (2,)}).info, []

    @contextlib.contextmanager
    def using() -> Iterator[Any]:
        yield SimpleNamespace(info=info, prepare=lambda request: prepared.append(request.student))

    _load_ahead(SimpleNamespace(info=lambda: info, using=using))  # type: ignore[arg-type]
    assert prepared == [None, "four"]
