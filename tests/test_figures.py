"""Figures: the numbers and words drawn, and that nothing is cut off."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose

from cifarbn import figures
from cifarbn.figures import FeatureMaps, Layer
from cifarbn.figures.smoothness import COLOURS
from cifarbn.figures.style import PALETTE, logarithmic, shades, styled, wrapped
from cifarbn.smoothness.bands import over_seeds
from cifarbn.smoothness.factors import Factor

LONG = "resnet18_pool, batch_size 256, weight_decay 1e-5, label_smoothing 0.1 (cifar10, n = 3)"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
ACCURACIES = np.array([[0.1, 0.4, 0.5], [0.3, 0.2, 0.9]])
LAYERS = [
    Layer("conv1", "convolution", "conv 3×3 · BatchNorm2d · ReLU", (64, 32, 32), 1856),
    Layer("layer1.0", "block", "conv 3×3, conv 3×3", (64, 32, 32), 73984, "identity", pooled=True),
    Layer("layer2.0", "block", "conv 3×3 /2, conv 3×3", (128, 16, 16), 230144, "conv 1×1 /2", pooled=True, repeat=2),
    Layer("", "pool", "pool of every block", (192,), 0),
    Layer("head", "linear", "linear", (10,), 1930),
]

STEPS = np.arange(300)
NOISY = RNG.lognormal(size=(3, 300))
SEED_BAND = over_seeds([(STEPS, row, 2 * row) for row in NOISY])
ONE_BAND = over_seeds([(STEPS, NOISY[0], 2 * NOISY[0])])
CURVES = [(STEPS, row) for row in NOISY]
ROUNDING = 1e-6  # inches
FACTOR = Factor((3.0, 2.0), 1.5, (1.2, 1.9), (1, 1), (9, 9))

DRAWN = {
    "bands": lambda: figures.bands({LONG: SEED_BAND, "b": ONE_BAND}, "‖Gₜ − Gₜ₋₁‖", LONG, log=True),
    "lines": lambda: figures.lines({LONG: {"0.1": CURVES, "1e-05": CURVES[:1]}}, "‖2Gₜ − Gₜ₊₁ − Gₜ₋₁‖", LONG, log=True),
    "many lines": lambda: figures.lines({f"{LONG} {i}": {"0.1": CURVES} for i in range(9)}, "accuracy", LONG),
    "along gradient": lambda: figures.along_gradient(
        {quantity: {LONG: SEED_BAND, "b": ONE_BAND} for quantity in ("loss", "β", "c")}, LONG, lines=["c"]
    ),
    "distances": lambda: figures.distance_curves({LONG: {0: CURVES, 40: CURVES}, "b": {0: CURVES}}, LONG),
    "factors": lambda: figures.factors(
        {f"{LONG[:30]} {i}": {"0.1": FACTOR, "1e-05": FACTOR._replace(interval=None)} for i in range(9)}, LONG, LONG
    ),
    "against key": lambda: figures.against_key({LONG: {"0.1": [1, 2], "0.2": [3]}, "b": {"0.1": [4]}}, "lr", "x", LONG),
    "confusion": lambda: figures.confusion_matrix(RNG.integers(0, 2000, (10, 10)), CLASSES, LONG),
    "100 classes": lambda: figures.confusion_matrix(
        RNG.integers(0, 9, (100, 100)), [LONG[i:] for i in range(50)] * 2, LONG
    ),
    "curves": lambda: figures.training_curves({"train/loss": 2 - ACCURACIES, "val/acc": ACCURACIES}, LONG),
    "one epoch": lambda: figures.training_curves({"train/loss": np.array([[2.0]])}, "short"),
    "comparison": lambda: figures.comparison({f"{LONG} {i}": ACCURACIES for i in range(9)}, "acc", "accuracy", LONG),
    "features": lambda: figures.feature_maps(IMAGES[0], LONG, "a\nship", [FeatureMaps("1", np.ones((9, 4, 4)))]),
    "filters": lambda: figures.first_layer_filters(RNG.normal(size=(64, 3, 7, 7)), LONG),
    "mistakes": lambda: figures.misclassified(IMAGES, ["automobile"] * 7, ["automobile"] * 7, [1.0] * 7, LONG),
    "structure": lambda: figures.structure(LAYERS, LONG, (3, 32, 32)),
}


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("style", figures.STYLES)
@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_nothing_is_cut_off(draw, style):
    with figures.using(style):
        figure = draw()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())  # in inches
    assert box.x0 >= -ROUNDING and box.y0 >= -ROUNDING
    assert box.x1 <= figure.get_figwidth() + ROUNDING and box.y1 <= figure.get_figheight() + ROUNDING


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_phone_shows_it_without_much_scrolling(draw):
    assert draw().get_figwidth() <= 6


def sizes(figure):
    texts = {text.get_text(): text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
    return np.array([*figure.get_size_inches(), *(texts[key] for key in ("step", "‖Gₜ − Gₜ₋₁‖", "lr 0.1"))])


def test_styles_scale_the_figure_with_its_fonts_and_lines():
    def draw(style):
        with figures.using(style):
            figure = figures.lines({"a": {"0.1": CURVES[:1]}}, "‖Gₜ − Gₜ₋₁‖", "title")
            FigureCanvasAgg(figure).draw()
        return figure

    page, paper, slides = map(draw, ("page", "paper", "slides"))
    assert_allclose(sizes(page), [5.2, sizes(page)[1], 10, 10, 9])
    assert_allclose(sizes(paper), 0.8 * sizes(page))
    assert_allclose(sizes(slides), 1.8 * sizes(page))
    widths = [figure.axes[0].lines[0].get_linewidth() for figure in (page, paper, slides)]
    assert_allclose(widths, [0.7, 0.7 * 0.8 * 0.9, 0.7 * 1.8 * 1.3])
    families = [figure.axes[0].xaxis.label.get_fontname() for figure in (page, paper, slides)]
    assert families == ["DejaVu Sans", "STIXGeneral", "DejaVu Sans"]


def test_the_style_ends_with_its_block():
    with figures.using("slides"):
        pass
    assert DRAWN["bands"]().get_figwidth() == 5.2


def test_against_key_shows_mean_minimum_and_maximum():
    values = {"a": {"0.1": [1.0, 3.0], "0.01": [5.0]}, "b": {"0.1": [4.0]}}
    (axes,) = figures.against_key(values, "lr", "loss", "title").axes
    assert axes.get_xscale() == "log" and (axes.get_xlabel(), axes.get_ylabel()) == ("lr", "loss")
    first, second = (container.lines for container in axes.containers)
    assert_allclose(first[0].get_xydata(), [[0.01, 5], [0.1, 2]])
    assert_allclose(first[2][0].get_segments()[1], [[0.1, 1], [0.1, 3]])
    assert_allclose(second[0].get_xydata(), [[0.1, 4]])


def test_against_a_key_of_words_has_a_categorical_axis():
    (axes,) = figures.against_key({"a": {"vgg": [0.5], "resnet": [0.6]}}, "model", "accuracy", "", percent=True).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["vgg", "resnet"]


def test_training_curves_are_the_mean_and_a_band_from_minimum_to_maximum():
    loss, accuracy = figures.training_curves({"train/loss": 2 - ACCURACIES, "val/acc": ACCURACIES}, "").axes
    (line,), (band,) = accuracy.lines, accuracy.collections
    assert_allclose(line.get_xdata(), [1, 2, 3])
    assert_allclose(line.get_ydata(), [0.2, 0.3, 0.7])
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert corners >= {(1, 0.1), (1, 0.3), (2, 0.2), (2, 0.4), (3, 0.5), (3, 0.9)}
    assert_allclose(loss.lines[0].get_ydata(), [1.8, 1.7, 1.3])


def test_training_curves_omit_epochs_without_a_measurement():
    sparse = np.array([[np.nan, 0.4, np.nan, 0.8]])
    (axes,) = figures.training_curves({"val/acc": sparse, "train/acc": np.full((1, 4), np.nan)}, "").axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [2, 4] and list(line.get_ydata()) == [0.4, 0.8]


def test_a_loss_over_orders_of_magnitude_has_a_logarithmic_axis():
    falling = {"train/loss": np.array([[1.0, 1e-2, 1e-4]])}
    assert figures.training_curves(falling, "").axes[0].get_yscale() == "log"
    assert figures.training_curves({"train/loss": np.array([[2.0, 1.0]])}, "").axes[0].get_yscale() == "linear"


def test_comparison_colours_the_first_groups_and_counts_the_others():
    figure = figures.comparison({f"group {i}": ACCURACIES for i in range(9)}, "acc", "accuracy", "title")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"group {i}" for i in range(len(PALETTE))] + ["2 others"]
    assert figure.axes[0].lines[-1].get_color() == PALETTE[0]  # the best group is drawn on top


def test_confusion_matrix_shows_every_count_and_the_accuracy():
    figure = figures.confusion_matrix(np.array([[3, 1], [0, 4]]), ("cat", "dog"))
    assert {"3", "1", "0", "4", "accuracy 87.5%"} <= set(words(figure))


def test_confusion_matrix_of_a_class_without_images():
    assert "accuracy 0.0%" in words(figures.confusion_matrix(np.zeros((2, 2), int), ("cat", "dog")))


def test_feature_maps_show_the_mean_before_the_channels():
    maps = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 3.0)])
    image, mean, *channels = figures.feature_maps(IMAGES[0], "", "", [FeatureMaps("block", maps)]).axes
    assert_allclose(image.images[0].get_array(), IMAGES[0])
    assert_allclose(mean.images[0].get_array(), 2)
    assert [float(axes.images[0].get_array()[0, 0]) for axes in channels] == [1, 3]


def test_a_filter_of_zeros_is_grey_and_the_largest_weight_is_full():
    weight = np.zeros((2, 3, 3, 3))
    weight[1, 0, 0, 0] = -5
    zero, other = (axes.images[0].get_array() for axes in figures.first_layer_filters(weight, "").axes)
    assert_allclose(zero, 0.5)
    assert_allclose(other[0, 0], [0, 0.5, 0.5])


def test_misclassified_images_have_true_class_predicted_class_and_probability():
    figure = figures.misclassified(IMAGES[:1], ["cat"], ["dog"], [0.876], "")
    assert "cat\n→ dog\n88%" in words(figure)


def test_structure_multiplies_repeated_boxes_and_adds_up():
    text = words(figures.structure(LAYERS, "", (3, 32, 32)))
    assert "460,288" in text and "2 × ( conv 3×3 /2, conv 3×3 )" in text
    assert f"{1856 + 73984 + 2 * 230144 + 1930:,} in total" in text


def test_the_users_matplotlib_settings_have_no_effect_and_do_not_change():
    with mpl.rc_context({"font.size": 40, "axes.grid": False}):
        figure = DRAWN["curves"]()
        assert mpl.rcParams["font.size"] == 40
    assert figure.axes[0].xaxis.label.get_fontsize() == 10


def test_styled_keeps_the_docstring():
    assert styled(figures.structure).__doc__ == figures.structure.__doc__


def test_wrapped_breaks_lines():
    assert wrapped("short", 4) == "short"
    assert wrapped("one two three four five six", 1).count("\n") > 1


def contrast(colour: str) -> float:
    """Return the contrast on white, as defined by WCAG 2.2."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def test_every_line_colour_is_visible_on_white():
    assert contrast("#000000") == pytest.approx(21) and contrast("#777777") == pytest.approx(4.48, abs=0.01)
    for colour in (*PALETTE, *COLOURS, *(c for n in range(1, 13) for c in shades([str(i) for i in range(n)]).values())):
        assert contrast(colour) >= 3, colour


def test_ordered_names_have_different_colours_from_light_to_dark():
    contrasts = list(map(contrast, shades([str(i) for i in range(8)]).values()))
    assert contrasts == sorted(contrasts) and len(set(contrasts)) == 8


@pytest.mark.parametrize(
    "span", [(0.8, 1.25), (0.97, 1.02), (1e-9, 1e3), (2, 4), (0.05, 0.2), (1.1, 1.9), (3e-6, 5e-6), (4e5, 9e5)]
)
def test_a_logarithmic_axis_has_two_labelled_ticks_and_not_too_many(span):
    figure = Figure()
    axes = figure.subplots()
    axes.plot(span, span)
    logarithmic(axes, "y")
    FigureCanvasAgg(figure).draw()
    low, high = axes.get_ylim()
    labels = [t.label1.get_text() for t in axes.yaxis.get_major_ticks() if low <= t.get_loc() <= high and t.label1]
    assert 2 <= len([label for label in labels if label]) <= 10
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("value", "label"), [(0.05, "0.05"), (20, "20"), (1e4, "$10^{4}$"), (2e-6, r"$2\times10^{-6}$")]
)
def test_tick_labels(value, label):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2])
    logarithmic(axes, "x")
    assert axes.xaxis.get_major_formatter()(value) == label


def test_bands_have_no_edges_and_a_pale_range_over_seeds():
    (axes,) = DRAWN["bands"]().axes
    assert not axes.lines
    reach, band, alone = axes.collections
    assert (reach.get_alpha(), band.get_alpha(), alone.get_alpha()) == (0.18, 0.45, 0.45)
    assert all(c.get_linewidth() == 0 for c in axes.collections)
    heights = {round(float(y), 6) for y in reach.get_paths()[0].vertices[:, 1]}
    assert heights >= {round(float(NOISY[:, 7].min()), 6), round(float(2 * NOISY[:, 7].max()), 6)}


def test_every_run_has_a_line_and_every_rate_one_legend_entry():
    figure = DRAWN["lines"]()
    assert len(figure.axes[0].lines) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lr 1e-05", "lr 0.1"]


def test_many_families_are_drawn_in_two_columns_with_labels_below_both():
    figure = figures.lines({f"family {i}": {"0.1": CURVES} for i in range(9)}, "accuracy", "title")
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == 9 and figure.get_figheight() < 10
    assert [bool(axes.get_xlabel()) for axes in visible] == [False] * 7 + [True] * 2


def test_a_ratio_without_an_interval_is_hollow_and_has_no_line():
    (axes,) = DRAWN["factors"]().axes
    dots = [c for c in axes.collections if len(c.get_offsets())]
    assert len(dots) == 18
    hollow = [c for c in dots if mpl.colors.to_hex(c.get_facecolor()[0]) == "#ffffff"]
    intervals = [line for line in axes.lines if list(line.get_xdata()) == [1.2, 1.9]]
    assert len(hollow) == 9 == len(intervals)


def test_a_single_grey_group_is_named_in_the_singular():
    figure = figures.comparison({f"group {i}": ACCURACIES for i in range(8)}, "acc", "accuracy", "title")
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "1 other"


@pytest.mark.parametrize("name", ["bands", "factors", "confusion", "structure"])
def test_a_saved_pdf_has_no_type_3_fonts(name, tmp_path):
    file = tmp_path / "figure.pdf"
    with mpl.rc_context({"pdf.fonttype": 3, "pdf.compression": 0}):
        figures.save(DRAWN[name](), file)
        assert mpl.rcParams["pdf.fonttype"] == 3, "the user's settings are unchanged"
    written = file.read_bytes()
    assert b"/FontFile2" in written or b"/CIDFontType2" in written
    assert b"/Type3" not in written


@pytest.mark.parametrize("value", [0.0, np.nan, -1.0, 3.0])
def test_a_curve_without_positive_values_gives_no_warning(value):
    values = np.full(5, value)
    band = over_seeds([(np.arange(5), values, values)])
    for figure in (
        figures.lines({"a": {"0.1": [(np.arange(5), values)]}}, "label", "title", log=True),
        figures.bands({"a": band}, "label", "title", log=True),
    ):
        FigureCanvasAgg(figure).draw()
