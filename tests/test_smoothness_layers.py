import torch
from torch import nn

from cifarbn.smoothness import layers_of
from cifarbn.smoothness.layers import default_head, norm_per_layer


def names(model):
    parameters = {p: name for name, p in model.named_parameters()}
    return {layer: [parameters[p] for p in group] for layer, group in layers_of(model).items()}


def test_a_normalisation_belongs_to_the_layer_before_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2, bias=False))
    assert names(model) == {"0": ["0.weight", "0.bias", "1.weight", "1.bias"], "4": ["4.weight"]}


def test_a_normalisation_before_every_layer_is_a_layer():
    assert names(nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))) == {
        "0": ["0.weight", "0.bias"],
        "1": ["1.weight", "1.bias"],
    }


def test_every_parameter_of_any_model_is_in_one_layer():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 5, 4))
            self.embed = nn.Embedding(7, 4)
            self.mix = nn.MultiheadAttention(4, 2)
            self.recur = nn.LSTM(4, 3)
            self.head = nn.Linear(3, 7)

    model = Tagger()
    grouped = names(model)
    assert list(grouped) == ["", "embed", "mix", "mix.out_proj", "recur", "head"]
    assert sorted(sum(grouped.values(), [])) == sorted(name for name, _ in model.named_parameters())


def test_frozen_and_shared_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[2].weight = model[1].weight
    assert names(model) == {"1": ["1.weight", "1.bias"], "2": ["2.bias"]}


def test_the_norm_of_a_layer_from_the_norms_of_its_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    values = torch.tensor([[3.0, 4.0, 2.0], [0.0, 1.0, 5.0]])
    result = norm_per_layer(values, list(model.parameters()), layers_of(model))
    assert {name: v.tolist() for name, v in result.items()} == {"0": [5, 1], "1": [2, 5]}


def test_the_last_linear_layer_is_head_or_else_the_last_registered_one():
    linear = nn.Linear(1, 1)
    assert default_head(nn.ModuleDict({"head": linear, "aux": nn.Linear(1, 1)})) == "head"
    assert default_head(nn.Sequential(linear, nn.ReLU(), nn.Linear(1, 1), nn.ReLU())) == "2"
    assert default_head(linear) == "" and default_head(nn.ReLU()) is None
