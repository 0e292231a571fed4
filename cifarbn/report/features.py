"""What the trained nets see: the feature maps of a test picture and the filters of the first layer."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cifarbn import figures
from cifarbn.data.images import Images
from cifarbn.errors import UserError
from cifarbn.figures import FeatureMaps
from cifarbn.report.captions import count
from cifarbn.report.gather import RunSet
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.report.structure import is_block
from cifarbn.report.trained_model import Inside, look_inside

SHIP = "ship"  # as in the report's figure 9
MOST_STAGES = 16


def feature_maps(sweep: RunSet, options: Options) -> Section | None:
    """What comes out of every residual block, or of every stage of convolutions, for one test picture.

    Raises:
        UserError: where the user asks for a picture that no group's data has.
    """
    drawings, refusals = [], []
    insides = look_inside(sweep, options)
    for inside in insides:
        try:
            if drawing := _feature_maps(inside, options.picture):
                drawings.append(drawing)
        except UserError as refusal:
            refusals.append(refusal)
    if refusals and not drawings:
        raise refusals[0]
    text = "Left the mean over all channels, beside it the first channels one by one; each map is scaled by itself."
    return Section("Feature maps", text, drawings) if drawings else None


def first_layer_filters(sweep: RunSet, options: Options) -> Section | None:
    """The filters of the first convolution, where it looks at colours."""
    drawings = []
    for inside in look_inside(sweep, options):
        modules = inside.trained.model.modules() if inside.trained else ()
        first = next((m for m in modules if isinstance(m, nn.Conv2d) and m.weight.shape[1] == 3), None)
        if first is None:
            continue
        weight = first.weight.detach().numpy()
        caption = f"First-layer filters of {inside.whose}."
        size = f"{weight.shape[2]} by {weight.shape[3]} pixels"
        alt = f"{count(len(weight), 'filter')} of {size}, as small colour pictures."
        figure = figures.first_layer_filters(weight, inside.heading)
        drawings.append(Drawing(f"filters-{inside.slug}", figure, caption, alt, pictorial=True))
    text = "Weights as colours: grey is zero, and all filters of a net are scaled alike."
    return Section("First-layer filters", text, drawings) if drawings else None


def choose_image(wanted: str | None, test: Images, classes: tuple[str, ...]) -> tuple[int, str]:
    """The number of the wanted test picture, and its class.

    Args:
        wanted: a class, for its first picture; or a number; or None for a ship, or picture 0 where there is none.
        test: the test pictures.
        classes: the name of each label.

    Raises:
        UserError: where there is no such class or number.
    """
    if wanted is None:
        wanted = SHIP if SHIP in classes else "0"
    if wanted in classes:
        wanted = str(int((test.labels == classes.index(wanted)).int().argmax()))
    if not wanted.isdecimal() or int(wanted) >= len(test):
        raise UserError(
            f"there is no test picture {wanted!r}: a class is one of {', '.join(classes)}; "
            f"a number is below {len(test)}"
        )
    return int(wanted), classes[int(test.labels[int(wanted)])]


@torch.inference_mode()
def stage_outputs(net: nn.Module, picture: Tensor) -> list[FeatureMaps]:
    """What the net's stages make of one normalised picture (1, 3, H, W), in the order of the net.

    Stages are the residual blocks; where there are none, what goes into each max pool, unless pools come right after
    convolutions; where there is neither, what comes out of each convolution.
    """
    found: list[FeatureMaps] = []

    def keep(name: str, maps: Tensor) -> None:
        if isinstance(maps, Tensor) and maps.ndim == 4:  # a block of a user's own may give anything
            found.append(FeatureMaps(name, maps[0].float().numpy().copy()))

    modules = list(net.named_modules())
    blocks = [(name, module) for name, module in modules if is_block(module)]
    pools = [
        module
        for (_, before), (_, module) in pairwise(modules)
        if isinstance(module, nn.MaxPool2d) and not isinstance(before, nn.Conv2d)
    ]
    convolutions = [(name, module) for name, module in modules if isinstance(module, nn.Conv2d)]
    handles = []
    if pools and not blocks:
        for i, pool in enumerate(pools, 1):
            handles.append(pool.register_forward_pre_hook(lambda _, maps, i=i: keep(f"stage {i}", maps[0])))
    else:
        for name, module in blocks or convolutions:
            handles.append(module.register_forward_hook(lambda _, __, maps, name=name: keep(name, maps)))
    try:
        net(picture)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _feature_maps(inside: Inside, wanted: str | None) -> Drawing | None:
    if inside.trained is None or inside.test is None:
        return None
    index, truth = choose_image(wanted, inside.test, inside.trained.classes)
    pixels = inside.test.pixels[index]
    stages = stage_outputs(inside.trained.model, inside.trained.normalise(pixels[None]))
    if not stages:
        return None
    sure, label = inside.trained.probabilities(pixels[None])[0].max(0)
    called = f"called {inside.trained.classes[int(label)]} ({float(sure):.0%})"
    shown = [stages[i] for i in np.unique(np.linspace(0, len(stages) - 1, MOST_STAGES).round().astype(int))]
    subtitle = f"test picture {index}: {truth},\n{called}"
    figure = figures.feature_maps(pixels.permute(1, 2, 0).numpy(), inside.heading, subtitle, shown)
    caption = f"Feature maps of {inside.whose}"
    caption += f"; {len(shown)} of its {count(len(stages), 'block')}." if len(shown) < len(stages) else "."
    alt = (
        f"Test picture {index}, {truth}, {called}; below it, row by row, the maps that come out of "
        f"{', '.join(stage.name for stage in shown)}."
    )
    return Drawing(f"features-{inside.slug}", figure, caption, alt, pictorial=True)
