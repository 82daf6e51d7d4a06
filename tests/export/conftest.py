"""Exports that several tests look at: tracing takes seconds, looking none."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from export_helpers import packed_model, processor

from hf_vaq.export import ExportReport


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[..., ExportReport]:
    """A function that exports `packed_model(family, **config)` once; tests leave what is in the folder as it is."""

    @functools.cache
    def export_once(export: Callable[..., ExportReport], family: str, config: frozenset) -> ExportReport:
        folder = tmp_path_factory.mktemp("exported") / "out"
        return export(packed_model(family, **dict(config)), folder, image_processor=processor())

    return lambda export, family="vit", **config: export_once(export, family, frozenset(config.items()))
