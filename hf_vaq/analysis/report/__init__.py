"""Reports: one HTML file each that needs nothing else."""

from .page import CodeBlock, FigureBlock, Report, TableBlock, TextBlock

__all__ = ["CodeBlock", "FigureBlock", "Report", "TableBlock", "TextBlock"]
