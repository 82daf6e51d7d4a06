"""Figures of the sensitivity analysis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..bit_allocation import BitSuggestion
from ..groups import KINDS
from ..sensitivity import ALL_BUT, EVERYTHING, FULL_PRECISION, ONLY, SensitivityResult, SensitivityRow
from .style import Theme, line_style, logarithmic, new_figure, one_legend, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTINGS = (ONLY, ALL_BUT)


def draw_kinds(result: SensitivityResult, theme: Theme, train_steps: int = 0) -> Figure:
    """Top-1 and SNR of every kind of module, alone and left out, beside full precision and everything quantized."""
    names = [name for name in _names(result) if name in KINDS]
    figure, axes = new_figure(1.4 + 0.36 * len(names), 1, 2, sharey=True)
    measures = (("top-1 (%)", lambda row: row.top1), ("SNR of the logits (dB)", lambda row: row.snr_db))
    for axis, (label, measure) in zip(axes[0], measures, strict=True):
        for index, setting in enumerate(_SETTINGS):
            rows = [result.row(setting, name, train_steps) for name in names]
            style = line_style(theme, index) | {"linestyle": "none"}
            axis.plot([measure(row) for row in rows], range(len(names)), label=setting, **style)
        everything = measure(result.row(EVERYTHING, "", train_steps))
        axis.axvline(everything, color=theme.color(2), linestyle="--", label=EVERYTHING)
        axis.set_xlabel(label)
    axes[0][0].axvline(result.row(FULL_PRECISION).top1, color=theme.text, linestyle=":", label=FULL_PRECISION)
    axes[0][0].set_yticks(range(len(names)), readable(names))
    axes[0][0].invert_yaxis()
    one_legend(figure, axes[0][0])
    return figure


def draw_blocks(result: SensitivityResult, theme: Theme) -> Figure:
    """SNR and top-1 of every block, alone and left out."""
    names = [name for name in _names(result) if re.fullmatch(r"block\.\d+", name)]
    figure, axes = new_figure(2.9, 1, 2)
    positions = [int(name.split(".")[1]) for name in names]
    for axis, label in zip(axes[0], ("top-1 (%)", "SNR of the logits (dB)"), strict=True):
        for index, setting in enumerate(_SETTINGS):
            rows = [result.row(setting, name) for name in names]
            values = [row.top1 if label.startswith("top") else row.snr_db for row in rows]
            axis.plot(positions, values, label=setting, **line_style(theme, index))
        axis.set_xlabel("block")
        axis.set_ylabel(label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    one_legend(figure, axes[0][0])
    return figure


def draw_heads(result: SensitivityResult, theme: Theme) -> Figure:
    """SNR with a single head quantized, and with all but that head quantized, block by head."""
    heads: dict[tuple[int, int], str] = {}
    for name in _names(result):
        if match := re.fullmatch(r"block\.(\d+)\.head\.(\d+)", name):
            heads[int(match[1]), int(match[2])] = name
    blocks, count = 1 + max(block for block, _ in heads), 1 + max(head for _, head in heads)
    figure, axes = new_figure(min(1.5 + 0.28 * blocks, 6.0), 1, 2)
    for axis, setting in zip(axes[0], _SETTINGS, strict=True):
        grid = [[float("nan")] * count for _ in range(blocks)]
        for (block, head), name in heads.items():
            value = result.row(setting, name).snr_db
            grid[block][head] = float("nan") if value is None else value
        image = axis.imshow(grid, aspect="auto")
        axis.grid(False)
        axis.set_title(setting.replace("group", "head"))
        axis.set_xlabel("head")
        axis.set_ylabel("block")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axis, label="SNR of the logits (dB)").outline.set_visible(False)
    return figure


def draw_suggestion(suggestion: BitSuggestion, theme: Theme) -> Figure:
    """Bits of every unit, and its measured noise at every candidate."""
    figure, axes = new_figure(3.2, 1, 2)
    bits_axis, noise_axis = axes[0]
    for index, kind in enumerate(("mhsa", "ffn")):
        units = [unit for unit in suggestion.bits if unit.endswith(kind)]
        blocks = [int(unit.split(".")[1]) for unit in units]
        offset = (index - 0.5) * 0.4
        bits_axis.bar(
            [block + offset for block in blocks],
            [suggestion.bits[unit] for unit in units],
            width=0.38,
            color=theme.color(index),
            hatch=("", "//")[index],
            edgecolor=theme.background,
            label=kind,
        )
        for number, unit in enumerate(units):
            noise = suggestion.noise[unit]
            style = line_style(theme, index) | {"alpha": 0.75, "linewidth": 1.0}
            noise_axis.plot(list(noise), list(noise.values()), label=kind if number == 0 else None, **style)
    bits_axis.set_xlabel("block")
    bits_axis.set_ylabel("bits")
    bits_axis.xaxis.get_major_locator().set_params(integer=True)
    logarithmic(noise_axis, "y")
    noise_axis.set_xlabel("bits")
    noise_axis.set_ylabel("noise over signal, quantized alone")
    one_legend(figure, noise_axis)
    return figure


def has_rows(result: SensitivityResult, pattern: str) -> bool:
    """Whether there is a group whose name matches the regular expression."""
    return any(re.fullmatch(pattern, name) for name in _names(result))


def _names(result: SensitivityResult) -> Sequence[str]:
    rows: Sequence[SensitivityRow] = result.rows
    return list(dict.fromkeys(row.group for row in rows if row.group))
