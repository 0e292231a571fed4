"""The table of measures and the keys of recordings.npz: one table for recorders, report and benchmark."""

import copy
import json
import pickle
from itertools import groupby
from pkgutil import resolve_name
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from cifarbn.cli.composition import CONF
from cifarbn.recorders import Recorder
from cifarbn.report import layers
from cifarbn.report.layers import DRAWN, activation_moments
from cifarbn.report.probe_curves import probe_bands
from cifarbn.report.read import read_recordings
from cifarbn.runs import measures
from cifarbn.runs.measures import (
    AXES,
    MEASURES,
    TABLES,
    ActivationDriftKeys,
    CovariateShiftKeys,
    Key,
    LastLayerKeys,
    Layers,
    Measure,
    Origin,
    ProbeKeys,
    ProbePanel,
    curves,
    shown_in,
)
from cifarbn.runs.schema import RECORDINGS


def test_a_key_is_its_name_in_the_file():
    key = ProbeKeys.gradient.loss
    assert key == "probe.gradient.loss" and {"probe.gradient.loss": 1}[key] == 1
    assert (key.prefix, key.short, key.axes) == ("probe", "gradient.loss", "TS")
    assert json.dumps({key: 1}) == '{"probe.gradient.loss": 1}'
    for copied in (copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert copied == key and copied.axes == key.axes


def test_every_key_is_listed_once_with_axes_that_are_measured():
    keys = [key for table in TABLES for key in table.keys()]
    assert len(set(keys)) == len(keys) > 60
    for table in TABLES:
        names = {key.short for key in table.keys()}
        assert {key.prefix for key in table.keys()} == {table.step.prefix} and "step" in names
        axes = {axis for key in table.keys() for axis in key.axes or "" if not axis.isdigit()}
        assert {AXES[axis] for axis in axes} - names <= {"bins"}


def test_every_recorder_of_the_config_has_a_table_and_writes_by_it():
    files = [OmegaConf.load(file) for file in sorted((CONF / "record").glob("*.yaml"))]
    configured = {node._target_ for file in files for node in file.values() if "_target_" in (node or {})}
    assert configured == {table.recorder for table in TABLES}
    for table in TABLES:
        recorder = resolve_name(table.recorder)
        assert issubclass(recorder, Recorder) and recorder.table is table


def test_measures_have_unique_names_and_are_grouped_by_origin():
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    origins = [origin for origin, _ in groupby(measure.origin for measure in MEASURES)]
    assert len(set(origins)) == len(origins)
    assert all(measure.table in TABLES and measure.unit for measure in MEASURES)


def test_figure_labels_are_unique_and_their_keys_exist():
    assert all(measure.figure.label for measure in MEASURES if measure.figure)
    assert {measure.table for measure, _ in shown_in(ProbePanel)} == {ProbeKeys}
    panels = [panel.label for _, panel in shown_in(ProbePanel)]
    assert len(set(panels)) == len(panels)
    for measure, column in shown_in(Layers):
        assert measure.table in DRAWN and column.values in measure.table.keys() and column.values.axes == "TL"
    columns = [(measure.table, column.label) for measure, column in shown_in(Layers)]
    assert len(set(columns)) == len(columns)


def test_a_new_measure_of_the_probe_gets_a_panel_and_one_of_layers_a_column(monkeypatch):
    probed = Measure(
        "mine", Origin.CONTROL, ProbeKeys, lambda r: 2.0 * r[ProbeKeys.step], "1", "", ProbePanel("my label")
    )
    layered = Measure(
        *("mine too", Origin.CONTROL, ActivationDriftKeys, lambda r: r[ActivationDriftKeys.step], "1", ""),
        Layers("my column", ActivationDriftKeys.mean, log=True),
    )
    monkeypatch.setattr(measures, "MEASURES", (probed, layered))
    bands = probe_bands({ProbeKeys.gradient.loss: np.ones((2, 3)), ProbeKeys.step: np.array([0, 5])})
    assert list(bands) == ["my label"]
    np.testing.assert_array_equal(bands["my label"], [[0, 5], [0, 10], [0, 10]])
    recordings = {
        ActivationDriftKeys.step: np.array([0, 5]),
        ActivationDriftKeys.layers: np.array(["a", "b", "c"]),
        ActivationDriftKeys.mean: np.ones((2, 3)),
    }
    family = SimpleNamespace(
        label="f", norm="", data="d", excluded={}, runs={"0.1": [SimpleNamespace(recordings=recordings)]}
    )
    monkeypatch.setattr(layers, "ending", lambda *_: "")
    (drawing,) = activation_moments([family])
    axes = drawing.figure.axes
    assert [a.get_ylabel() for a in axes] == ["my column"] * 3 and axes[0].get_yscale() == "log"


def test_covariate_shift_is_the_median_over_all_layers_but_the_first():
    keys = CovariateShiftKeys
    recordings = {
        keys.step: np.array([0, 5]),
        keys.distance: np.array([[0, 1, 2, 9], [0, 3, 4, 5]]),
        keys.cosine: np.array([[1, 1, 0.5, 0], [1, 0, np.nan, 1 + 1e-7]]),
    }
    found = curves(recordings)
    np.testing.assert_array_equal(found["covariate shift"][0], [0, 5])
    np.testing.assert_allclose(found["covariate shift"][1], [2, 4])
    np.testing.assert_allclose(found["covariate shift angle"][1], [60, 45], atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_model_of_one_layer_has_no_covariate_shift():
    keys = CovariateShiftKeys
    found = curves({keys.step: np.arange(2), keys.distance: np.zeros((2, 1)), keys.cosine: np.ones((2, 1))})
    assert np.isnan(found["covariate shift"][1]).all()


def test_activations_change_from_one_measurement_to_the_next():
    keys = ActivationDriftKeys
    means = np.array([[0, 0, 0], [1, -2, 5], [1, -2, 5]], np.float32)
    found = curves({keys.step: np.arange(3), keys.mean: means, keys.std: 2 * means})
    np.testing.assert_array_equal(found["activation mean change"][1], [np.nan, 2, 0])
    np.testing.assert_array_equal(found["activation std change"][1], [np.nan, 4, 0])


def test_a_probe_without_the_direction_of_the_gradient_leaves_the_other_measures(tmp_path):
    # As record.gradient_probe.directions=[update] writes them, with the last layer's gradients.
    arrays = {LastLayerKeys.step: np.arange(3), ProbeKeys.step: np.array([0, 2]), ProbeKeys.every: np.array(2)}
    arrays |= dict.fromkeys(
        (LastLayerKeys.norm, LastLayerKeys.first_difference, LastLayerKeys.second_difference), np.ones(3)
    )
    arrays |= {ProbeKeys.s: np.ones(4), ProbeKeys.update.loss: np.ones((2, 1))}
    np.savez(tmp_path / RECORDINGS, **arrays)
    recordings = read_recordings(tmp_path)
    of_last_layer = [measure.name for measure in MEASURES if measure.table is LastLayerKeys]
    assert list(curves(recordings)) == of_last_layer and probe_bands(recordings) is None


def test_recordings_without_known_keys_give_no_curves():
    assert curves({Key("mine.step"): np.arange(3)}) == {}
    assert curves({CovariateShiftKeys.step: np.arange(0)}) == {}
