"""What must be decided before Gradio is imported: it calls nobody, and keeps its files with the server's."""

from __future__ import annotations

import os
from pathlib import Path


def before_import(data: str) -> None:
    """Switch off analytics and look-ups of versions, and say where uploads are kept.

    Args:
        data: folder of the server.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    folder = Path(data) / "studio" / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
