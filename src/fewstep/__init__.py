"""Few-step latent diffusion: train it, distil it, measure it, draw with it."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    # Looked up when it is asked for: importlib.metadata costs 40 ms at every start.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fewstep")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+unknown"
