"""Feature maps of a test image and filters of the first layer, from the trained models."""

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
from cifarbn.report.trained_model import GroupModel, best_models

SHIP = "ship"  # as in figure 9 of the course report
MOST_STAGES = 16  # in one figure


def feature_maps(sweep: RunSet, options: Options) -> Section | None:
    """Return the feature maps of one test image: the output of each residual block or stage of convolutions.

    Raises:
        UserError: if the user asks for an image that is in no group's data.
    """
    drawings, errors = [], []
    for model in best_models(sweep, options):
        try:
            if drawing := _feature_maps(model, options.image):
                drawings.append(drawing)
        except UserError as error:
            errors.append(error)
    if errors and not drawings:
        raise errors[0]
    text = "Left: the mean over all channels; right of it: the first channels. Each map is scaled separately."
    return Section("Feature maps", text, drawings) if drawings else None


def first_layer_filters(sweep: RunSet, options: Options) -> Section | None:
    """Return the filters of the first convolution, of models with colour input."""
    drawings = []
    for model in best_models(sweep, options):
        modules = model.trained.model.modules() if model.trained else ()
        first = next((m for m in modules if isinstance(m, nn.Conv2d) and m.weight.shape[1] == 3), None)
        if first is None:
            continue
        weight = first.weight.detach().numpy()
        caption = f"First-layer filters of {model.description}."
        size = f"{weight.shape[2]} by {weight.shape[3]} pixels"
        alt = f"{count(len(weight), 'filter')} of {size}, as small colour images."
        figure = figures.first_layer_filters(weight, model.heading)
        drawings.append(Drawing(f"filters-{model.slug}", figure, caption, alt, pictorial=True))
    text = "Weights as colours: grey is zero; all filters of a model share one scale."
    return Section("First-layer filters", text, drawings) if drawings else None


def choose_image(request: str | None, test: Images, classes: tuple[str, ...]) -> tuple[int, str]:
    """Return the index of the requested test image, and its class.

    Args:
        request: a class name, for the first image of that class; an index; or None for the first ship, or image 0 if
            there is no such class.
        test: the test images.
        classes: the name of each label.

    Raises:
        UserError: if there is no such class or index.
    """
    if request is None:
        request = SHIP if SHIP in classes else "0"
    if request in classes:
        request = str(int((test.labels == classes.index(request)).int().argmax()))
    if not request.isdecimal() or int(request) >= len(test):
        raise UserError(
            f"there is no test image {request!r}: use one of the classes {', '.join(classes)}, "
            f"or an index below {len(test)}"
        )
    return int(request), classes[int(test.labels[int(request)])]


@torch.inference_mode()
def stage_outputs(model: nn.Module, image: Tensor) -> list[FeatureMaps]:
    """Return the outputs of a model's stages for one normalised image (1, 3, H, W), in the order of the forward pass.

    The stages are the residual blocks. Without residual blocks, they are the inputs of the max pools, unless a pool
    directly follows a convolution; then, or without pools, they are the outputs of the convolutions.
    """
    stages: list[FeatureMaps] = []

    def keep(name: str, maps: Tensor) -> None:
        if isinstance(maps, Tensor) and maps.ndim == 4:  # a user's own block may return anything
            stages.append(FeatureMaps(name, maps[0].float().numpy().copy()))

    modules = list(model.named_modules())
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
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return stages


def evenly_spaced(stages: list[FeatureMaps]) -> list[FeatureMaps]:
    """Return at most `MOST_STAGES` of the stages, evenly spaced, including the first and the last."""
    return [stages[i] for i in np.unique(np.linspace(0, len(stages) - 1, MOST_STAGES).round().astype(int))]


def _feature_maps(model: GroupModel, request: str | None) -> Drawing | None:
    if model.trained is None or model.test is None:
        return None
    index, true_class = choose_image(request, model.test, model.trained.classes)
    pixels = model.test.pixels[index]
    stages = stage_outputs(model.trained.model, model.trained.transform.normalise(pixels[None]))
    if not stages:
        return None
    predicted = model.trained.prediction(model.trained.probabilities(pixels[None])[0])
    drawn = evenly_spaced(stages)
    subtitle = f"test image {index}: {true_class},\n{predicted}"
    figure = figures.feature_maps(pixels.permute(1, 2, 0).numpy(), model.heading, subtitle, drawn)
    caption = f"Feature maps of {model.description}"
    caption += f"; {len(drawn)} of its {count(len(stages), 'block')}." if len(drawn) < len(stages) else "."
    alt = (
        f"Test image {index}, {true_class}, {predicted}; below it, one row per stage, the output of "
        f"{', '.join(stage.name for stage in drawn)}."
    )
    return Drawing(f"features-{model.slug}", figure, caption, alt, pictorial=True)
