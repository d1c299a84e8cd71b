from __future__ import annotations

import numpy as np

from isocost.analysis.cells import best_guidance
from isocost.reporting.figures import guidance_map
from isocost.reporting.paper import matplotlib_figure, paper_figures, save, strip_figure
from isocost.reporting.strips import Strip


def test_paper_figures_are_written(world, synthetic, tmp_path):
    table = world.table[world.table["member"].isin(["c8", "c16"]) & (world.table["sampler"] == "ddim")]
    cells = best_guidance(table.assign(seconds_per_image=np.nan, gflops_per_image=np.nan), synthetic.FD)
    strip = {"size": ("Every size", Strip(np.zeros((2, 3, 8, 8, 3), np.uint8)))}
    written = paper_figures(table, cells, tmp_path, strips=strip)
    names = {path.name for path in written}
    assert {"fig03-training-compute.png", "fig08-guidance-ddim.svg", "fig09-cost-paper.png", "accuracy.svg"} <= names
    assert {"frontier-paper.svg", "strip-size.png"} <= names
    assert not any("seconds" in name or "gflops" in name for name in names)
    assert all(path.stat().st_size > 0 for path in written)


def test_equal_figures_give_equal_bytes(cells, tmp_path):
    paths = [save(matplotlib_figure(guidance_map(cells, "ddim")), tmp_path / folder, "map") for folder in "ab"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*paths, strict=True))


def test_a_strip_says_what_each_image_is(tmp_path):
    images = np.full((2, 3, 8, 8, 3), 200, np.uint8)
    captions, rows = (
        ("a red heart", "two small green stars on a white background", "a cat"),
        ("c8 with DDIM, 2 steps", "b"),
    )
    strip = Strip(images, captions, rows, "Same noise in every row.")
    figure = strip_figure("Every size", strip)
    (axis,) = figure.axes
    assert [" ".join(label.get_text().split()) for label in axis.get_xticklabels()] == list(captions)
    assert [" ".join(label.get_text().split()) for label in axis.get_yticklabels()] == list(rows)
    assert axis.get_xlabel() == "Same noise in every row." and figure.get_suptitle() == "Every size"
    centres = [(int(x), int(y)) for y in axis.get_yticks() for x in axis.get_xticks()]
    sheet = axis.images[0].get_array()
    assert all((sheet[y, x] == 200).all() for x, y in centres) and (sheet[8, 8] == 255).all()
    (path,) = save(figure, tmp_path, "strip", ("png",))
    assert path.read_bytes() == save(strip_figure("Every size", strip), tmp_path, "again", ("png",))[0].read_bytes()


def test_a_strip_needs_no_labels():
    assert strip_figure("", Strip(np.zeros((3, 8, 8, 3), np.uint8))).axes
