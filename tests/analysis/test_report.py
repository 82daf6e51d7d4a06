"""Reports: whole pages that need nothing else, looked at in a real browser where there is one."""

import io
import json
import re
from html import escape as html_escape

import pandas
import pytest
from analysis_helpers import TINY
from helpers import build
from PIL import Image

from hf_vaq.analysis import analyze_variation
from hf_vaq.analysis.figures import DARK, LIGHT, render
from hf_vaq.analysis.figures.style import new_figure, styled
from hf_vaq.analysis.figures.variation import draw_depth
from hf_vaq.analysis.report import CodeBlock, FigureBlock, Report, TableBlock, TextBlock, writing
from hf_vaq.analysis.report.variation import variation_report
from hf_vaq.analysis.report.writing import claim_folder, write_analysis


def draw(theme):
    figure, axes = new_figure(2.0)
    axes[0][0].plot([0, 1], [0, 1], color=theme.color(0))
    return figure


@pytest.fixture
def report():
    frame = pandas.DataFrame({"name": ["b2", "b10", "a<b"], "size_bytes": [3.5, None, 1234.0]})
    blocks = [
        TextBlock("5 < 6"),
        CodeBlock("key: {a: 1}\n"),
        FigureBlock("line", draw, "A <caption>.", "a line"),
        TableBlock(frame, "Sorts.", {"size_bytes": 1}),
    ]
    return Report("Title & more", "What was found.", {"Model": "tiny"}, "hf-vaq analyze x", [("Section", blocks)])


def test_a_page_holds_everything_and_asks_nobody(report):
    html = report.to_html()
    assert "<h1>Title &amp; more</h1>" in html and "A &lt;caption&gt;." in html and "5 &lt; 6" in html
    assert "<code>hf-vaq analyze x</code>" in html and "a&lt;b" in html
    assert re.findall(r'src="(data:image/png;base64,)', html) == ["data:image/png;base64,"] * 2
    assert not re.search(r"(src|href)=\"(?!data:)", html) and "http://" not in html and "https://" not in html
    assert "default-src 'none'" in html


def test_figures_differ_between_light_and_dark_in_their_colours_only():
    pictures = [Image.open(io.BytesIO(render(draw, theme))).convert("RGB") for theme in (LIGHT, DARK)]
    assert pictures[0].size == pictures[1].size
    assert [picture.getpixel((0, 0)) for picture in pictures] == [(255, 255, 255), (0x16, 0x19, 0x1D)]


@pytest.mark.parametrize("name", ["vit_$\\w2a2$ {x}^ %s", "_hidden$", "<b>&\nb"])
def test_names_are_text_in_figures_pages_and_numbers(name, tmp_path):
    result = analyze_variation({name: build("vit", **TINY)})
    report = variation_report(result, {"Models": name}, f"hf-vaq analyze {name}")
    write_analysis(tmp_path, report, {"models": [name]}, {})
    assert json.loads((tmp_path / "results.json").read_text()) == {"models": [name]}
    html = (tmp_path / "report.html").read_text()
    assert html_escape(name) in html and "<b>" not in html
    with styled(LIGHT):
        (legend,) = draw_depth(result, LIGHT, "weight").legends
    assert [text.get_text() for text in legend.get_texts()] == [name]


def test_what_was_measured_is_written_before_anything_is_drawn(tmp_path):
    def fail(theme):
        raise RuntimeError("no ink")

    blocks = [FigureBlock("line", fail, "A caption.", "a line")]
    broken = Report("Title", "What was found.", {}, "hf-vaq analyze x", [("Section", blocks)])
    with pytest.raises(
        ValueError, match=rf"cannot be drawn \(RuntimeError: no ink\); the numbers are in '{tmp_path}'"
    ):
        write_analysis(tmp_path, broken, {"top1": 12.5}, {"rows": pandas.DataFrame({"a": [1]})})
    assert json.loads((tmp_path / "results.json").read_text()) == {"top1": 12.5}
    assert pandas.read_parquet(tmp_path / "tables" / "rows.parquet")["a"].tolist() == [1]


@pytest.mark.parametrize(("name", "kind"), [("figures", "a file"), ("tables", "a file"), ("results.json", "a folder")])
def test_a_folder_in_which_the_results_have_no_place_is_refused_before_the_work(tmp_path, name, kind):
    if kind == "a folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {kind} '{name}', which is not from an analysis"):
        claim_folder(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "write_problem", lambda folder: "No space left on device")
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        claim_folder(tmp_path)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_text_and_series_stand_out_from_the_background(theme):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme.text, theme.background) > 7
    # WCAG asks for 3 where colour carries meaning; the markers and lines differ as well.
    assert min(contrast(color, theme.background) for color in theme.series) > 2.2
    assert len(set(theme.series)) == len(theme.series)


def test_a_browser_shows_the_figures_of_its_theme_and_sorts_tables(report, tmp_path, browse):
    path = tmp_path / "report.html"
    path.write_text(report.to_html(), encoding="utf-8")
    images = '[...document.querySelectorAll("img")].filter((i) => i.naturalWidth && i.offsetWidth)'
    shown = f"return {images}.map((i) => i.className)"
    assert browse(path, shown) == "light"
    assert browse(path, shown, "--blink-settings=preferredColorScheme=0") == "dark"
    assert browse(path, f'document.getElementById("theme").click(); {shown}') == "dark"
    script = """
        const heads = document.querySelectorAll("th button"), orders = [];
        const note = () => orders.push([...document.querySelectorAll("tbody tr")].map((r) => r.cells[0].textContent));
        note();
        for (const column of [0, 1, 1]) { heads[column].click(); note(); }
        return orders.join(" ");
    """
    # As given; by name, numbers in it as numbers; by size upwards and downwards, without size at the end.
    assert browse(path, script) == "b2,b10,a&lt;b a&lt;b,b2,b10 b2,a&lt;b,b10 a&lt;b,b2,b10"
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browse(path, wide, "--window-size=500,800") == "true"


def test_a_folder_holds_report_numbers_tables_and_figures(report, tmp_path):
    frame = pandas.DataFrame({"x": [1, 2]})
    write_analysis(tmp_path / "out", report, {"value": float("nan"), "list": [float("inf"), 1]}, {"points": frame})
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["figures/line.png", "report.html", "results.json", "tables/points.parquet"]
    assert pandas.read_parquet(tmp_path / "out" / "tables" / "points.parquet").equals(frame)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == {"value": None, "list": [None, 1]}
    claim_folder(tmp_path / "out")  # an earlier analysis is taken over


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex', which is not from an analysis"):
        claim_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used as a folder"):
        claim_folder(tmp_path / "file")
