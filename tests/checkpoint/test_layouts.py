"""Models survive the disk in every layout; what is wrong with a directory is told, and nothing is lost."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import leyden
from leyden.checkpoint import convert, load, model_directory, read_config, save
from leyden.checkpoint.tensor_files import write_tensors
from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer

LAYOUTS = ["leyden", "transformers", "minimax"]

ModelMaker = Callable[..., HybridLM]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)


@pytest.fixture
def saved(random_model: ModelMaker, tmp_path: Path) -> Path:
    save(random_model(), None, tmp_path / "model")
    return tmp_path / "model"


def rewrite(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """As a tool does that knows nothing of hashes, whose user then removes them."""
    save_file(tensors, file)
    (file.parent / "SHA256SUMS").unlink(missing_ok=True)


def assert_same(ours: HybridLM, loaded: HybridLM) -> None:
    assert loaded.config == ours.config
    assert not loaded.training
    for (name, value), (name_, value_) in zip(ours.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == name_
        assert value.dtype == value_.dtype, name
        assert torch.equal(value, value_), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"rotary_dim": 8, "num_attention_heads": 6, "capacity_factor": 1.25, "token_drop": "position"},
        {"rotary_dim": 0, "router_z_loss_coef": 1e-3, "z_loss_coef": 1e-4, "router_aux_loss": "switch"},
    ],
)
def test_a_model_comes_back_bit_for_bit(
    random_model: ModelMaker, tmp_path: Path, layout: str, dtype: torch.dtype, changes: dict
) -> None:
    model = random_model(dtype, **changes)
    save(model, None, tmp_path / "m", layout=layout)
    loaded, tokenizer = load(tmp_path / "m")
    assert_same(model, loaded)
    assert tokenizer is None


@pytest.mark.parametrize(
    "changes", [{"num_local_experts": 0}, {"postnorm": False}, {"lightning_norm_eps": 1e-5, "head_dim": 7}]
)
def test_our_layout_holds_every_model(random_model: ModelMaker, tmp_path: Path, changes: dict) -> None:
    model = random_model(**changes)
    save(model, None, tmp_path / "m")
    assert_same(model, load(tmp_path / "m")[0])


def test_layouts_convert_into_each_other(random_model: ModelMaker, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(torch.bfloat16, vocab_size=300)
    save(model, tokenizer, tmp_path / "0")
    for step, layout in enumerate(["transformers", "minimax", "leyden"]):
        convert(tmp_path / str(step), tmp_path / str(step + 1), layout)
    loaded, read = load(tmp_path / "3")
    assert_same(model, loaded)
    assert read is not None
    assert read.fingerprint == tokenizer.fingerprint
    first, last = (load_file(tmp_path / n / "model.safetensors") for n in ("0", "3"))
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_types": ("dense", "experts", "dense"), "dense_intermediate_size": 20},
        {"layer_types": ("sliding_attention", "full_attention", "linear_attention"), "sliding_window": 5},
        {"layer_types": ("cosformer2_attention", "hgrn2_attention", "linear_attention")},
        {
            "layer_types": ("latent_attention", "linear_attention", "latent_attention"),
            "kv_lora_rank": 12,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4,
            "v_head_dim": 5,
        },
        {"router": "sigmoid_groups", "n_group": 2},
        {"shared_intermediate_size": 8, "shared_expert_gate": False},
        {"postnorm": False, "norm_placement": "after"},
        {"postnorm": False, "parallel_block": True},
    ],
    ids=[
        "dense among experts",
        "windows among others",
        "cosformer2 and hgrn2",
        "latent",
        "sigmoid router",
        "shared expert",
        "norms after",
        "parallel",
    ],
)
def test_layers_that_only_our_layout_has(
    random_model: Callable[..., HybridLM], tmp_path: Path, changes: dict[str, object]
) -> None:
    model = random_model(**changes)
    save(model, None, tmp_path / "m", layout="leyden")
    again, _ = load(tmp_path / "m")
    assert again.config == model.config
    for (name, ours), read in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, read), name
    with pytest.raises(UserError, match="minimax layout cannot express"):
        save(model, None, tmp_path / "n", layout="minimax")


def test_the_package_exports_load_and_save() -> None:
    assert leyden.load is load
    assert leyden.save is save


def test_loading_maps_the_file_and_keeps_slopes_on_the_cpu(saved: Path) -> None:
    model, _ = load(saved)
    assert model.layers[0].self_attn.slopes.values.device.type == "cpu"
    assert all(not p.is_meta and p.requires_grad for p in model.parameters())
    # A mapped model outlives its directory, and writing to its weights does not write to the file.
    before = (saved / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert (saved / "model.safetensors").read_bytes() == before
    shutil.rmtree(saved)
    assert torch.isfinite(model(torch.arange(5)[None])).all()


def test_a_dtype_casts_matrices_and_leaves_norms_and_routers(saved: Path) -> None:
    model, _ = load(saved, dtype=torch.bfloat16, device="cpu")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.norm.weight.dtype == torch.float32
    assert model.layers[0].mlp.gate.weight.dtype == torch.float32


def test_norms_stored_in_bfloat16_are_float32_in_the_model(saved: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(saved / "model.safetensors").items()}
    rewrite(tensors, saved / "model.safetensors")
    model, _ = load(saved)
    assert model.norm.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_shards_with_an_index(random_model: ModelMaker, saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    write_tensors(saved, tensors.items(), shard_bytes=8000)
    shards = sorted(saved.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    assert_same(random_model(), load(saved)[0])


def test_every_problem_is_listed_at_once(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["norm.weight"]
    tensors["nrom.weight"] = torch.ones(32)
    tensors["lm_head.weight"] = torch.ones(101, 31)
    tensors["layers.0.self_attn.norm.weight"] = torch.ones(32, dtype=torch.int8)
    rewrite(tensors, saved / "model.safetensors")
    with pytest.raises(UserError) as error:
        load(saved)
    said = str(error.value)
    assert "1 missing: norm.weight" in said
    assert "1 unexpected: nrom.weight" in said
    assert "lm_head.weight is [101, 31] and should be [101, 32]" in said
    assert "layers.0.self_attn.norm.weight is I8" in said


def test_a_long_list_is_cut_short(saved: Path) -> None:
    save_file({"norm.weight": torch.ones(32)}, saved / "model.safetensors")
    with pytest.raises(UserError, match=r"\d\d missing: .*, and \d\d more"):
        load(saved)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01, 0.0])
def test_a_truncated_file_is_named(saved: Path, keep: float) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(UserError, match=r"truncated.*model\.safetensors|model\.safetensors is trunc"):
        load(saved)


def test_any_damage_to_a_header_is_told(saved: Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    told = 0
    for position in range(0, header_bytes, 37):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            load(saved)
        except UserError:
            told += 1
    assert told > 0.8 * len(range(0, header_bytes, 37))  # the rest is spelling that says the same


def test_a_float64_model_is_not_rounded(random_model: ModelMaker, tmp_path: Path) -> None:
    model = random_model(torch.float64)
    with torch.no_grad():
        model.norm.weight += 1e-12
    save(model, None, tmp_path / "m")
    loaded, _ = load(tmp_path / "m")
    assert torch.equal(loaded.norm.weight, model.norm.weight)


def test_matrices_of_several_dtypes_are_read_as_the_widest(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors = {name: t if name == "lm_head.weight" else t.bfloat16() for name, t in tensors.items()}
    rewrite(tensors, saved / "model.safetensors")
    model, _ = load(saved)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_configuration_alone_needs_no_weights(random_model: ModelMaker, tmp_path: Path, layout: str) -> None:
    model = random_model()
    save(model, None, tmp_path / "m", layout=layout)
    (tmp_path / "m" / "model.safetensors").unlink()
    assert read_config(tmp_path / "m") == model.config
    with pytest.raises(UserError, match="no weights"):
        load(tmp_path / "m")


def test_a_missing_shard_is_named(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    write_tensors(saved, tensors.items(), shard_bytes=8000)
    sorted(saved.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"the file model-00002-of-.* is missing; .* missing: "):
        load(saved)


def test_an_index_cannot_reach_outside_its_directory(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved.parent / "elsewhere.safetensors")
    index = {"weight_map": {"norm.weight": "../elsewhere.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no file of its directory"):
        load(saved)


def test_pickles_are_not_opened(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle, which Leyden never opens"):
        load(saved)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is not a JSON file"),
        ("[]", "holds a list"),
        ('{"model_type": "llama"}', "model_type 'llama'"),
        ('{"model_type": "leyden", "hiden_size": 32}', "unknown key 'hiden_size'; did you mean 'hidden_size'"),
    ],
)
def test_a_config_that_is_none(saved: Path, config: str, said: str) -> None:
    (saved / "config.json").write_text(config)
    with pytest.raises(UserError, match=said):
        load(saved)


@pytest.mark.parametrize("path", ["nowhere", "a/b/c", "/no/such/place"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(path)


def test_an_empty_directory_and_a_file_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        load(tmp_path / "file")


def test_a_hub_id_without_the_hub_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        load("nobody/nothing")


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing is no directory here, and the hub did not give it"):
        load("nobody/nothing")


def test_a_hub_id_is_fetched_without_code_or_pickles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    model, _ = load("nobody/nothing")
    assert model.config == read_config(saved)
    assert asked == {"nobody/nothing": ["*.json", "*.safetensors", "*.jinja", "SHA256SUMS"]}


def test_a_conversion_that_fails_leaves_the_target(random_model: ModelMaker, saved: Path, tmp_path: Path) -> None:
    save(random_model(seed=1), None, tmp_path / "target")
    before = {p.name: p.read_bytes() for p in (tmp_path / "target").iterdir()}
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        convert(saved, tmp_path / "target", "minimax", replace=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "target").iterdir()} == before


def test_an_unknown_layout(random_model: ModelMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'transformers'"):
        save(random_model(), None, tmp_path / "m", layout="transformer")
    assert not (tmp_path / "m").exists()


def test_a_tokenizer_of_another_model(random_model: ModelMaker, tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="265 tokens and the model's vocab_size is 101"):
        save(random_model(), tokenizer, tmp_path / "m")


def test_a_directory_with_other_things_is_not_replaced(random_model: ModelMaker, saved: Path) -> None:
    (saved / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"other things than a model \(thesis\.tex\)"):
        save(random_model(), None, saved)
    assert (saved / "thesis.tex").exists()


def test_a_failed_save_leaves_the_old_model(
    random_model: ModelMaker, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    monkeypatch.setattr("leyden.checkpoint.tensor_files.save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        save(random_model(seed=1), None, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_model_is_replaced_by_the_next(random_model: ModelMaker, saved: Path) -> None:
    model = random_model(seed=1, tie_word_embeddings=True)
    save(model, None, saved, layout="minimax")
    assert_same(model, load(saved)[0])


def test_a_conversion_replaces_no_model_unasked(random_model: ModelMaker, saved: Path, tmp_path: Path) -> None:
    save(random_model(seed=1), None, tmp_path / "target")
    before = {p.name: p.read_bytes() for p in (tmp_path / "target").iterdir()}
    with pytest.raises(UserError, match="not empty; give a new directory"):
        convert(saved, tmp_path / "target", "minimax")
    assert {p.name: p.read_bytes() for p in (tmp_path / "target").iterdir()} == before
    convert(saved, tmp_path / "target", "minimax", replace=True)
    assert_same(load(saved)[0], load(tmp_path / "target")[0])
    for replace in (False, True):
        with pytest.raises(UserError, match="is a model that is to be read itself"):
            convert(saved, saved.parent / "." / saved.name, "minimax", replace=replace)
    (tmp_path / "empty").mkdir()
    convert(saved, tmp_path / "empty", "leyden")


def test_files_have_the_permissions_of_the_umask(random_model: ModelMaker, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save(random_model(), None, tmp_path / "m")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir()} == {0o644}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tied_model_may_come_with_a_copy_of_its_embedding(
    random_model: ModelMaker, tmp_path: Path, layout: str
) -> None:
    model = random_model(torch.bfloat16, tie_word_embeddings=True)
    save(model, None, tmp_path / "m", layout=layout)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "embed_tokens" in name)
    rewrite(tensors | {"lm_head.weight": tensors[name].clone()}, file)
    assert_same(model, load(tmp_path / "m")[0])
    other = tensors[name].clone()
    other[-1, -1] += 1
    for wrong in (other, tensors[name].float(), tensors[name][:-1].clone()):
        rewrite(tensors | {"lm_head.weight": wrong}, file)
        with pytest.raises(UserError, match=f"lm_head.weight is no copy of {name}"):
            load(tmp_path / "m")


@pytest.mark.parametrize(
    ("slow", "free", "dtype"),
    [("slow", 1 << 40, torch.float32), ("slow", 1 << 10, torch.bfloat16), (None, 1 << 40, torch.bfloat16)],
)
def test_a_processor_without_16_bit_arithmetic_computes_in_float32_where_that_fits(
    tmp_path: Path,
    random_model: Callable[..., HybridLM],
    monkeypatch: pytest.MonkeyPatch,
    slow: str | None,
    free: int,
    dtype: torch.dtype,
) -> None:
    model = random_model(torch.bfloat16, vocab_size=300)
    save(model, None, tmp_path / "model")
    monkeypatch.setattr(model_directory, "narrow_products_are_slow", lambda device: slow)
    monkeypatch.setattr(model_directory, "free_bytes", lambda device: free)
    opened, _ = load(tmp_path / "model", dtype="auto")
    assert opened.lm_head.weight.dtype == dtype
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight.to(dtype))
    assert load(tmp_path / "model")[0].lm_head.weight.dtype == torch.bfloat16
