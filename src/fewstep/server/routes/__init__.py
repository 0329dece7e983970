"""Routes, one module per API and subject; each has a `router`."""
