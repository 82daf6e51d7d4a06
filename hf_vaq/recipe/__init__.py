"""YAML recipes: what a training run is made of, in one file of flat fields."""

from .arguments import DataArguments, FloatArguments, ModelArguments, OutputArguments, QuantArguments
from .label_arguments import LabelArguments
from .parsing import Recipe, load_recipe
from .shipped import find_recipe, recipes_folder, shipped_recipes, summary

__all__ = [
    "DataArguments",
    "FloatArguments",
    "LabelArguments",
    "ModelArguments",
    "OutputArguments",
    "QuantArguments",
    "Recipe",
    "find_recipe",
    "load_recipe",
    "recipes_folder",
    "shipped_recipes",
    "summary",
]
