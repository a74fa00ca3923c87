"""Frequencies of stretched RoPE against transformers' own functions, which compute in float32, and what is refused."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from leyden.core.errors import UserError
from leyden.model import ModelConfig, Rope, RopeScaling


def of_transformers(head_dim: int, rotary_dim: int, theta: float, said: dict[str, Any]) -> tuple[torch.Tensor, float]:
    parameters = {**said, "rope_theta": theta, "partial_rotary_factor": rotary_dim / head_dim}
    config = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[said["rope_type"]](config, torch.device("cpu"))


@given(
    head_dim=st.sampled_from([8, 64, 128]),
    part=st.sampled_from([1, 2, 4]),
    theta=st.sampled_from([500.0, 1e4, 1e7]),
    factor=st.floats(1.0, 1000.0),
    original=st.integers(16, 200_000),
    betas=st.sampled_from([{}, {"beta_fast": 16.0}, {"beta_fast": 3.0, "beta_slow": 3.0}, {"beta_slow": 0.25}]),
    attention_factor=st.sampled_from([{}, {"attention_factor": 1.25}]),
    rope_type=st.sampled_from(["linear", "yarn"]),
)
@settings(max_examples=60, deadline=None)
def test_frequencies_are_those_of_transformers(
    head_dim: int,
    part: int,
    theta: float,
    factor: float,
    original: int,
    betas: dict[str, float],
    attention_factor: dict[str, float],
    rope_type: str,
) -> None:
    said: dict[str, Any] = {"rope_type": rope_type, "factor": factor}
    if rope_type == "yarn":
        said |= {"original_max_position_embeddings": original, **betas, **attention_factor}
    rope = Rope(theta, RopeScaling(**said))
    theirs, scale = of_transformers(head_dim, head_dim // part, theta, said)
    ours = rope.frequencies(head_dim // part)
    assert ours.dtype == torch.float64
    # Its exponents are rounded to float32, which theta^x magnifies by x ln(theta).
    torch.testing.assert_close(ours.float(), theirs, rtol=2**-23 * (4 + math.log(theta)), atol=0)
    assert rope.scale == scale


def test_yarn_at_its_ends() -> None:
    """The pairs before the ramp keep their frequency, those behind it are slowed down in full: to the bit."""
    plain = Rope(10_000.0).frequencies(64)
    scaling = RopeScaling(rope_type="yarn", factor=16.0, original_max_position_embeddings=4096)
    yarn = Rope(10_000.0, scaling).frequencies(64)
    # 4096 = 32 turns of a wavelength of 128, and 1 of 4096: pairs 10.5 and 22.5, of 64 dims
    assert torch.equal(yarn[:11], plain[:11])
    assert torch.equal(yarn[23:], plain[23:] / 16)
    assert ((yarn[11:23] < plain[11:23]) & (yarn[11:23] > plain[11:23] / 16)).all()
    assert scaling.scale == pytest.approx(1.2772588722239781, abs=1e-15)  # 0.1 ln 16 + 1


def test_no_scaling_changes_no_bit() -> None:
    exponents = torch.arange(0, 32, 2, dtype=torch.float64) / 32
    assert torch.equal(Rope(1e7).frequencies(32), 1e7**-exponents)
    assert Rope(1e7).scale == 1.0
    assert ModelConfig(rope_scaling=None) == ModelConfig()  # as other projects write it


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "'yarn' needs original_max_position_embeddings"),
        ({"rope_type": "yarn"}, "needs factor and original_max_position_embeddings"),
        ({"rope_type": "linear"}, "'linear' needs factor"),
        ({"rope_type": "linear", "factor": 4.0, "beta_fast": 3.0}, "'linear' has no beta_fast; leave it out"),
        ({"factor": 4.0}, "'default' has no factor"),
        ({"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 9}, "'rope_scaling.factor'"),
        ({"rope_type": "dynamic", "factor": 2.0}, "'rope_scaling.rope_type': must be 'default', 'linear' or 'yarn'"),
        ({"rope_type": "linear", "facter": 4.0}, "unknown key 'rope_scaling.facter'; did you mean 'factor'"),
        (
            {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 9, "beta_slow": 40},
            r"beta_fast \(32\) must be at least beta_slow \(40\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(scaling: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelConfig.parse({"rope_scaling": scaling}, "[model]")


def test_a_base_is_above_1() -> None:
    """At 1 all pairs would turn alike, and YaRN would have no ramp."""
    with pytest.raises(UserError, match="'rope_theta': must be greater than 1"):
        ModelConfig.parse({"rope_theta": 1.0}, "[model]")


def test_a_scaling_is_written_as_it_was_said() -> None:
    said = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 16.0}
    config = ModelConfig.parse({"rope_scaling": said}, "[model]")
    assert config.model_dump(mode="json")["rope_scaling"] == said
    assert str(config.rope) == "base 10,000, yarn (factor 4, original_max_position_embeddings 2048, beta_fast 16)"
