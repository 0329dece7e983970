"""Opening a single-file checkpoint of Stable Diffusion XL's shape: fewstep beside diffusers, time and memory.

A file of random float16 numbers is written first, tensor by tensor: ``--size whole`` has all four networks
of SDXL at full size (6.9 GB), ``unet`` its U-Net and autoencoder (5.3 GB), ``small`` networks of the same
make and 1/8 of the channels. The largest that leaves room in memory and on the disk is taken when none is
named. Both load it into the same classes, in processes of their own, by turns, with configs from a local
folder; ``--load fp32`` makes them cast. After loading every weight is read once, because diffusers maps the
file and reads nothing before that. Prints a table and writes docs/results/single_file_memory.json.

    python benchmarks/single_file_memory.py [--size small] [--load fp16] [--rounds 3] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
BYTES = {"whole": 6.94e9, "unet": 5.31e9, "small": 0.12e9}
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}


def networks(size: str) -> dict[str, Any]:
    """SDXL's networks without weights; small ones have an eighth of the width and fewer text layers."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    part, depth = (8, 4) if size == "small" else (1, 1)
    wide = 2048 // part
    heads = [max(channels // part // 64, 1) for channels in (320, 640, 1280)]
    # groups of 32 must divide the channels, and 320 / 8 is no multiple
    channels = (64, 96, 160) if size == "small" else (320, 640, 1280)
    with torch.device("meta"):
        made: dict[str, Any] = {
            "unet": UNet2DConditionModel(
                sample_size=128,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=channels,
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=wide,
                attention_head_dim=tuple(heads) if size != "small" else (1, 1, 2),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=1280 // part + 6 * 256,
            ),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512) if size != "small" else (32, 32, 64, 64),
                layers_per_block=2,
                scaling_factor=0.13025,
            ),
        }
        if size != "unet":
            made["text_encoder"] = CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768 // part,
                    intermediate_size=3072 // part,
                    num_hidden_layers=12 // depth,
                    num_attention_heads=max(12 // part, 1),
                    projection_dim=768 // part,
                )
            )
            made["text_encoder_2"] = CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=1280 // part,
                    intermediate_size=5120 // part,
                    num_hidden_layers=32 // depth,
                    num_attention_heads=max(20 // part, 1),
                    projection_dim=1280 // part,
                    hidden_act="gelu",
                )
            )
    return made


def write_file(path: Path, size: str) -> None:
    """A single file of random numbers in SDXL's original naming, one tensor in memory at a time."""
    import torch

    from fewstep.checkpoint import detect, single_file
    from fewstep.checkpoint.tensorfile import Entry

    class Random:
        def __init__(self, module: Any) -> None:
            state = module.state_dict()
            bare = (
                type(module).__name__ == "CLIPTextModel" and "embeddings.position_embedding.weight" in state
            )
            self.entries = {
                f"text_model.{name}" if bare else name: Entry("F16", tuple(value.shape))
                for name, value in state.items()
            }
            self._generator = torch.Generator().manual_seed(0)

        def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            shape = self.entries[name].shape
            return torch.randn(shape, generator=self._generator).mul_(0.02).half()

        def check_unchanged(self) -> None:
            pass

    stores = {name: Random(module) for name, module in networks(size).items()}
    found = detect.detect_folder({name: store.entries for name, store in stores.items()})
    views = [single_file.view(part, stores[name]) for name, part in found.parts.items()]
    single_file.write(path, views, family="sdxl")


def write_configs(file: Path, folder: Path) -> None:
    """Configs, scheduler and a toy vocabulary: what diffusers asks for besides the file."""
    from fewstep.checkpoint import single_file
    from fewstep.checkpoint.folder_writing import scheduler_config

    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    with single_file.open_file(file) as reader:
        for name, part in reader.detected.parts.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text(json.dumps(part.config))
            index[name] = list(CLASSES[name])
    (folder / "scheduler").mkdir()
    scheduler = json.dumps(scheduler_config("sdxl", "epsilon"))
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler)
    (folder / "model_index.json").write_text(json.dumps(index))


def status() -> dict[str, float]:
    """MB in memory now: private pages and pages of files; and the most there ever were of both."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "RssFile"):
            found[key] = int(value.split()[0]) / 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"anonymous": found["RssAnon"], "of_files": found["RssFile"], "peak": peak}


def ours(file: Path, folder: Path, load: str) -> Iterator[Any]:
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    from fewstep.checkpoint import single_file

    with single_file.open_file(file, family="sdxl") as reader:
        for name in reader.detected.parts:
            config = json.loads((folder / name / "config.json").read_text())
            with init_empty_weights():
                if CLASSES[name][0] == "diffusers":
                    module = getattr(diffusers, CLASSES[name][1]).from_config(config)
                else:
                    module = getattr(transformers, CLASSES[name][1])(transformers.CLIPTextConfig(**config))
            single_file.fill(module, reader.part(name), load, family="sdxl")  # type: ignore[arg-type]
            yield module


def theirs(file: Path, folder: Path, load: str) -> Iterator[Any]:
    import diffusers
    import torch
    import transformers
    from diffusers.loaders.single_file_utils import (
        create_diffusers_clip_model_from_ldm,
        load_single_file_checkpoint,
    )

    kind = {"fp16": torch.float16, "fp32": torch.float32}[load]
    index = json.loads((folder / "model_index.json").read_text())
    for name in CLASSES:
        if name not in index:
            continue
        library, class_name = CLASSES[name]
        if library == "diffusers":
            yield getattr(diffusers, class_name).from_single_file(
                str(file), config=str(folder / name), torch_dtype=kind, local_files_only=True
            )
        else:  # what StableDiffusionXLPipeline.from_single_file does for its text encoders
            yield create_diffusers_clip_model_from_ldm(
                getattr(transformers, class_name),
                checkpoint=load_single_file_checkpoint(str(file)),
                config=str(folder),
                subfolder=name,
                torch_dtype=kind,
                local_files_only=True,
            )


def child(who: str, file: Path, folder: Path, load: str) -> None:
    import diffusers  # noqa: F401 - both need it, and its import is not what is measured
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    before = status()
    started = time.perf_counter()
    modules = list({"fewstep": ours, "diffusers": theirs}[who](file, folder, load))
    loaded, middle = time.perf_counter() - started, status()
    parameters = [p for module in modules for p in module.parameters()]
    total = sum(float(p.detach().flatten()[::64].float().sum()) for p in parameters)
    touched = time.perf_counter() - started - loaded
    print(
        json.dumps(
            {
                "load_seconds": loaded,
                "first_reading_seconds": touched,
                "before": before,
                "loaded": middle,
                "read": status(),
                "parameters": sum(p.numel() for p in parameters),
                "sum": total,
                "types": sorted({str(p.dtype) for p in parameters}),
            }
        )
    )


def choose(folder: Path, load: str) -> str:
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    copies = 1.3 if load == "fp16" else 3.3
    for size, count in BYTES.items():
        if count * copies < min(memory, 12e9) and count * 1.1 < disk:
            return size
    return "small"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(BYTES))
    parser.add_argument("--load", choices=["fp16", "fp32"], default="fp16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "single_file_memory.json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        who, file, folder, load = options.child
        child(who, Path(file), Path(folder), load)
        return
    size = options.size or choose(options.folder, options.load)
    runs: dict[str, list[dict[str, Any]]] = {"fewstep": [], "diffusers": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        file, folder = Path(temporary) / "model.safetensors", Path(temporary) / "configs"
        write_file(file, size)
        write_configs(file, folder)
        length = file.stat().st_size
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}
        for _ in range(options.rounds):
            for who, found in runs.items():
                command = [sys.executable, __file__, "--child", who, str(file), str(folder), options.load]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode != 0:
                    sys.exit(f"{who}: exit code {done.returncode}\n{done.stderr[-2000:]}")
                found.append(json.loads(done.stdout.splitlines()[-1]))
    sums = {round(run["sum"], 3) for found in runs.values() for run in found}
    report(size, options.load, length, runs, same=len(sums) == 1, out=options.out)


def report(
    size: str, load: str, length: int, runs: dict[str, list[dict[str, Any]]], *, same: bool, out: Path
) -> None:
    print(
        f"file of {length / 1e9:.2f} GB ({size}), loaded as {load}; weights {'equal' if same else 'DIFFER'}"
    )
    print(f"{'':10} {'load s':>8} {'read s':>8} {'peak MB':>9} {'/file':>10} {'own MB':>8} {'mapped MB':>10}")
    rows = {}
    for who, found in runs.items():
        row = {
            "load_seconds": statistics.median(run["load_seconds"] for run in found),
            "first_reading_seconds": statistics.median(run["first_reading_seconds"] for run in found),
            "peak_mb": statistics.median(run["read"]["peak"] for run in found),
            "peak_over_imports_mb": statistics.median(
                run["read"]["peak"] - run["before"]["anonymous"] - run["before"]["of_files"] for run in found
            ),
            "anonymous_mb": statistics.median(run["read"]["anonymous"] for run in found),
            "of_files_mb": statistics.median(run["read"]["of_files"] for run in found),
        }
        row["peak_over_file"] = row["peak_over_imports_mb"] / (length / 1e6)
        rows[who] = row
        print(
            f"{who:10} {row['load_seconds']:8.2f} {row['first_reading_seconds']:8.2f} {row['peak_mb']:9.0f} "
            f"{row['peak_over_file']:10.2f} {row['anonymous_mb']:8.0f} {row['of_files_mb']:10.0f}"
        )
    result = {
        "size": size,
        "load": load,
        "file_bytes": length,
        "weights_equal": same,
        "rounds": len(runs["fewstep"]),
        "medians": rows,
        "runs": runs,
        "versions": {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        "machine": platform.platform(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
