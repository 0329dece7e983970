"""What a server does before it is ready."""

from __future__ import annotations

from fewstep.server.pool import Pool
from fewstep.server.services import _load_ahead


def test_networks_are_loaded_ahead_and_what_fails_is_left_to_the_warming_up() -> None:
    pool = Pool("emoji-128", threads=1)
    _load_ahead(pool)
    with pool.using() as engine:
        parts = {part for part, _ in engine.backend._loaded}  # type: ignore[attr-defined]
    assert {"denoiser", "students/four", "text_encoder", "vae_decoder"} <= parts
    assert not parts & {"students/one", "students/two"}
    pool.close()
    _load_ahead(Pool("nobody"))
