"""The report of a sensitivity analysis."""

from __future__ import annotations

from collections.abc import Mapping

from ..bit_allocation import BitSuggestion
from ..figures import sensitivity as figures
from ..groups import KINDS
from ..sensitivity import ALL_BUT, EVERYTHING, FULL_PRECISION, ONLY, SensitivityResult
from .page import CodeBlock, FigureBlock, Report, TableBlock, TextBlock

_BLOCK, _HEAD = r"block\.\d+", r"block\.\d+\.head\.\d+"
_DECIMALS = {"top1": 2, "top1_change": 2, "top1_recovered": 2, "loss": 4, "snr_db": 2, "forward_seconds": 2}


def sensitivity_report(
    model: str,
    result: SensitivityResult,
    facts: Mapping[str, str],
    command: str,
    suggestion: BitSuggestion | None = None,
) -> Report:
    """Bind a result, and a suggestion of bits if there is one, into a page.

    Args:
        model: its name.
        result: what was measured.
        facts: what was done, for the head of the page.
        command: the command that made it.
        suggestion: bits proposed from the measurements.
    """
    sections: list = []
    if any(figures.has_rows(result, kind) for kind in KINDS):
        sections.append(("Kinds of modules", _kinds(result)))
    if figures.has_rows(result, _BLOCK):
        sections.append(("Blocks", [_blocks(result)]))
    if figures.has_rows(result, _HEAD):
        sections.append(("Attention heads", [_heads(result)]))
    if suggestion is not None:
        sections.append(("Suggested bits", _suggestion(suggestion)))
    table = result.table()
    sections.append(("All measurements", [TableBlock(table, "Click on a column head to sort.", _DECIMALS)]))
    return Report(f"Sensitivity to quantization: {model}", _summary(result), facts, command, sections)


def _summary(result: SensitivityResult) -> str:
    start, everything = result.row(FULL_PRECISION), result.row(EVERYTHING)
    text = (
        f"Top-1 is {start.top1:.2f} % in full precision and {everything.top1:.2f} % with everything quantized,"
        " calibrated and not trained."
    )
    kinds = [row for row in result.rows if row.group in KINDS and not row.train_steps and row.snr_db is not None]
    alone = [row for row in kinds if row.setting == ONLY]
    if len(alone) > 1:
        worst = min(alone, key=lambda row: row.snr_db)
        text += f" Quantized alone, {worst.group.replace('_', ' ')} disturbs the logits most ({worst.snr_db:.1f} dB)."
        best = max((row for row in kinds if row.setting == ALL_BUT), key=lambda row: row.snr_db)
        text += (
            f" Of everything quantized, leaving {best.group.replace('_', ' ')} in full precision helps most"
            f" ({everything.snr_db:.1f} to {best.snr_db:.1f} dB)."
        )
    return text


def _kinds(result: SensitivityResult) -> list:
    blocks: list = [
        FigureBlock(
            "kinds",
            lambda theme: figures.draw_kinds(result, theme),
            "Each kind of module quantized alone, and everything but it quantized, after calibration and without"
            " training. A kind is sensitive if it does much harm alone (further left), and if leaving it out helps"
            " (further right than the dashed line, where everything is quantized). 20 dB of SNR mean that the noise"
            " has a hundredth of the power of the logits.",
            "Top-1 and signal-to-noise ratio of the logits for every kind of module; the numbers are in the table.",
        )
    ]
    steps = result.budget.steps
    if steps:
        blocks.append(
            FigureBlock(
                "kinds_trained",
                lambda theme: figures.draw_kinds(result, theme, steps),
                f"The same after {steps} steps of quantization-aware training, every setting from the same start and"
                " with the same images. What training repairs was no lasting sensitivity. The SNR compares with the"
                " full-precision model before training, so training moves it in either direction.",
                "Top-1 and signal-to-noise ratio for every kind of module after a short training.",
            )
        )
    listed = "\n".join(f"{kind.replace('_', ' ')}: {KINDS[kind]}" for kind in KINDS if figures.has_rows(result, kind))
    blocks.append(TextBlock(listed))
    return blocks


def _blocks(result: SensitivityResult) -> FigureBlock:
    return FigureBlock(
        "blocks",
        lambda theme: figures.draw_blocks(result, theme),
        "Each transformer block quantized alone, and all other blocks (with first and last layer) quantized. A dip in"
        " the first series marks a block that does harm alone; a peak in the second one that is worth more bits.",
        "Top-1 and signal-to-noise ratio by block.",
    )


def _heads(result: SensitivityResult) -> FigureBlock:
    return FigureBlock(
        "heads",
        lambda theme: figures.draw_heads(result, theme),
        "Each attention head by itself: its rows of the query, key and value projections, its columns of the output"
        " projection, its queries, keys, values, probabilities and output. Low values on the left are sensitive"
        " heads; high values on the right are heads that are worth leaving in full precision.",
        "Heat maps of the signal-to-noise ratio by block and head.",
    )


def _suggestion(suggestion: BitSuggestion) -> list:
    import pandas

    decimals = {"average_bits": 2, "top1": 2, "loss": 4, "snr_db": 2}
    return [
        FigureBlock(
            "suggested_bits",
            lambda theme: figures.draw_suggestion(suggestion, theme),
            "Bits of self-attention (mhsa) and MLP (ffn) of every block, and the noise that each adds to the logits"
            " when it alone is quantized. The allocation is the one of least total noise within the budget, found by"
            " integer programming (HiGHS): noise of parts that are quantized together is taken to add up.",
            "Suggested bits by block, and measured noise by bits.",
        ),
        TableBlock(
            pandas.DataFrame(suggestion.comparison),
            "The suggestion, calibrated and measured, beside full precision and the same bits everywhere.",
            decimals,
        ),
        TextBlock("For a recipe:"),
        CodeBlock(suggestion.to_yaml()),
        TableBlock(suggestion.table(), "Measured noise-to-signal ratio of the logits, each part quantized alone."),
    ]
