"""Prompts as people write them, and the generation parameters that other tools put into image files."""
