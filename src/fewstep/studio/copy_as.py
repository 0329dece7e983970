"""An order of pictures as a command, a request, or lines of Python: whatever is typed stays a text.

Every function takes fields of ``GenerateBody``, as `fewstep.studio.orders.body` makes them. A picture to
start from is named as a file, ``picture.png`` and ``mask.png``, which is to be put beside it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from fewstep.prompt.infotext import SAMPLERS

PICTURE: Final = "picture.png"
MASK: Final = "mask.png"
_FLAGS: Final = {
    "negative_prompt": "--negative", "model": "--model", "student": "--student",
    "num_inference_steps": "--steps", "solver": "--solver", "guidance_scale": "--guidance",
    "guidance_rescale": "--guidance-rescale", "clip_skip": "--clip-skip", "emphasis": "--emphasis",
    "seed": "--seed", "n": "--n", "strength": "--strength", "image_guidance_scale": "--image-guidance",
    "masked_content": "--masked-content", "mask_blur": "--mask-blur", "padding": "--padding",
    "variation_seed": "--variation-seed", "variation_strength": "--variation-strength",
}  # fmt: skip
_SWITCHES: Final = {
    "insist": "--insist", "deterministic": "--deterministic", "only_masked": "--only-masked",
    "invert_mask": "--invert-mask",
}  # fmt: skip
_NOT_OF_THE_ENGINE: Final = {"kind", "model", "upscale", "save", "parent", "deadline", "image", "mask"}


def command_line(body: Mapping[str, Any], url: str) -> str:
    """``fewstep generate``, for a POSIX shell. The command line has no ``eta``."""
    words = ["fewstep", "generate"]
    for name, flag in _FLAGS.items():
        if (value := body.get(name)) is not None:
            # In one word: a text that begins with a dash is no option.
            words.append(f"{flag}={_number(value)}")
    words += [flag for name, flag in _SWITCHES.items() if body.get(name)]
    if body.get("width") and body.get("height"):
        words.append(f"--size={body['width']}x{body['height']}")
    for one in body.get("adapters") or ():
        weight = one.get("weight")
        words.append(f"--lora={one['name']}" + ("" if weight is None else f":{_number(weight)}"))
    if body.get("adapters"):
        words.append("--engine=torch")
    if body.get("image"):
        words.append(f"--image={PICTURE}")
    if body.get("mask"):
        words.append(f"--mask={MASK}")
    if sides := body.get("outpaint"):
        extent = ",".join(str(sides.get(side, 0)) for side in ("left", "right", "top", "bottom"))
        words.append(f"--outpaint={extent}")
    words.append(f"--upscale={(body.get('upscale') or {}).get('name', 'none')}")
    return shlex.join([*words, "--", _typed(body["prompt"])])


def curl(body: Mapping[str, Any], url: str) -> str:
    """A request to our own API, for a POSIX shell."""
    head = shlex.join(["curl", f"{url}/api/v1/jobs", "-H", "Content-Type: application/json", "-d"])
    if "image" not in body:
        return f"{head} {shlex.quote(_json(body))}"
    # The shell puts the files into the text; base64 has no character that means something in JSON.
    parts = [f"\"$(base64 < {PICTURE} | tr -d '\\n')\"", f"\"$(base64 < {MASK} | tr -d '\\n')\""]
    marked = _json({**body, "image": "\x01", **({"mask": "\x02"} if "mask" in body else {})})
    quoted = shlex.quote(marked)
    for mark, part in zip(("\\u0001", "\\u0002"), parts, strict=True):
        quoted = quoted.replace(f'": "{mark}"', f'": "\'{part}\'"')
    return f"{head} {quoted}"


def python(body: Mapping[str, Any], url: str) -> str:
    """The engine itself, without a server."""
    given = {name: value for name, value in body.items() if name not in _NOT_OF_THE_ENGINE}
    lines = [
        "from PIL import Image",
        "from fewstep.engine.engine import Engine",
        "from fewstep.engine.request import resolve",
    ]
    values = {name: repr(value) for name, value in given.items()}
    if adapters := given.get("adapters"):
        lines.append("from fewstep.engine.adapters import AdapterUse")
        uses = ", ".join(
            f"AdapterUse(name={one['name']!r}, weight={one.get('weight')!r})" for one in adapters
        )
        values["adapters"] = f"[{uses}]"
    if sides := given.get("outpaint"):
        lines.append("from fewstep.engine.outpaint import Outpaint")
        values["outpaint"] = f"Outpaint({', '.join(f'{side}={count!r}' for side, count in sides.items())})"
    if "image" in body:
        lines.append("import numpy as np")
        values["init_image"] = f'np.asarray(Image.open("{PICTURE}").convert("RGB"))'
    if "mask" in body:
        values["mask"] = f'np.asarray(Image.open("{MASK}").convert("L"))'
    engine = ', "torch"' if given.get("adapters") else ""
    arguments = "".join(f"    {name}={value},\n" for name, value in values.items())
    return (
        "\n".join(lines)
        + f"\n\nengine = Engine({body.get('model')!r}{engine})\n"
        + f"result = engine.generate(resolve(\n    engine.info,\n{arguments}))\n"
        + "for number, pixels in enumerate(result.images):\n"
        + '    Image.fromarray(pixels).save(f"{number}.png")\n'
    )


def webuiapi(body: Mapping[str, Any], url: str) -> str:
    """The client of the web UI's API."""
    place = urlsplit(url)
    prompt = body["prompt"]
    for one in body.get("adapters") or ():
        weight = 1 if one.get("weight") is None else one["weight"]
        prompt += f" <lora:{one['name']}:{_number(weight)}>"
    given: dict[str, Any] = {"prompt": prompt}
    names = {
        "negative_prompt": "negative_prompt", "seed": "seed", "num_inference_steps": "steps",
        "n": "batch_size", "guidance_scale": "cfg_scale", "width": "width", "height": "height",
        "variation_seed": "subseed", "variation_strength": "subseed_strength", "eta": "eta",
    }  # fmt: skip
    given |= {theirs: body[ours] for ours, theirs in names.items() if body.get(ours) is not None}
    if solver := body.get("solver"):
        given["sampler_name"] = SAMPLERS.get(solver, solver)
    options: dict[str, Any] = {}
    if body.get("model"):
        options["sd_model_checkpoint"] = body["model"]
    if body.get("insist"):
        options["fewstep_insist"] = True
    if body.get("clip_skip"):
        options["CLIP_stop_at_last_layers"] = body["clip_skip"] + 1
    if options:
        given["override_settings"] = options
    method, opening = "txt2img", "import webuiapi\n"
    values = {name: repr(value) for name, value in given.items()}
    if "image" in body:
        method, opening = "img2img", "import webuiapi\nfrom PIL import Image\n"
        values["images"] = f'[Image.open("{PICTURE}")]'
        values["denoising_strength"] = repr(body.get("strength", 0.75))
        if "mask" in body:
            values["mask_image"] = f'Image.open("{MASK}")'
    arguments = "".join(f"    {name}={value},\n" for name, value in values.items())
    return (
        f"{opening}\napi = webuiapi.WebUIApi(baseurl={f'{place.scheme}://{place.netloc}/sdapi/v1'!r})\n"
        f"result = api.{method}(\n{arguments})\n"
        "for number, image in enumerate(result.images):\n"
        '    image.save(f"{number}.png")\n'
    )


def openai(body: Mapping[str, Any], url: str) -> str:
    """OpenAI's client; what its API has no field for is in ``extra_body``, or left out."""
    values = {"prompt": repr(body["prompt"])}
    values |= {name: repr(body[name]) for name in ("model", "n") if body.get(name) is not None}
    if body.get("width") and body.get("height"):
        values["size"] = repr(f"{body['width']}x{body['height']}")
    extra = {"seed": "seed", "num_inference_steps": "steps", "negative_prompt": "negative_prompt"}
    found = {theirs: body[ours] for ours, theirs in extra.items() if body.get(ours) is not None}
    if body.get("guidance_scale") not in (None, 1, 1.0):  # asked for, it would keep students away
        found["guidance_scale"] = body["guidance_scale"]
    method = "generate"
    if "image" in body:
        method = "edit"
        values["image"] = f'open("{PICTURE}", "rb")'
        if "mask" in body:
            values["mask"] = f'open("{MASK}", "rb")'
        if body.get("strength") is not None:
            found["strength"] = body["strength"]
    if found:
        values["extra_body"] = repr(found)
    arguments = "".join(f"    {name}={value},\n" for name, value in values.items())
    return (
        "import base64\nfrom pathlib import Path\n\nimport openai\n\n"
        f'client = openai.OpenAI(base_url={f"{url}/v1"!r}, api_key="none")\n'
        f"result = client.images.{method}(\n{arguments})\n"
        "for number, image in enumerate(result.data):\n"
        '    Path(f"{number}.png").write_bytes(base64.b64decode(image.b64_json))\n'
    )


FORMS: Final[Mapping[str, Callable[[Mapping[str, Any], str], str]]] = {
    "cli": command_line, "curl": curl, "python": python, "webuiapi": webuiapi, "openai": openai,
}  # fmt: skip
"""By name; each takes an order and the server's URL without a slash at its end."""


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(dict(body), ensure_ascii=False)


def _typed(text: str) -> str:
    # No argument of a process can hold it.
    return text.replace("\0", "")


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _typed(str(value))
