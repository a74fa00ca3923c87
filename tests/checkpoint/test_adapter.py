"""Adapters in PEFT's layout: written, read, merged, refused; and PEFT on transformers computes our logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leyden.checkpoint import convert, load, save
from leyden.checkpoint.adapter import fill_adapters, find_adapter, read_adapter, write_adapter
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError
from leyden.model import HybridLM, quantize
from leyden.model.lora import LoraConfig, adapter_parameters, add_lora

ModelMaker = Callable[..., HybridLM]
TARGETS = {"all": ("attention", "experts"), "attention": ("attention",), "experts": ("experts",), "one": ("q_proj",)}


def adapted(model: HybridLM, targets: tuple[str, ...]) -> HybridLM:
    add_lora(model, LoraConfig(rank=3, alpha=6.0, targets=targets))
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model).values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write(model: HybridLM, base: Path, directory: Path, fingerprint: str | None = None) -> Path:
    weights = adapter_parameters(model)
    how: dict[str, Any] = {"rank": 3, "alpha": 6.0, "base": str(base), "fingerprint": fingerprint}
    write_adapter(weights, model.config, directory, **how)
    return directory


def random_tokens(length: int) -> torch.Tensor:
    return torch.randint(101, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(random_model: ModelMaker, tmp_path: Path) -> Path:
    save(random_model(), None, tmp_path / "base", layout="transformers")
    return tmp_path / "base"


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS.keys())
def test_what_is_written_is_read_merged_and_computes_the_same(
    random_model: ModelMaker, base: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    model, tokens = adapted(random_model(), targets), random_tokens(37)
    directory = write(model, base, tmp_path / "adapter", StartingModel.find(str(base)).fingerprint)
    read = read_adapter(directory, model.config)
    assert read.weights.keys() == adapter_parameters(model).keys()
    assert all(torch.equal(read.weights[name], weight) for name, weight in adapter_parameters(model).items())
    again, _ = load(base)
    fill_adapters(again, read)
    with torch.no_grad():
        wanted = model(tokens)
        assert torch.equal(again(tokens), wanted)
        merged, _ = load(directory)  # an adapter is a MODEL
        assert not any(".lora." in name for name in merged.state_dict())
        torch.testing.assert_close(merged(tokens), wanted, rtol=1e-4, atol=1e-4)
    for layout in ("minimax", "transformers", "leyden"):
        convert(base, tmp_path / layout, layout, lora=directory)
        other, _ = load(tmp_path / layout)
        assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in merged.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_merged_is_the_sum_in_float64_rounded_once(
    random_model: ModelMaker, tmp_path: Path, dtype: torch.dtype
) -> None:
    plain, added = random_model(dtype), adapted(random_model(dtype), TARGETS["all"])
    save(plain, None, tmp_path / "base", layout="transformers")
    directory = write(added, tmp_path / "base", tmp_path / "adapter")
    convert(tmp_path / "base", tmp_path / "merged", "leyden", lora=directory)
    merged, adapters = load(tmp_path / "merged")[0].state_dict(), adapter_parameters(added)
    count = 0
    for name, weight in plain.state_dict().items():
        module, _, leaf = name.rpartition(".")
        own = f"{module}.lora." + ("" if leaf == "weight" else leaf.removesuffix("proj"))
        wanted = weight
        if own + "a" in adapters:
            wanted = (weight.double() + 2.0 * (adapters[own + "b"].double() @ adapters[own + "a"].double())).to(dtype)
            count += 1
        assert torch.equal(merged[name], wanted), name
    assert count == len(adapters) // 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers by it
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_peft_computes_our_logits(
    random_model: ModelMaker, tmp_path: Path, targets: tuple[str, ...], rotary_dim: int
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = random_model(rotary_dim=rotary_dim)
    save(model, None, tmp_path / "base", layout="transformers")
    directory = write(adapted(model, targets), tmp_path / "base", tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, directory).eval()
    tokens = random_tokens(37)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens, use_cache=False).logits, model(tokens), rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    read = read_adapter(tmp_path / "theirs", model.config)
    assert read.fingerprint is None
    assert all(torch.equal(read.weights[name], weight) for name, weight in adapter_parameters(model).items())


def test_the_reader_of_peft_knows_which_projection_of_the_experts_is_which(
    random_model: ModelMaker, base: Path, tmp_path: Path
) -> None:
    """It wraps the one around the other in either order."""
    model = adapted(random_model(), ("experts",))
    directory = write(model, base, tmp_path / "adapter")
    stored = load_file(directory / "adapter_model.safetensors")
    swap = {name: name.replace("experts.", "experts.base_layer.") for name in stored if "base_layer" not in name}
    swap |= {name: name.replace("base_layer.", "") for name in stored if "base_layer" in name}
    (directory / "SHA256SUMS").unlink()
    save_file({swap[name]: tensor for name, tensor in stored.items()}, directory / "adapter_model.safetensors")
    read = read_adapter(directory, model.config).weights
    assert all(torch.equal(read[name], weight) for name, weight in adapter_parameters(model).items())


def test_an_adapter_of_another_model_is_refused_in_words(random_model: ModelMaker, base: Path, tmp_path: Path) -> None:
    model = adapted(random_model(), ("attention",))
    directory = write(model, base, tmp_path / "adapter", StartingModel.find(str(base)).fingerprint)
    with pytest.raises(UserError, match="fit no projection of that name here"):
        read_adapter(directory, random_model(hidden_size=20).config)
    with pytest.raises(UserError, match="belongs to no projection of this model"):
        read_adapter(directory, random_model(num_hidden_layers=1, layer_types=("full_attention",)).config)
    save(random_model(seed=1), None, tmp_path / "other", layout="transformers")
    with pytest.raises(UserError, match=r"was trained on the weights of .*, and .* has others"):
        convert(tmp_path / "other", tmp_path / "out", "leyden", lora=directory)
    with pytest.raises(UserError, match="holds no adapter"):
        convert(base, tmp_path / "out", "leyden", lora=base)
    assert find_adapter(directory) == directory
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is not to be found"):
        load(directory)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "adapters of type 'LORA'"),
        ({"use_dora": True}, "use_dora = True"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": 4}, "has rank 3, and adapter_config.json says r = 4"),
        ({"r": "x"}, "r must be a number"),
        ({"lora_alpha": None}, "lora_alpha a number"),
    ],
)
def test_another_kind_of_adapter_is_refused_in_words(
    random_model: ModelMaker, base: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    model = adapted(random_model(), ("attention",))
    directory = write(model, base, tmp_path / "adapter")
    settings = directory / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(UserError, match=words):
        read_adapter(directory, model.config)


def test_adapters_are_never_dropped_in_silence(random_model: ModelMaker, tmp_path: Path) -> None:
    model = adapted(random_model(), ("attention",))
    with pytest.raises(UserError, match="has adapters"):
        save(model, None, tmp_path / "model")
    with pytest.raises(ValueError, match="has an adapter"):
        quantize(model)


def test_damaged_weights_are_refused(random_model: ModelMaker, base: Path, tmp_path: Path) -> None:
    model = adapted(random_model(), ("attention",))
    directory = write(model, base, tmp_path / "adapter")
    weights = directory / "adapter_model.safetensors"
    stored = load_file(weights)
    first = next(iter(stored))
    save_file(stored | {first: stored[first] * torch.nan}, weights)
    with pytest.raises(UserError, match="damaged, or was changed"):
        read_adapter(directory, model.config)
    (directory / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="infinite or none"):
        read_adapter(directory, model.config)
    save_file({name: tensor for name, tensor in stored.items() if name != first}, weights)
    with pytest.raises(UserError, match="beside it"):
        read_adapter(directory, model.config)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="truncated"):
        read_adapter(directory, model.config)
    weights.unlink()
    with pytest.raises(UserError, match="holds no adapter_model"):
        read_adapter(directory, model.config)
