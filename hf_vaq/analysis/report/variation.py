"""The report of a variation analysis."""

from __future__ import annotations

from collections.abc import Mapping

from ..figures import variation as figures
from ..figures.style import Theme
from ..variation import CNN, INPUT, OUTPUT, TRANSFORMER, WEIGHT, VariationResult
from .page import FigureBlock, Report, TableBlock, TextBlock

_NAMES = {WEIGHT: "weights", INPUT: "layer inputs", OUTPUT: "queries, keys and values"}
_FORMULA = (
    "SDAM, the standard deviation of the absolute mean, is the standard deviation over channels of a channel's mean"
    " magnitude (Liu et al., ICML 2021). Channels are the outputs of a weight, or the features of an activation. It"
    " has the unit of the tensor, so it is shown over the mean magnitude. Kurtosis is the fourth central moment over"
    " the squared variance, 3 for a Gaussian: high values mean outliers, which cost quantization levels or clipping."
)


def variation_report(result: VariationResult, facts: Mapping[str, str], command: str) -> Report:
    """Bind a result into a page.

    Args:
        result: what was measured.
        facts: what was done, for the head of the page.
        command: the command that made it.
    """
    table = result.table()
    tensors = [tensor for tensor in (WEIGHT, INPUT, OUTPUT) if (table["tensor"] == tensor).any()]
    summary = TableBlock(
        result.summary(),
        "Model by model. SDAM and spread between heads are means over modules; module spread is the standard deviation"
        " over modules of their mean magnitude, over its mean; kurtosis and largest over standard deviation are"
        " medians, beside the largest of any module.",
    )
    sections: list = [("Models", [TextBlock(_FORMULA), summary])]
    sections += [(f"Spread of {_NAMES[tensor]}", _tensor(result, tensor)) for tensor in tensors]
    columns = ["module", "kind", "tensor", "elements", "mean_abs", "std", "sdam", "relative_sdam", "kurtosis"]
    columns = ["model", *columns, "max_over_std", "head_spread"]
    sections.append(("All modules", [TableBlock(table[columns], "Click on a column head to sort.")]))
    models = ", ".join(result.images)
    return Report(f"Variation: {models}", _summary(result), facts, command, sections)


def _summary(result: VariationResult) -> str:
    rows = result.summary()
    rows = rows[rows["tensor"] == WEIGHT]
    parts = [
        f"{row.model}: SDAM {100 * row.relative_sdam:.0f} % of the mean magnitude, median kurtosis {row.kurtosis:.1f}"
        for row in rows.itertuples()
    ]
    text = "Weights, mean over modules. " + "; ".join(parts) + "."
    by_kind = {kind: rows[rows["architecture"] == kind]["relative_sdam"] for kind in (TRANSFORMER, CNN)}
    if all(len(values) for values in by_kind.values()):
        lowest, highest = by_kind[TRANSFORMER].min(), by_kind[CNN].max()
        if lowest > highest:
            text += " Every transformer here varies more than every CNN."
        elif by_kind[TRANSFORMER].max() < by_kind[CNN].min():
            text += " Every CNN here varies more than every transformer."
    return text


def _tensor(result: VariationResult, tensor: str) -> list:
    name = _NAMES[tensor]
    blocks = [
        FigureBlock(
            f"modules_{tensor}",
            lambda theme: figures.draw_modules(result, theme, tensor),
            f"Every module's {name} as a point, with the median as a bar: circles for transformers, diamonds for CNNs."
            " Further right varies more, or has more extreme values.",
            f"Distribution over modules of relative SDAM, kurtosis and largest value for {name}.",
        )
    ]
    if tensor != OUTPUT:
        blocks.append(
            FigureBlock(
                f"depth_{tensor}",
                lambda theme: figures.draw_depth(result, theme, tensor),
                f"The same along the network. Left: mean magnitude of the {name} of a module over that of the whole"
                " model; where it moves up and down, one scale for several modules would suit none. Right: SDAM over"
                " mean magnitude.",
                f"Mean magnitude and relative SDAM of {name} by depth.",
            )
        )
    table = result.table()
    if ((table["tensor"] == tensor) & table["head_spread"].notna()).any():
        blocks.append(_heads(result, tensor))
    return blocks


def _heads(result: VariationResult, tensor: str) -> FigureBlock:
    def draw(theme: Theme):
        return figures.draw_heads(result, theme, tensor)

    return FigureBlock(
        f"heads_{tensor}",
        draw,
        "Spread between the attention heads of a module: the standard deviation over heads of a head's mean magnitude,"
        " in percent of their mean. Where it is large, scales by head pay.",
        f"Spread between heads of {_NAMES[tensor]} by kind of projection.",
    )
