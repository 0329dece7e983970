"""What there is: models, samplers, upscalers, adapters, styles and so on."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from fewstep.server.a1111 import lists
from fewstep.server.routes.a1111.given import ERRORS, PREFIX, Given
from fewstep.server.schemas import a1111_answers as answers
from fewstep.server.security import owner

router = APIRouter(prefix=PREFIX, responses=ERRORS)


@router.get("/samplers", summary="Samplers")
async def samplers() -> list[answers.Sampler]:
    """Others are refused."""
    return lists.samplers()


@router.get("/schedulers", summary="Schedulers")
async def schedulers() -> list[answers.Scheduler]:
    """Others are refused."""
    return lists.schedulers()


@router.get("/upscalers", summary="Upscalers")
def upscalers() -> list[answers.Upscaler]:
    """Those that are installed."""
    return lists.upscalers()


@router.get("/latent-upscale-modes", summary="Upscalers of latents")
async def latent_upscale_modes() -> list[answers.Named]:
    """One."""
    return [answers.Named(name="Latent")]


@router.get("/sd-models", summary="Models")
def sd_models(services: Given) -> list[answers.Model]:
    """The server's own first."""
    return lists.sd_models(services.generator)


@router.get("/sd-vae", summary="Autoencoders")
async def sd_vae() -> list[answers.Vae]:
    """None: a model draws with its own."""
    return []


@router.get("/loras", summary="Adapters")
def loras(services: Given) -> list[answers.Lora]:
    """A prompt names one as `<lora:name:weight>`."""
    return lists.loras(services.generator.pool.adapters)


@router.get("/embeddings", summary="Textual-inversion embeddings")
def embeddings(services: Given) -> answers.Embeddings:
    """Those that do not fit the model in memory are skipped."""
    loaded = services.generator.pool.loaded()
    info = None if loaded is None else services.generator.info(loaded)
    return lists.embeddings(services.generator.pool.learned, info)


@router.get("/hypernetworks", summary="Hypernetworks")
async def hypernetworks() -> list[answers.Hypernetwork]:
    """None."""
    return []


@router.get("/face-restorers", summary="Face restorers")
async def face_restorers() -> list[answers.FaceRestorer]:
    """None."""
    return []


@router.get("/realesrgan-models", summary="Networks of Real-ESRGAN")
def realesrgan_models() -> list[answers.RealesrganModel]:
    """Those that are installed."""
    return lists.realesrgan_models()


@router.get("/prompt-styles", summary="Styles")
def prompt_styles(request: Request, services: Given) -> list[answers.Style]:
    """Of styles.csv in the server's folder, and of the key that asks."""
    return [
        answers.Style(name=one.name, prompt=one.prompt, negative_prompt=one.negative_prompt)
        for one in services.styles.known(owner(request))
    ]


@router.get("/scripts", summary="Scripts")
async def scripts() -> answers.Scripts:
    """None."""
    return answers.Scripts(txt2img=[], img2img=[])


@router.get("/script-info", summary="Arguments of scripts")
async def script_info() -> list[dict[str, Any]]:
    """None."""
    return []


@router.get("/extensions", summary="Extensions")
async def extensions() -> list[dict[str, Any]]:
    """None."""
    return []


@router.get("/memory", summary="Memory")
def memory() -> answers.Memory:
    """Of this machine and this process."""
    return lists.memory()


@router.post("/refresh-checkpoints", summary="Look at the models' files again")
async def refresh_checkpoints(services: Given) -> None:
    """New models are found without it; those that were changed are read again."""
    await asyncio.to_thread(services.generator.pool.refresh)


@router.post("/refresh-vae", summary="Nothing to do")
@router.post("/refresh-loras", summary="Nothing to do")
@router.post("/refresh-embeddings", summary="Nothing to do")
async def refresh() -> None:
    """They are looked for whenever a request names them."""
