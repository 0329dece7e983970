from fewstep.prompt import infotext

BASE = {
    "prompt": "a red apple", "num_inference_steps": 4, "solver": "ddim", "guidance_scale": 2.0, "seed": 3,
    "width": 64, "height": 64, "model": "m", "model_hash": "0123456789abcdef", "fewstep": "1.0",
}  # fmt: skip
LINE = (
    "a red apple\nSteps: 4, Sampler: DDIM, CFG scale: 2.0, Seed: 3, Size: 64x64, Model hash: 0123456789, "
    "Model: m"
)


def line(**further):
    text = infotext.from_record(BASE | further)
    assert text.startswith(LINE) and text.endswith(", Version: fewstep 1.0")
    return text.removeprefix(LINE).removesuffix(", Version: fewstep 1.0").removeprefix(", ")


def test_nothing_of_what_was_not_asked_for():
    assert line() == ""


def test_hires_in_the_web_uis_words_and_order():
    second = {
        "width": 128, "height": 96, "num_inference_steps": 8, "strength": 0.5, "upscaler": "latent",
        "runs": 4, "scale": 2,
    }  # fmt: skip
    assert line(hires=second, strength=None) == (
        "Denoising strength: 0.5, Hires upscale: 2, Hires steps: 4, Hires upscaler: Latent"
    )
    assert line(hires=second | {"scale": None, "upscaler": "realesrgan-x4plus"}) == (
        "Denoising strength: 0.5, Hires resize: 128x96, Hires steps: 4, Hires upscaler: realesrgan-x4plus"
    )


def test_variations():
    assert line(variation={"seed": 50, "strength": 0.2}) == "Variation seed: 50, Variation seed strength: 0.2"
    assert line(variation={"seed": 4, "strength": 0.0, "resize_from": [64, 48]}) == "Seed resize from: 64x48"


def test_masks():
    masking = {"content": "latent_noise", "blur": 4, "only_masked": True, "padding": 32, "inverted": True}
    assert line(masking=masking, strength=0.75) == (
        "Denoising strength: 0.75, Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, "
        "Masked area padding: 32, Masked content: latent noise"
    )


def test_keys_of_our_own_can_be_read_back():
    text = infotext.from_record(
        BASE
        | {
            "outpaint": {"left": 32, "right": 0, "top": 0, "bottom": 8},
            "vae_tiling": True,
            "control": [{"name": "a: b", "scale": 0.5, "image_hash": "f" * 64}],
        }
    )
    fields = infotext.read(text).fields
    assert fields["Outpaint"] == "left 32 right 0 top 0 bottom 8"
    assert fields["Tiled VAE"] == "True"
    assert fields["Control 0"] == "a: b, scale 0.5"
    assert fields["Control 0 image hash"] == "f" * 10
