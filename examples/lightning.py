"""One box: write a prompt, get a picture in 1, 2 or 4 steps, after the demo of SDXL-Lightning.

python examples/lightning.py, then open http://127.0.0.1:7869. Needs: pip install "fewstep[serve]"
"""

import argparse

import gradio as gr

from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

THEME = gr.themes.Soft(font=("system-ui", "sans-serif"), font_mono=("monospace",))  # loads no fonts


def demo(model: str | None = None) -> gr.Interface:
    """The page."""
    engine = Engine(model)  # None is the bundled one, which needs no PyTorch

    def draw(prompt: str, steps: int):
        return engine.generate(resolve(engine.info, prompt=prompt, num_inference_steps=steps)).images[0]

    return gr.Interface(
        draw,
        inputs=[gr.Textbox(label="Prompt"), gr.Radio([1, 2, 4], value=4, label="Steps")],
        outputs=gr.Image(label="Picture", format="png"),
        examples=[
            ["a cat face, noto style, on a mint green background", 4],
            ["a banana, fluent 3d style", 2],
        ],
        cache_examples=False,
        title="Lightning",
        flagging_mode="never",
        analytics_enabled=False,
        api_name="draw",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lightning one-box page")
    parser.add_argument("--port", type=int, default=7869)
    demo().launch(server_port=parser.parse_args().port, theme=THEME)
