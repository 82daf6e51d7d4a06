"""The main job of a recipe, from the full-precision model to the evaluated packed one."""

from .report import ModelResult, RunResult
from .run import run_recipe

__all__ = ["ModelResult", "RunResult", "run_recipe"]
