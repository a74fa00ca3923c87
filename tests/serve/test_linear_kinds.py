"""Other kinds of linear attention pass what lightning attention passes: parts, company, drafts, the prefix cache.

The tests are those of ``test_runner`` and ``test_prefix_cache``, on models whose linear layers are of another kind.
"""

from collections.abc import Callable

import pytest
import torch
from test_family_options import FAMILY
from test_prefix_cache import *  # noqa: F403 - every test of it
from test_runner import *  # noqa: F403 - every test of it

from leyden import Engine, Sampling
from leyden.model import Cache, HybridLM, NativeDecoder, Pools
from leyden.ops import native
from leyden.serve.weights import decoder_of


# cosFormer2 is computed by the op of lightning attention, on which the same tests run elsewhere.
@pytest.fixture(
    scope="module",
    params=[
        "hgrn2_attention",
        pytest.param("cosformer2_attention", marks=pytest.mark.slow),
        pytest.param("family options", marks=pytest.mark.slow),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def make_model(make_model: Callable[..., HybridLM], kind: str) -> Callable[..., HybridLM]:
    """Two of the four layers are of the kind, unless a test says other layers; or all have the family's options."""
    if kind == "family options":
        return lambda **changes: make_model(**({} if "layer_types" in changes else FAMILY), **changes)
    layers = {"layer_types": (kind, "full_attention", "linear_attention", kind)}
    return lambda **changes: make_model(**({} if "layer_types" in changes else layers), **changes)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def network(request: pytest.FixtureRequest, make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model().to(request.param)


@pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")
def test_an_engine_decodes_natively(model: HybridLM, kind: str) -> None:
    if kind == "family options":
        pytest.skip("it has no body for them")
    pools = Pools(model.config, 2, 4, dtype=torch.float32)
    assert isinstance(decoder_of(model, pools, "auto"), NativeDecoder)


@pytest.mark.parametrize("settings", [{}, {"speculation": "prompt"}, {"cache_gigabytes": 0.0}])
def test_an_engine_generates_what_the_model_does(model: HybridLM, settings: dict[str, object]) -> None:
    """Twice, so that the second time goes on from the prefix cache where there is one."""
    prompt, cache = torch.randint(290, (600,), generator=torch.Generator().manual_seed(6)).tolist(), Cache(model.config)
    expected, token = [], torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(8):
            token = model(token, cache=cache)[:, -1:].argmax(-1)
            expected.append(int(token))
    engine = Engine(model, kv_gigabytes=0.01, **{"cache_gigabytes": 0.01, **settings})
    for _ in range(2):
        (made,) = engine.generate([prompt], Sampling(max_tokens=8, temperature=0.0, ignore_eos=True))
        assert list(made.tokens) == expected
