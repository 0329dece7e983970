"""The Stable Diffusion WebUI's words in ours, and back: names, options, sizes, pictures, answers."""
