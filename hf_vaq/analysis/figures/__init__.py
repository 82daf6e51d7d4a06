"""Figures of the analyses, each in a light and in a dark theme."""

from .style import DARK, LIGHT, Theme, render

__all__ = ["DARK", "LIGHT", "Theme", "render"]
