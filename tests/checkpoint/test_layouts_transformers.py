"""Stock transformers opens what we write and computes our logits; we open what it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leyden.checkpoint import convert, load, save
from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM
from leyden.serve import Engine, Sampling
from leyden.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

ModelMaker = Callable[..., HybridLM]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0}

SHAPES = {
    "half rotary": {},
    "full rotary": {"rotary_dim": 8},
    "no rotary": {"rotary_dim": 0},
    "one pair": {"rotary_dim": 2, "rope_theta": 1e7},
    "half rotary, interpolated": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "full rotary, interpolated": {"rotary_dim": 8, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "half rotary, YaRN": {"rope_scaling": YARN},
    "full rotary, YaRN": {"rotary_dim": 8, "rope_scaling": {**YARN, "beta_slow": 0.5}},
    "YaRN, said factor": {"rotary_dim": 8, "rope_scaling": {**YARN, "attention_factor": 1.3}},
    "6 heads": {"num_attention_heads": 6, "head_dim": 10},
    "3 heads": {"num_attention_heads": 3, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "window": {"layer_types": ("sliding_attention", "linear_attention", "sliding_attention"), "sliding_window": 37},
    "no softmax layer": {"layer_types": ("linear_attention",) * 3},
    "one layer": {"num_hidden_layers": 1, "layer_types": ("linear_attention",)},
    "factors": {"full_attn_alpha_factor": 1.3, "full_attn_beta_factor": 0.7, "mlp_beta_factor": 1.1},
}


def open_with_transformers(directory: Path) -> Any:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    assert isinstance(model, transformers.MiniMaxForCausalLM)
    return model.eval()


def random_tokens(num_rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(101, (num_rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_transformers_computes_our_logits(random_model: ModelMaker, tmp_path: Path, changes: dict) -> None:
    model = random_model(**changes)
    save(model, None, tmp_path / "m", layout="transformers")
    theirs = open_with_transformers(tmp_path / "m")
    tokens = random_tokens(2, 301)  # more than one of its blocks of 256
    with torch.no_grad():
        ours, native = model(tokens), theirs(tokens, use_cache=False).logits
    assert ours.std() > 0.5
    torch.testing.assert_close(native, ours, rtol=0, atol=2e-5)


def test_the_pairs_turn_and_stand_still_as_ours_at_a_million_tokens(random_model: ModelMaker, tmp_path: Path) -> None:
    save(random_model(head_dim=10, rotary_dim=4), None, tmp_path / "m", layout="transformers")
    rotary = open_with_transformers(tmp_path / "m").model.rotary_emb
    cos, sin = rotary(torch.zeros(1), torch.tensor([[1_048_575]]))
    assert rotary.attention_scaling == 1
    torch.testing.assert_close(
        rotary.inv_freq[:2].double(), 10_000.0 ** -torch.tensor([0, 0.5]).double(), rtol=2**-22, atol=0
    )
    assert (cos[0, 0, 2:5] == 1).all()
    assert (sin[0, 0, 2:5].abs() < 1e-20).all()


def test_at_long_positions_its_rounding_of_angles_is_all_that_differs(random_model: ModelMaker, tmp_path: Path) -> None:
    """transformers forms angles in float32: at position p they are off by p 2^-23; ours are of float64."""
    model = random_model(num_hidden_layers=1, layer_types=("full_attention",))
    save(model, None, tmp_path / "m", layout="transformers")
    theirs = open_with_transformers(tmp_path / "m")
    tokens = random_tokens(1, 2001)
    with torch.no_grad():
        ours, native = model(tokens), theirs(tokens, use_cache=False).logits
        exact = model.double()(tokens)
    assert (native - exact).abs().max() < 2e-5 + 2001 * 2**-23
    assert (ours - exact).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["half rotary", "full rotary", "3 heads", "window"])
def test_greedy_generation_is_ours(random_model: ModelMaker, tmp_path: Path, name: str) -> None:
    model = random_model(**SHAPES[name])
    save(model, None, tmp_path / "m", layout="transformers")
    theirs = open_with_transformers(tmp_path / "m")
    prompt = random_tokens(1, 270)
    with torch.no_grad():
        native = theirs.generate(prompt, max_new_tokens=24, do_sample=False)[0, 270:].tolist()
        cache, step, ours = Cache(model.config), prompt, []
        for _ in range(24):
            step = model(step, cache=cache)[:, -1:].argmax(-1)
            ours.append(step.item())
    assert ours == native


@pytest.mark.parametrize("name", ["half rotary", "full rotary", "tied"])
def test_gradients_are_those_of_transformers(random_model: ModelMaker, tmp_path: Path, name: str) -> None:
    model = random_model(**SHAPES[name])
    save(model, None, tmp_path / "m", layout="transformers")
    theirs = open_with_transformers(tmp_path / "m")
    tokens = random_tokens(2, 65)
    weights = torch.randn(2, 65, 101, generator=torch.Generator().manual_seed(1))
    (model(tokens) * weights).sum().backward()
    (theirs(tokens, use_cache=False).logits * weights).sum().backward()
    # Gradients travel as weights do: written by us, read with the parameter they belong to.
    gradients = random_model(**SHAPES[name])
    for parameter, source in zip(gradients.parameters(), model.parameters(), strict=True):
        parameter.data = source.grad
    save(gradients, None, tmp_path / "gradients", layout="transformers")
    ours = dict(open_with_transformers(tmp_path / "gradients").named_parameters())
    for key, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, key
        torch.testing.assert_close(ours[key].data, parameter.grad, rtol=0, atol=3e-5 * float(scale), msg=key)


def test_a_bfloat16_model_opens_in_float32_with_our_slopes(random_model: ModelMaker, tmp_path: Path) -> None:
    model = random_model(torch.bfloat16)
    save(model, None, tmp_path / "m", layout="transformers")
    theirs = open_with_transformers(tmp_path / "m")
    slopes = model.layers[0].self_attn.slopes.values
    assert theirs.dtype == torch.float32
    assert torch.equal(theirs.model.layers[0].self_attn.slope_rate.flatten(), slopes)
    tokens = random_tokens(1, 33)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens, use_cache=False).logits, model.float()(tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["half rotary", "3 heads", "tied", "window"])
def test_what_transformers_saves_again_is_still_our_model(random_model: ModelMaker, tmp_path: Path, name: str) -> None:
    model = random_model(**SHAPES[name], capacity_factor=1.5, z_loss_coef=1e-4)
    save(model, None, tmp_path / "m", layout="transformers")
    open_with_transformers(tmp_path / "m").save_pretrained(tmp_path / "again")
    loaded, _ = load(tmp_path / "again")
    assert loaded.config == model.config
    for (key, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


def native_model(**changes: object) -> Any:
    """As transformers itself initialises one: full rotary, slopes by its own formula."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "initializer_range": 0.3,
    }
    return transformers.MiniMaxForCausalLM(transformers.MiniMaxConfig(**{**shape, **changes})).eval()


@pytest.mark.parametrize("block_size", [256, 64])
def test_we_open_a_model_that_transformers_made(tmp_path: Path, block_size: int) -> None:
    theirs = native_model(block_size=block_size)
    theirs.save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    assert model.config.rotary_dim == 8
    assert model.config.router_aux_loss == "switch"
    tokens = random_tokens(1, 300)
    with torch.no_grad():  # the two formulas of the slopes differ by 1e-5 / (L - 1)
        torch.testing.assert_close(model(tokens), theirs(tokens, use_cache=False).logits, rtol=0, atol=2e-3)


def test_we_open_one_that_was_rounded_to_bfloat16(tmp_path: Path) -> None:
    native_model().bfloat16().save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.layers[0].self_attn.slopes.values.dtype == torch.float32


def test_other_slopes_are_refused(tmp_path: Path) -> None:
    native_model(num_attention_heads=6).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"decays are not those .*model\.layers\.0\.self_attn\.slope_rate \(by up to"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["slope_rate", "query_decay", "key_decay", "diagonal_decay"])
def test_each_decay_is_checked(random_model: ModelMaker, tmp_path: Path, name: str) -> None:
    save(random_model(), None, tmp_path / "m", layout="transformers")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors[f"model.layers.2.self_attn.{name}"].view(-1)[-1] += 0.01
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"model\.layers\.2\.self_attn\.{name} \(by up to 0\.01\)"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_local_experts": 0}, "a dense MLP"),
        ({"shared_intermediate_size": 8}, "shared_intermediate_size = 8 .* use minimax or leyden"),
        ({"postnorm": False, "lightning_norm_eps": 1e-5}, "postnorm = False .* lightning_norm_eps = 1e-05"),
        ({"head_dim": 7}, "odd head_dim, 7"),
        ({"mlp_types": ("dense", "experts", "experts")}, "dense layers among those with experts"),
        (
            {"layer_types": ("full_attention", "linear_attention", "sliding_attention"), "sliding_window": 3},
            "both full_attention and sliding_attention",
        ),
        (
            {"layer_types": ("full_attention", "linear_attention", "cosformer2_attention")},
            "layers of type cosformer2_attention",
        ),
    ],
)
def test_what_transformers_cannot_compute_is_refused(
    random_model: ModelMaker, tmp_path: Path, changes: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        save(random_model(**changes), None, tmp_path / "m", layout="transformers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type 'dynamic' is neither"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "unknown key 'rope_scaling.partial_rotary_factor'",
        ),
        ({"rotary_dim": 4}, "rotary_dim is not known"),
    ],
)
def test_a_config_that_we_do_not_compute_is_refused(tmp_path: Path, changes: dict, said: str) -> None:
    native_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_a_longrope_of_other_factors_is_refused(random_model: ModelMaker, tmp_path: Path) -> None:
    save(random_model(), None, tmp_path / "m", layout="transformers")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["long_factor"][1] *= 2
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="type 'longrope' is neither"):
        load(tmp_path / "m")


def test_generation_of_transformers_ends_where_ours_does(random_model: ModelMaker, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)
    save(random_model(vocab_size=300), tokenizer, tmp_path / "m", layout="transformers")
    theirs = open_with_transformers(tmp_path / "m")
    assert theirs.generation_config.bos_token_id == tokenizer.bos_id
    assert theirs.generation_config.eos_token_id == [tokenizer.eos_id, tokenizer.eod_id]
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert stock.encode("a jar") == tokenizer.encode("a jar", bos=True)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_further_end_token_of_the_files_ends_ours_as_theirs(
    random_model: ModelMaker, tmp_path: Path, file: str
) -> None:
    tokenizer = Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)
    save(random_model(vocab_size=300), tokenizer, tmp_path / "m", layout="transformers")
    sampling = Sampling(max_tokens=12, temperature=0.0)
    prompt = tokenizer.encode("a jar", bos=True)
    with Engine(*load(tmp_path / "m")) as engine:
        free = engine.generate([prompt], sampling)[0].tokens
    end = next(token for place, token in enumerate(free) if place > 2 and token not in free[:place])
    path = tmp_path / "m" / file
    content = json.loads(path.read_text()) if path.exists() else {"bos_token_id": tokenizer.bos_id}
    path.write_text(json.dumps({**content, "eos_token_id": [*tokenizer.end_ids, end]}))

    theirs = open_with_transformers(tmp_path / "m").generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, use_cache=False
    )
    expected = tuple(theirs[0, len(prompt) :].tolist())
    assert expected == free[: free.index(end) + 1]
    for layout in ("transformers", "leyden", "minimax"):
        convert(tmp_path / "m", tmp_path / layout, layout)
        with Engine(*load(tmp_path / layout)) as engine:
            ended = engine.generate([prompt], sampling)[0]
            ignoring = engine.generate([prompt], sampling.model_copy(update={"ignore_eos": True}))[0]
            late = engine.generate([prompt], sampling.model_copy(update={"min_tokens": len(expected) + 1}))[0]
        assert (ended.tokens, ended.finish_reason) == (expected, "stop")
        assert ended.text == tokenizer.decode(expected[:-1], skip_special=True)
        assert (ignoring.tokens[: len(free)], len(ignoring.tokens)) == (free, 12)
        assert end not in late.tokens[: len(expected)]
