"""Oscillation: what the record of a training run tells about weights that flip between two codes.

Source: section 4 of "Quantization Variation" (arXiv 2307.00331), and Nagel et al., "Overcoming Oscillations in
Quantization-Aware Training" (ICML 2022).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import get_last_checkpoint

from ..training.oscillation_record import DISTANCE_INTERVALS, FORMAT_VERSION, RECORD_FOLDER, RECORD_METADATA, TABLES

if TYPE_CHECKING:
    import pandas

NEAR = 0.05
"""A weight is near a threshold if it is at most this far from it, in units of the scale; see `summary`."""


@dataclass(frozen=True)
class OscillationResult:
    """Records of one or more runs; every table has the column `run`.

    Attributes:
        runs: what `record.json` of each run says: steps, momentum, threshold, regularizer, modules with bits and
            number of weights.
        shares: `step`, `module`, `percentage` of its weights that oscillate.
        scales: `step`, `module`, `minimum`, `mean`, `maximum` over the scale groups of the module.
        distances: `step`, `module`, `code`, `interval`, `count`: histogram of the distances of latent weights to the
            nearest threshold, see `hf_vaq.training.oscillation_record.distance_histogram`.
        trajectories: `step`, `module`, `weight` (its index in the flattened weight), `position` (weight over scale).
    """

    runs: dict[str, dict[str, Any]]
    shares: pandas.DataFrame
    scales: pandas.DataFrame
    distances: pandas.DataFrame
    trajectories: pandas.DataFrame

    def lowest_bits(self, rows: pandas.DataFrame) -> pandas.DataFrame:
        """The rows of modules with the fewest bits of their run.

        At 8 bits one step of the optimizer often spans several codes, so that nearly all weights count as oscillating.
        """
        lowest = {run: min(m["bits"] for m in metadata["modules"].values()) for run, metadata in self.runs.items()}
        pairs = zip(rows["run"], rows["module"], strict=True)
        return rows[[self.runs[run]["modules"][module]["bits"] == lowest[run] for run, module in pairs]]

    def totals(self, lowest_bits: bool = False) -> pandas.DataFrame:
        """Oscillation percentage of all weights together: `run`, `step`, `percentage`.

        Args:
            lowest_bits: count only the modules with the fewest bits.
        """
        shares = self.lowest_bits(self.shares) if lowest_bits else self.shares
        shares = shares.assign(weights=self._weights(shares))
        shares = shares.assign(oscillating=shares["percentage"] * shares["weights"])
        sums = shares.groupby(["run", "step"], sort=False, as_index=False)[["oscillating", "weights"]].sum()
        return sums.assign(percentage=sums["oscillating"] / sums["weights"])[["run", "step", "percentage"]]

    def summary(self) -> pandas.DataFrame:
        """One line a run and module.

        `percentage` of weights that oscillate at the end and `largest_percentage` ever; `near_threshold`: percentage
        of weights at most `NEAR` scales from a threshold at the end, and `near_threshold_before` training;
        `scale_change`: last over first mean scale.
        """
        import pandas

        lines = []
        for (run, module), shares in self.shares.groupby(["run", "module"], sort=False):
            distances = self._of(self.distances, run, module)
            scales = self._of(self.scales, run, module)["mean"]
            first, last = distances["step"].min(), distances["step"].max()
            lines.append(
                {
                    "run": run,
                    "module": module,
                    "bits": self.runs[run]["modules"][module]["bits"],
                    "weights": self.runs[run]["modules"][module]["weights"],
                    "percentage": shares["percentage"].iloc[-1],
                    "largest_percentage": shares["percentage"].max(),
                    "near_threshold": _near(distances[distances["step"] == last]),
                    "near_threshold_before": _near(distances[distances["step"] == first]),
                    "scale_change": scales.iloc[-1] / scales.iloc[0],
                }
            )
        return pandas.DataFrame(lines)

    def histogram(self, run: str, step: int | None = None) -> pandas.DataFrame:
        """Share of a bin's weights by distance to the nearest threshold, all modules of one bit-width together.

        Args:
            run: name of the run.
            step: the last one with a histogram if not given.

        Returns:
            `bits`, `code`, `distance` (middle of the interval, in scales; the last interval holds everything beyond
            half a scale), `percentage` of the weights of that bit-width.
        """
        rows = self.distances[self.distances["run"] == run]
        rows = rows[rows["step"] == (rows["step"].max() if step is None else step)]
        bits = rows["module"].map(lambda module: self.runs[run]["modules"][module]["bits"])
        counts = rows.assign(bits=bits).groupby(["bits", "code", "interval"], as_index=False)["count"].sum()
        total = counts.groupby("bits")["count"].transform("sum")
        return counts.assign(
            distance=(counts["interval"] + 0.5) / (2 * DISTANCE_INTERVALS), percentage=100 * counts["count"] / total
        ).drop(columns=["interval", "count"])

    def _weights(self, rows: pandas.DataFrame) -> list[int]:
        pairs = zip(rows["run"], rows["module"], strict=True)
        return [self.runs[run]["modules"][module]["weights"] for run, module in pairs]

    @staticmethod
    def _of(table: pandas.DataFrame, run: str, module: str) -> pandas.DataFrame:
        return table[(table["run"] == run) & (table["module"] == module)]


def analyze_oscillation(runs: Sequence[str | Path]) -> OscillationResult:
    """Read the records of training runs, to be looked at side by side.

    Args:
        runs: output folders of `hf-vaq train` or of `VaqTrainer`, or checkpoints in them. Of a run that has not ended
            the newest checkpoint counts.

    Raises:
        ValueError: a folder holds no record, or a damaged one.
    """
    import pandas

    if not runs:
        raise ValueError("there is no run to analyze; accepted: at least one folder.")
    folders = [find_record(Path(run)) for run in runs]
    names = _names([Path(run) for run in runs])
    metadata: dict[str, dict[str, Any]] = {}
    tables: dict[str, list[pandas.DataFrame]] = {name: [] for name in TABLES}
    for name, folder in zip(names, folders, strict=True):
        try:
            metadata[name] = json.loads((folder / RECORD_METADATA).read_text(encoding="utf-8"))
            if metadata[name].get("format_version") != FORMAT_VERSION:
                raise ValueError(
                    f"its format_version is {metadata[name].get('format_version')!r}, expected {FORMAT_VERSION}"
                )
            for table, columns in TABLES.items():
                frame = pandas.read_parquet(folder / f"{table}.parquet", columns=list(columns))
                tables[table].append(frame.assign(run=name))
        except (OSError, ValueError) as error:
            raise ValueError(f"the oscillation record {str(folder)!r} cannot be read: {error}") from error
    return OscillationResult(metadata, **{name: pandas.concat(parts) for name, parts in tables.items()})


def find_record(run: Path) -> Path:
    """The folder of a run's record: in the run's folder, or else in its newest checkpoint.

    Raises:
        ValueError: there is none.
    """
    places = [run]
    if run.is_dir() and (checkpoint := get_last_checkpoint(str(run))) is not None:
        places.append(Path(checkpoint))
    for place in places:
        if (place / RECORD_FOLDER / RECORD_METADATA).is_file():
            return place / RECORD_FOLDER
    what = "holds no oscillation record" if run.is_dir() else "is no folder"
    raise ValueError(
        f"the run {str(run)!r} {what}; accepted: the output folder of a training run of a quantized model with"
        f" oscillation_tracking, which leaves one in {RECORD_FOLDER}/."
    )


def _names(runs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [run.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("a run is given twice.")


def _near(distances: pandas.DataFrame) -> float:
    near = distances["interval"] < round(NEAR * 2 * DISTANCE_INTERVALS)
    return 100 * distances["count"][near].sum() / distances["count"].sum()
