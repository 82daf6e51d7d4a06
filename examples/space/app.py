"""A Space that shows the answers of a full-precision and a packed model side by side.

    python examples/space/app.py --model outputs/digits/vit_w2a2/packed --float outputs/digits/vit_w2a2/float

Both may be folders or ids on the Hub. On a Space, which starts this file without arguments, the variables VAQ_MODEL
and VAQ_FLOAT_MODEL name them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from answers import Side, answer, comparison, example_images, facts, load_sides
from PIL import Image
from transformers.utils.logging import disable_progress_bar

TITLE = "Full precision and packed, side by side"
ELEMENTS = ("full-precision", "packed")
"""Names of the two answers in the page."""
STYLE = "#image img {width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated}"
"""Small images fill their frame, pixel by pixel."""


def build_demo(sides: Sequence[Side], examples: Sequence[str] = ()) -> gr.Blocks:
    """Lay out the page: an image on the left, both answers on the right."""

    def respond(image: Image.Image | None) -> tuple[Any, ...]:
        if image is None:
            return None, "", None, "", ""
        answers = answer(sides, image)
        shown = [
            part for side, said in zip(sides, answers, strict=True) for part in (said.probabilities, facts(side, said))
        ]
        return *shown, comparison(sides, answers)

    with gr.Blocks(title=TITLE) as demo:
        gr.Markdown(f"# {TITLE}")
        outputs = []
        with gr.Row():
            with gr.Column(min_width=200):
                image = gr.Image(
                    type="pil",
                    image_mode="RGB",
                    sources=["upload", "clipboard"],
                    label="Image",
                    height=300,
                    elem_id="image",
                )
            for side, name in zip(sides, ELEMENTS, strict=True):
                with gr.Column(min_width=200):
                    outputs.append(gr.Label(num_top_classes=5, label=side.form, elem_id=name))
                    outputs.append(gr.Markdown(elem_id=f"{name}-facts"))
        outputs.append(gr.Markdown(elem_id="comparison"))
        if examples:
            gr.Examples([[path] for path in examples], image, label="Or one of these")
        image.change(respond, image, outputs, api_name="classify")
    return demo


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the environment stands in for what it does not name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("VAQ_MODEL"), help="packed model: folder or Hub id")
    parser.add_argument(
        "--float",
        dest="float_model",
        default=os.environ.get("VAQ_FLOAT_MODEL"),
        help="full-precision model: folder or Hub id",
    )
    parser.add_argument("--examples", type=Path, help="folder with images to choose from")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860 on)")
    arguments = parser.parse_args(words)
    for option, variable, value in (
        ("--model", "VAQ_MODEL", arguments.model),
        ("--float", "VAQ_FLOAT_MODEL", arguments.float_model),
    ):
        if not value:
            parser.error(f"no model: give {option}, or set {variable}")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Load both models and serve the page until it is interrupted."""
    arguments = parse_arguments(words)
    disable_progress_bar()
    try:
        sides = load_sides(arguments.float_model, arguments.model)
        examples = example_images(arguments.examples, sides[1].labels)
    except ValueError as error:
        print(f"app.py: error: {error}", file=sys.stderr)
        return 1
    build_demo(sides, examples).launch(server_port=arguments.port, css=STYLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
