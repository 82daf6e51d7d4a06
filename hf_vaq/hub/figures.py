"""Figures for a card: what the analyses draw, where their extra is installed."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from ..job.models import load_model
from ..training.oscillation_record import RECORD_FOLDER, RECORD_METADATA

logger = logging.get_logger(__name__)

CAPTIONS = {
    "oscillation_shares": (
        "Share of weights that oscillate during training",
        "Share of weights whose integer code keeps flipping back, of all modules at the lowest bits and of each one.",
    ),
    "oscillation_distances": (
        "Distance of latent weights to the nearest threshold at the end of training",
        "How far latent weights lie from the nearest threshold between two codes, at the end of training.",
    ),
    "variation_weights": (
        "Variation of the weights of every layer",
        "Spread of the absolute weights within each layer, their kurtosis and largest value; a point is a layer.",
    ),
}
"""File, title and caption of each figure, in the order of the card."""


def draw_figures(run: Path, trained: Path, folder: Path) -> list[str]:
    """Draw into `folder` what there is data for: the record of a run's oscillations, and its latent weights.

    Args:
        run: output folder of a training run.
        trained: folder of its model in training form; a packed model has no latent weights.
        folder: is made if there is something to draw.

    Returns:
        Names of the figures, see `CAPTIONS`; none without the extra `analysis`.
    """
    from ..analysis.extra import load_extra

    try:
        for module in ("matplotlib", "pandas"):
            load_extra(module)
    except ValueError as error:
        logger.info(f"no figures in the card: {error}")
        return []
    from ..analysis import analyze_oscillation, analyze_variation
    from ..analysis.figures import LIGHT, render
    from ..analysis.figures.oscillation import draw_distances, draw_shares
    from ..analysis.figures.variation import draw_modules
    from ..analysis.variation import WEIGHT

    drawn = {}
    if (run / RECORD_FOLDER / RECORD_METADATA).is_file():
        oscillation = analyze_oscillation([run])
        drawn["oscillation_shares"] = render(lambda theme: draw_shares(oscillation, theme), LIGHT)
        drawn["oscillation_distances"] = render(lambda theme: draw_distances(oscillation, theme), LIGHT)
    if (trained / "config.json").is_file():
        model = load_model(trained)
        variation = analyze_variation({run.resolve().name: model})
        drawn["variation_weights"] = render(lambda theme: draw_modules(variation, theme, WEIGHT), LIGHT)
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        (folder / f"{name}.png").write_bytes(content)
    return list(drawn)
