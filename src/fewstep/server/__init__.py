"""HTTP: the Stable Diffusion WebUI's API, OpenAI's Images API, and our own, one queue and history below."""
