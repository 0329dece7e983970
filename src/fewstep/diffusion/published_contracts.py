"""The rows of `fewstep.diffusion.published`: one generator for each method, with what its authors say.

Every row gives its sources as letters: ``p`` the paper or the authors' training code, ``c`` the authors'
model card, configuration or drawing program, ``k`` generally known and not looked up again. The weights could
not be had, so no row was checked against pictures; what is checked is that each contract visits the same
times and takes the same steps as the diffusers scheduler that the authors name.

Left out, because a contract cannot say it: Hyper-SD for FLUX, whose shift depends on the size of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.schedule import FlowSchedule

Kind = Literal["full", "unet", "lora"]
"""What a file holds: a whole model, the denoiser alone (also where it is a transformer), or an adapter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One published checkpoint; several files may hold it (precisions, repackaged)."""

    key: str
    """Our name for it, as in tables of hashes."""
    kind: Kind
    repository: str
    """``owner/name`` on the Hugging Face hub."""
    files: tuple[str, ...] = ()
    """Names that only this checkpoint has there. Empty: the repository holds nothing else."""
    named_steps: int | None = None
    """The step count that its name gives."""
    scheduler: str
    """The diffusers scheduler that its authors draw with."""
    sources: str
    """Letters, see above."""
    contract: SamplingContract
    lora_weight: float = 1.0
    """Weight that its authors apply the adapter with."""


_Fields = dict[str, Any]
"""Some fields of a contract."""

_SD15: _Fields = {"base_family": "sd15", "native_sizes": ((512, 512),)}
_SD21: _Fields = {"base_family": "sd21", "native_sizes": ((512, 512),)}  # SD 2.1 base: 512 px, epsilon
_SDXL: _Fields = {"base_family": "sdxl", "native_sizes": ((1024, 1024),)}
_SSD1B: _Fields = {"base_family": "ssd-1b", "native_sizes": ((1024, 1024),)}
_PIXART: _Fields = {  # the schedule of DiT
    "base_family": "pixart-alpha",
    "native_sizes": ((1024, 1024),),
    "schedule": ScheduleSpec(name="linear", beta_start=0.0001, beta_end=0.02),
}
_UNGUIDED: _Fields = {"guidance": "off", "guidance_scale": 1.0, "negative_prompt_effective": False}


def _sd3(shift: float) -> _Fields:
    return {
        "base_family": "sd3",
        "native_sizes": ((1024, 1024),),
        "prediction_type": "flow_prediction",
        "schedule": ScheduleSpec(name="rectified_flow", shift=shift),
    }


def _steps(*counts: int, default: int | None = None) -> _Fields:
    return {"num_inference_steps": default or counts[-1], "allowed_steps": counts}


def _lightning() -> Iterator[Published]:
    """Lin 2024 (2402.13929): the step count of the checkpoint and no other."""
    for n in (1, 2, 4, 8):
        x0 = "_x0" if n == 1 else ""
        kinds: list[tuple[Kind, str]] = [("full", x0), ("unet", f"_unet{x0}")]
        if n > 1:  # the change to x0 was too large for an adapter
            kinds.append(("lora", "_lora"))
        for kind, ending in kinds:
            contract = SamplingContract(
                method="lightning", **_SDXL, **_steps(n), **_UNGUIDED, solver="euler",
                prediction_type="sample" if n == 1 else "epsilon",
            )  # fmt: skip
            yield Published(
                key=f"sdxl-lightning-{n}step-{kind}", kind=kind, repository="ByteDance/SDXL-Lightning",
                files=(f"sdxl_lightning_{n}step{ending}",), named_steps=n, contract=contract,
                scheduler="EulerDiscreteScheduler", sources="pc",
            )  # fmt: skip


def _flash() -> Iterator[Published]:
    """Chadebec 2024 (2406.02347): trained most at 999, 749, 499 and 249 (a trailing grid).

    The authors ask diffusers' LCMScheduler for trailing spacing, which it ignores: their program visits 999,
    759, 499, 259. We visit what they ask for and trained. For SD3 the scheduler of their fork draws as LCM on
    the grid of FlowMatchEulerDiscreteScheduler, whose last time is almost 0.
    """
    for name, base, files in (
        ("flash-sd", _SD15, ()),
        ("flash-sdxl", _SDXL, ("FlashSDXL",)),
        ("flash-pixart", _PIXART, ()),
    ):
        contract = SamplingContract(method="flash", **base, **_steps(1, 2, 4), **_UNGUIDED, solver="lcm")
        yield Published(
            key=name, kind="lora", repository=f"jasperai/{name}", files=files, contract=contract,
            scheduler="LCMScheduler", sources="pc",
        )  # fmt: skip
    contract = SamplingContract(
        method="flash", **_sd3(3.0), **_steps(4), **_UNGUIDED, solver="lcm", spacing="linspace"
    )
    yield Published(
        key="flash-sd3", kind="lora", repository="jasperai/flash-sd3", contract=contract,
        scheduler="FlowMatchLCMScheduler", sources="pc",
    )  # fmt: skip


def _lcm() -> Iterator[Published]:
    """Luo 2023 (2310.04378) with the guidance embedded; LCM-LoRA (2311.05556) with guidance in the weights.

    Adapters take guidance of 1 (none) to 2.
    """
    embedded: _Fields = {"method": "lcm", "solver": "lcm", "spacing": "lcm", "guidance": "embedded",
                "guidance_scale": 8.0, "negative_prompt_effective": False}  # fmt: skip
    dreamshaper = SamplingContract(
        **embedded, base_family="sd15", native_sizes=((768, 768),), **_steps(*range(1, 9), default=4)
    )
    packings: list[tuple[Kind, str, tuple[str, ...]]] = [
        ("full", "lcm-dreamshaper-v7", ()),
        ("unet", "lcm-dreamshaper-v7-unet", ("LCM_Dreamshaper_v7_4k",)),
    ]
    for kind, key, files in packings:
        yield Published(
            key=key, kind=kind, repository="SimianLuo/LCM_Dreamshaper_v7", files=files, contract=dreamshaper,
            scheduler="LCMScheduler", sources="pk",
        )  # fmt: skip
    for name, base in (("lcm-sdxl", _SDXL), ("lcm-ssd-1b", _SSD1B)):
        yield Published(
            key=name, kind="unet", repository=f"latent-consistency/{name}", scheduler="LCMScheduler",
            contract=SamplingContract(**embedded, **base, **_steps(*range(2, 9), default=4)), sources="pck",
        )  # fmt: skip
    for name, base in (("lcm-lora-sdv1-5", _SD15), ("lcm-lora-sdxl", _SDXL), ("lcm-lora-ssd-1b", _SSD1B)):
        contract = SamplingContract(
            method="lcm", **base, **_steps(*range(2, 9), default=4), solver="lcm", spacing="lcm",
            guidance_range=(1.0, 2.0),
        )  # fmt: skip
        yield Published(
            key=name, kind="lora", repository=f"latent-consistency/{name}", contract=contract,
            scheduler="LCMScheduler", sources="pc",
        )  # fmt: skip


def _tcd() -> Iterator[Published]:
    """Zheng 2024 (2402.19159): any number of steps on a grid of 50."""
    for name, base in (("TCD-SD15-LoRA", _SD15), ("TCD-SD21-base-LoRA", _SD21), ("TCD-SDXL-LoRA", _SDXL)):
        contract = SamplingContract(
            method="tcd", **base, num_inference_steps=4, **_UNGUIDED, solver="tcd", gamma=0.3, spacing="lcm"
        )
        yield Published(
            key=name.lower(), kind="lora", repository=f"h1t/{name}", contract=contract,
            scheduler="TCDScheduler", sources="pc",
        )  # fmt: skip


def _hyper() -> Iterator[Published]:
    """Ren 2024 (2404.13686). One adapter serves 1 to 8 steps, by TCD; the others their own count, by DDIM."""
    repository = "ByteDance/Hyper-SD"
    for family, base in (("SD15", _SD15), ("SDXL", _SDXL)):
        key = f"hyper-{family.lower()}"
        unified = SamplingContract(
            method="hyper-sd", **base, **_steps(*range(1, 9), default=1), **_UNGUIDED, solver="tcd",
            gamma=1.0, spacing="lcm",
        )  # fmt: skip
        yield Published(
            key=f"{key}-1step-lora", kind="lora", repository=repository, named_steps=1,
            files=(f"Hyper-{family}-1step-lora",), contract=unified, scheduler="TCDScheduler", sources="c",
        )  # fmt: skip
        for n in (2, 4, 8):
            contract = SamplingContract(method="hyper-sd", **base, **_steps(n), **_UNGUIDED)
            yield Published(
                key=f"{key}-{n}steps-lora", kind="lora", repository=repository, named_steps=n,
                files=(f"Hyper-{family}-{n}steps-lora",), contract=contract, scheduler="DDIMScheduler",
                sources="c",
            )  # fmt: skip
        for n in (8, 12):
            contract = SamplingContract(
                method="hyper-sd", **base, **_steps(n), guidance_scale=5.0, guidance_range=(5.0, 8.0)
            )
            yield Published(
                key=f"{key}-{n}steps-cfg-lora", kind="lora", repository=repository, named_steps=n,
                files=(f"Hyper-{family}-{n}steps-CFG-lora",), contract=contract, scheduler="DDIMScheduler",
                sources="c",
            )  # fmt: skip
    # "1step-Unet" is published in two packings; the one for ComfyUI holds the whole model
    unet = SamplingContract(
        method="hyper-sd", **_SDXL, **_steps(1), **_UNGUIDED, solver="lcm", timesteps={1: (800.0,)}
    )
    packings: list[tuple[Kind, str]] = [
        ("unet", "Hyper-SDXL-1step-Unet"),
        ("full", "Hyper-SDXL-1step-Unet-Comfyui"),
    ]
    for kind, file in packings:
        yield Published(
            key=file.lower(), kind=kind, repository=repository, files=(file,), named_steps=1, contract=unet,
            scheduler="LCMScheduler", sources="c",
        )  # fmt: skip
    for n, counts, scale in ((4, (4,), 3.0), (8, (6, 8), 5.0), (16, (12, 16), 7.0)):
        contract = SamplingContract(
            method="hyper-sd", **_sd3(3.0), **_steps(*counts), guidance_scale=scale, solver="flow_euler",
            spacing="linspace",
        )  # fmt: skip
        yield Published(
            key=f"hyper-sd3-{n}steps-cfg-lora", kind="lora", repository=repository, named_steps=n,
            files=(f"Hyper-SD3-{n}steps-CFG-lora",), contract=contract, lora_weight=0.125,
            scheduler="FlowMatchEulerDiscreteScheduler", sources="c",
        )  # fmt: skip


def _turbo() -> Iterator[Published]:
    """Sauer 2023 (2311.17042), adversarial diffusion distillation: 1 to 4 steps at 512 px."""
    for key, base, solver, scheduler, files in (
        ("sd-turbo", _SD21, "euler", "EulerDiscreteScheduler", ("sd_turbo",)),
        ("sdxl-turbo", {**_SDXL, "native_sizes": ((512, 512),)}, "euler_a",
         "EulerAncestralDiscreteScheduler", ("sd_xl_turbo_1.0",)),
    ):  # fmt: skip
        contract = SamplingContract(
            method="add", **base, **_steps(1, 2, 3, 4, default=1), **_UNGUIDED, solver=solver
        )
        yield Published(
            key=key, kind="full", repository=f"stabilityai/{key}", files=files, contract=contract,
            scheduler=scheduler, sources="ck",
        )  # fmt: skip


def _pcm() -> Iterator[Published]:
    """Wang 2024 (2405.18407): as many steps as phases; "smallcfg" without guidance, "normalcfg" with.

    Small guidance is said to work on the former, but no number is given. For SD3 the authors have schedulers
    of their own: times every 20th from the top of 1000, shifted; Euler steps, or LCM's where "stochastic".
    """
    repository = "wangfuyun/PCM_Weights"
    kinds: list[tuple[str, tuple[int, ...], _Fields]] = [
        ("smallcfg", (2, 4, 8, 16), _UNGUIDED),
        ("normalcfg", (4, 8, 16), {"guidance_scale": 7.5}),
    ]
    for family, base in (("sd15", _SD15), ("sdxl", _SDXL)):
        for cfg, counts, guidance in kinds:
            for n in counts:
                yield Published(
                    key=f"pcm-{family}-{cfg}-{n}step", kind="lora", repository=repository, named_steps=n,
                    files=(f"pcm_{family}_{cfg}_{n}step",), scheduler="DDIMScheduler", sources="pc",
                    contract=SamplingContract(method="pcm", **base, **_steps(n), **guidance),
                )  # fmt: skip
        contract = SamplingContract(
            method="pcm", **base, num_inference_steps=4, **_UNGUIDED, solver="lcm", spacing="lcm"
        )
        yield Published(
            key=f"pcm-{family}-lcmlike", kind="lora", repository=repository,
            files=(f"pcm_{family}_lcmlike_lora",), contract=contract, scheduler="LCMScheduler", sources="c",
        )  # fmt: skip
    for n, shift, kind in (
        (2, 1, "deterministic"), (4, 1, "deterministic"), (4, 3, "deterministic"), (4, 3, "stochastic"),
    ):  # fmt: skip
        name = f"{kind}_{n}step_shift{shift}" if kind == "deterministic" else f"{kind}_shift{shift}"
        picked = (1.0, 0.5) if n == 2 else (1.0, 0.76, 0.5, 0.26)
        times = tuple(float(FlowSchedule(shift).shifted(u)) for u in picked)
        contract = SamplingContract(
            method="pcm", **_sd3(float(shift)), **_steps(n), timesteps={n: times}, guidance_scale=1.2,
            solver="flow_euler" if kind == "deterministic" else "lcm",
        )  # fmt: skip
        yield Published(
            key=f"pcm-sd3-{name.replace('_', '-')}", kind="lora", repository=repository,
            files=(f"pcm_{name}",), named_steps=n if kind == "deterministic" else None, contract=contract,
            scheduler="FlowMatchEulerDiscreteScheduler" if kind == "deterministic" else
            "FlowMatchLCMScheduler", sources="c",
        )  # fmt: skip


def _dmd2() -> Iterator[Published]:
    """Yin 2024 (2405.14867): four fixed times; the model of one step is told 399 though it is given noise."""
    made: list[tuple[int, Kind]] = [(4, "unet"), (4, "lora"), (1, "unet")]
    for n, kind in made:
        times = (999.0, 749.0, 499.0, 249.0) if n == 4 else (399.0,)
        contract = SamplingContract(
            method="dmd2", **_SDXL, **_steps(n), **_UNGUIDED, solver="lcm", timesteps={n: times}
        )
        yield Published(
            key=f"dmd2-sdxl-{n}step-{kind}", kind=kind, repository="tianweiy/DMD2",
            files=(f"dmd2_sdxl_{n}step_{kind}",), named_steps=n, contract=contract,
            scheduler="LCMScheduler", sources="pc",
        )  # fmt: skip


def rows() -> tuple[Published, ...]:
    """Every published checkpoint that is known here."""
    makers = (_lightning, _flash, _lcm, _tcd, _hyper, _turbo, _pcm, _dmd2)
    return tuple(row for maker in makers for row in maker())
