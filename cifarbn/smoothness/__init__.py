"""Measure how smooth a loss is: four functions for any torch model, and the pure functions they consist of.

    from cifarbn.smoothness import covariate_shift, hessian, probe, step_change

    probe(model, loss, (inputs, targets)).effective_beta

`model` is any `nn.Module`, `loss` any function (outputs, targets) -> scalar. The results hold NumPy arrays and floats;
the model, the optimizer and the global random generators are left bit for bit as they were.

The functions below them work on arrays, or on a function without arguments that returns the loss of a fixed minibatch
at the parameters' current values:

* `directional_probe`, `probe_curves`, `internal_covariate_shift`: the measures of Santurkar et al. 2018;
* `differences`, `bands`: norms of the last layer's gradient differences, and bands over runs (course report, course
  handout);
* `gradient_change`, `weight_probes`, `dead_runs`, `factors`: controls and comparisons;
* `curvature`, `lanczos`, `landscape`, `trajectory`, `theorem_4_1`: the Hessian and the loss landscape;
* `preserve_state`, `evaluation`, `randomness`: measure without leaving a trace.

With batch normalisation the loss in train mode and the loss in eval mode are different functions, and every measure
differs between them. State the mode with each result.
"""

from cifarbn.smoothness.directional_probe import dln_steps, vgg_steps
from cifarbn.smoothness.layers import layers_of
from cifarbn.smoothness.model_covariate_shift import CovariateShiftResult, covariate_shift
from cifarbn.smoothness.model_hessian import HessianResult, LayerHessian, hessian
from cifarbn.smoothness.model_probe import LayerProbe, ProbeResult, probe
from cifarbn.smoothness.model_step_change import DriftNoise, LayerStepChange, StepChangeResult, step_change

__all__ = [
    "CovariateShiftResult",
    "DriftNoise",
    "HessianResult",
    "LayerHessian",
    "LayerProbe",
    "LayerStepChange",
    "ProbeResult",
    "StepChangeResult",
    "covariate_shift",
    "dln_steps",
    "hessian",
    "layers_of",
    "probe",
    "step_change",
    "vgg_steps",
]
