"""Few-step latent diffusion: train it, distil it, measure it, draw with it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fewstep")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"
