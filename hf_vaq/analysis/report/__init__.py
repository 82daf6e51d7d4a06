"""Reports: one HTML file each that needs nothing else."""

from .page import FigureBlock, Report, TableBlock, TextBlock

__all__ = ["FigureBlock", "Report", "TableBlock", "TextBlock"]
