"""Training data: sources, captions, the emoji drawings, order, and the cache of latents and embeddings.

Nothing here imports torch. `order` says which samples come when; `dataset` what training asks of a set;
`pixels`, `image_text` and `latent_cache` are the sets; `images` opens image files from outside.
"""
