"""What a latent diffusion model is made of, held together for one trip through the code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from fewstep.diffusion.contract import SamplingContract


@dataclass(frozen=True, slots=True)
class Components:
    """The four parts of a pipeline folder and how they must be sampled.

    ``tokenizer`` is the Hugging Face tokenizer of the folder; ``text_encoder`` is called as
    ``StableDiffusionPipeline`` calls it (ids, attention mask when its config says ``use_attention_mask``).
    """

    autoencoder: AutoencoderKL
    denoiser: UNet2DConditionModel
    text_encoder: Any
    tokenizer: Any
    contract: SamplingContract
