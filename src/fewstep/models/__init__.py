"""Networks: building, loading, saving and exporting them. Everything is a diffusers or transformers class."""
