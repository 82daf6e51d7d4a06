"""The tables of docs/scaling.md are what benchmarks/scaling_costs.py computes from the committed results."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("scaling_costs", ROOT / "benchmarks" / "scaling_costs.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")  # as for a script that is run
        spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_tables_as_they_are_computed(script):
    page = script.PAGE.read_text(encoding="utf-8")
    written = page.partition(script.BEGIN)[2].partition(script.END)[0]
    assert written.strip() == script.tables().strip(), "run: python benchmarks/scaling_costs.py --write"


def test_operations_and_parameters_are_those_known_of_the_models(script):
    # Multiply-adds and parameters as the papers give them: DeiT (1.3 G with 5.7 M; 4.6 G with 22 M) and Swin (4.5 G
    # with 28 M; 8.7 G with 50 M). A multiply-add is two operations.
    known = {"deit-tiny": (2.5, 5.7), "deit-small": (9.2, 22.0), "swin-tiny": (9.0, 28.3), "swin-small": (17.5, 49.6)}
    for model in script.CONFIGS:
        operations, parameters = script.operations_and_parameters(model)
        name = "-".join(model.partition("/")[2].split("-")[:2])
        assert operations / 1e9 == pytest.approx(known[name][0], rel=0.03)
        assert parameters / 1e6 == pytest.approx(known[name][1], rel=0.01)


def test_a_step_is_divided_by_its_batch_and_scaled_by_operations(script):
    measured = {"deit-t": [{"candidate": "a", "milliseconds": 160.0}]}
    assert script.milliseconds_an_image(measured, "facebook/deit-tiny-patch16-224", "a") == 10.0
    small = script.milliseconds_an_image(measured, "facebook/deit-small-patch16-224", "a")
    assert small == pytest.approx(10.0 * 9.2 / 2.5, rel=0.03)
