"""Texts around images: the generation parameters of other tools, and where they sit in image files."""
