"""Pick a LoRA, write a prompt, get a picture in one step, after the demo of Flash Diffusion.

python examples/flash_loras.py, then open http://127.0.0.1:7860. Needs: pip install "fewstep[torch,serve]"
"""

import argparse
from pathlib import Path

import gradio as gr

from fewstep.engine.adapters import AdapterUse, Catalogue
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

WEIGHTS = Path(__file__).parents[1] / "weights"
LORAS = WEIGHTS / "emoji-128-styles"
THEME = gr.themes.Soft(font=("system-ui", "sans-serif"), font_mono=("monospace",))  # loads no fonts


def demo(model: Path, loras: Path, steps: int = 1) -> gr.Blocks:
    """The page; all of its pictures are drawn before it opens."""
    engine = Engine(model, catalogue=Catalogue([loras]))
    names = sorted(path.stem for path in loras.glob("*.safetensors"))

    def draw(prompt: str, lora: str, strength: float, seed: float):
        request = resolve(
            engine.info, prompt=f"{prompt}, {lora.replace('-', ' ')} style", num_inference_steps=steps,
            adapters=[AdapterUse(name=lora, weight=strength)], seed=int(seed),
        )  # fmt: skip
        return engine.generate(request).images[0]

    shown = [(draw("a red apple", name, 1.0, 0), name) for name in names]
    with gr.Blocks(title="Flash LoRAs", analytics_enabled=False) as page:
        gr.Markdown("# A picture in one step, in the style that you pick")
        with gr.Row():
            gallery = gr.Gallery(shown, label="LoRAs", columns=3, selected_index=0, allow_preview=False)
            picture = gr.Image(label="Picture", format="png")
        lora = gr.Radio(names, value=names[0], label="LoRA")
        prompt = gr.Textbox("a cat face", label="Prompt", autofocus=True)
        with gr.Row():
            strength = gr.Slider(0, 1.5, value=1, step=0.05, label="Strength")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        button = gr.Button("Draw", variant="primary")

        def pick(event: gr.SelectData) -> str:
            return names[event.index]

        gallery.select(pick, None, lora, api_visibility="private")
        gr.on([button.click, prompt.submit, lora.change], draw, [prompt, lora, strength, seed], picture,
              api_name="draw")  # fmt: skip
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Flash LoRA picker")
    parser.add_argument("--port", type=int, default=7860)
    demo(WEIGHTS / "emoji-128", LORAS).launch(server_port=parser.parse_args().port, theme=THEME)
