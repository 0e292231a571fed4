"""How smooth is a loss? Pure functions over arrays, or over a pair (loss function, parameters).

Three definitions and their controls, each in a file of its own:

* the report's and the course's: `differences` (norms of G_t and of its differences, as a stream) and `bands`
  (min and max over runs, aligned by step);
* the paper's: `directional_probe` (loss and gradient along a direction), `probe_curves` (bands, effective beta) and
  `covariate_shift` (definition 2.1);
* the controls: `step_change`, `weight_probes`, `dead_runs`, and what the curvature itself says: `curvature`, `lanczos`,
  `landscape`, `trajectory`, `theorem_4_1`.

Two context managers keep a measurement from disturbing what it measures: `preserve_state.preserve_state` (buffers,
modes, gradients, random numbers) and `evaluation.restore_parameters` (the weights).

A loss function takes nothing and returns the scalar loss of a fixed minibatch at the parameters as they stand.
Whether batch normalisation uses the batch or its running statistics is that function's choice and changes every
number here: store it beside the result.
"""
