from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.transformer.model import Transformer, transformer_of


def test_gpt3_has_twelve_layers_d_squared_parameters():
    gpt3 = Transformer(layers=96, width=12288, heads=96)
    assert (gpt3.key_dim, gpt3.inner_width, gpt3.num_kv_heads) == (128, 49152, 96)
    assert gpt3.parameters == 12 * 96 * 12288**2
    assert gpt3.parameters == pytest.approx(175e9, rel=0.01)


def test_llama_2_70b_has_grouped_keys_and_values():
    # 80 layers, 64 heads of which 8 hold keys and values; its three FFN matrices of 28672 count as two of 43008.
    llama = Transformer(layers=80, width=8192, heads=64, kv_heads=8, ffn_width=43008, vocabulary=2 * 32000)
    assert llama.attention_parameters == 8192 * (8192 + 1024 + 1024 + 8192)
    assert llama.parameters == pytest.approx(69e9, rel=0.01)


def test_a_layer_takes_two_flop_per_parameter_and_token_and_four_per_pair_and_element():
    model = Transformer(layers=1, width=8, heads=2)
    assert model.layer_forward_flops(tokens=3) == 2 * 12 * 64 * 3
    assert model.layer_forward_flops(tokens=3, attended_pairs=6) - model.layer_forward_flops(3) == 4 * 8 * 6


@given(st.floats(2e6, 1e16))
def test_a_transformer_of_so_many_parameters_has_about_as_many(parameters):
    model = transformer_of(parameters)
    assert model.width == model.heads * model.key_dim
    assert model.parameters == pytest.approx(parameters, rel=0.6 if parameters < 1e9 else 0.1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"layers": 0}, "layers must be a whole number >= 1, got 0"),
        ({"heads": 3}, r"heads must divide width \(64\), got 3; 2 or 4 would do"),
        ({"kv_heads": 3}, r"kv_heads must divide heads \(4\), got 3"),
        ({"width": 1.5}, "width must be a whole number >= 1, got 1.5"),
        ({"vocabulary": -1}, "vocabulary must be a whole number >= 0, got -1"),
    ],
)
def test_shapes_out_of_range_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**({"layers": 2, "width": 64, "heads": 4} | shape))


@pytest.mark.parametrize("parameters", [0, -1.0, float("nan"), float("inf"), 1e5])
def test_too_few_parameters_for_a_layer_are_refused(parameters):
    with pytest.raises(ValueError, match="parameters must be finite and >= 196608"):
        transformer_of(parameters)
