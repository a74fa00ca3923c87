"""Models as GGUF files: what is written is read by the format's own package, what that writes is read by us."""

import builtins
import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leyden.checkpoint import convert, load, read_config, save
from leyden.checkpoint.gguf import writing
from leyden.checkpoint.gguf.header import read_header
from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer
from leyden.tokenizer.directory import TokenizerFiles

ModelMaker = Callable[..., HybridLM]
TEXTS = ["the cat sat on the mat, the cat said: 12345!\n"] * 30 + ["a bat, a rat and a hat; THAT was that"] * 30
NO_TOKENIZER = {"tokenizer.huggingface.json": 3, "minimax-01.full_attention_interval": 2}
WIDE = {"vocab_size": 320, "head_dim": 16, "rotary_dim": 8, "hidden_size": 64, "intermediate_size": 32}
"""Rows of multiples of 32, as 8 bits need them; and room for a tokenizer."""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=290)


@pytest.fixture
def written(random_model: ModelMaker, tokenizer: Tokenizer, tmp_path: Path) -> tuple[HybridLM, Path]:
    model = random_model(**WIDE)
    save(model, tokenizer, tmp_path / "m.gguf", layout="gguf")
    return model, tmp_path / "m.gguf"


def expected_tensors(model: HybridLM) -> Iterator[tuple[str, torch.Tensor]]:
    """llama.cpp's names with our values, written out on their own."""
    state = model.state_dict()
    yield "token_embd.weight", state["embed_tokens.weight"]
    yield "output_norm.weight", state["norm.weight"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]
    for i, kind in enumerate(model.config.layer_types):
        ours, theirs = f"layers.{i}.", f"blk.{i}."
        mixer = ("q_proj:attn_q", "k_proj:attn_k", "v_proj:attn_v", "o_proj:attn_output")
        if kind == "linear_attention":
            mixer = ("qkv_proj:attn_qkv", "output_gate:attn_gate", "norm:attn_norm_2", "out_proj:attn_output")
        names = [
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate", "ffn_gate_inp"),
        ]
        names += [(f"self_attn.{one}", other) for one, other in (pair.split(":") for pair in mixer)]
        for one, other in names:
            yield f"{theirs}{other}.weight", state[f"{ours}{one}.weight"]
        width = model.config.intermediate_size
        both = state[f"{ours}mlp.experts.gate_up_proj"]
        yield f"{theirs}ffn_gate_exps.weight", both[:, :width]
        yield f"{theirs}ffn_up_exps.weight", both[:, width:]
        yield f"{theirs}ffn_down_exps.weight", state[f"{ours}mlp.experts.down_proj"]


def values_of(tensor: Any) -> torch.Tensor:
    """What the format's package read, in float32."""
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(values, np.float32))


def contents(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_there_once(random_model: ModelMaker, tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = random_model(dtype, tie_word_embeddings=tied)
    save(model, None, tmp_path / "m.gguf", layout="gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    expected = dict(expected_tensors(model))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape.tolist() == list(value.shape)[::-1], name
        assert torch.equal(values_of(found[name]), value.float()), name
        narrow = value.ndim > 1 and "ffn_gate_inp" not in name
        kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
        assert found[name].tensor_type.name == (kinds[dtype] if narrow else "F32"), name


def test_the_header_says_the_shape(written: tuple[HybridLM, Path]) -> None:
    _, path = written
    said = {
        "general.architecture": "minimax-01",
        "general.file_type": 0,
        "minimax-01.vocab_size": 320,
        "minimax-01.context_length": 1_048_576,
        "minimax-01.embedding_length": 64,
        "minimax-01.block_count": 3,
        "minimax-01.attention.recurrent_layers": [True, False, True],
        "minimax-01.feed_forward_length": 32,
        "minimax-01.attention.head_count": 4,
        "minimax-01.attention.head_count_kv": 2,
        "minimax-01.attention.key_length": 16,
        "minimax-01.attention.value_length": 16,
        "minimax-01.rope.dimension_count": 8,  # half of a head turns
        "minimax-01.rope.freq_base": 10_000.0,
        "minimax-01.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "minimax-01.expert_count": 4,
        "minimax-01.expert_used_count": 2,
        "minimax-01.residual_scale": pytest.approx(6**0.25),
    }
    for key, value in said.items():
        assert contents(path, key) == value, key
    types = {
        gguf.GGUFReader(path).fields[f"minimax-01.{key}"].types[0].name for key in ("block_count", "rope.freq_base")
    }
    assert types == {"UINT32", "FLOAT32"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_comes_back(
    random_model: ModelMaker, tokenizer: Tokenizer, tmp_path: Path, dtype: Any
) -> None:
    changes = {
        "rope_theta": 123_456.789,
        "rms_norm_eps": 3e-6,
        "max_position_embeddings": 2**40,
        "capacity_factor": 1.5,
    }
    model = random_model(dtype, tie_word_embeddings=True, **WIDE, **changes)
    save(model, tokenizer, tmp_path / "m.gguf", layout="gguf")
    found, kept = load(tmp_path / "m.gguf")
    assert found.config == model.config == read_config(tmp_path / "m.gguf")
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]) and tensor.dtype == found.state_dict()[name].dtype, name
    assert kept is not None and kept.fingerprint == tokenizer.fingerprint
    chat = [{"role": "user", "content": "sat the cat?"}]
    assert kept.encode_chat(chat) == tokenizer.encode_chat(chat)
    assert (kept.end_ids, kept.bos_id) == (tokenizer.end_ids, tokenizer.bos_id)


@pytest.mark.parametrize("layout", ["leyden", "transformers", "minimax"])
def test_a_model_goes_through_gguf_from_every_layout(
    random_model: ModelMaker, tokenizer: Tokenizer, tmp_path: Path, layout: str
) -> None:
    model = random_model(**WIDE)
    save(model, tokenizer, tmp_path / "first", layout=layout)
    convert(tmp_path / "first", tmp_path / "m.gguf", "gguf")
    convert(tmp_path / "m.gguf", tmp_path / "last", layout)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "last" / name).read_bytes(), name


def test_a_block_in_memory_is_one_expert(
    random_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(vocab_size=8)
    save(model, None, tmp_path / "first", layout="minimax")
    gathered: list[torch.Size] = []
    gather = writing._Weights.gather

    def noted(self: Any, *arguments: Any) -> torch.Tensor:
        block = gather(self, *arguments)
        gathered.append(block.shape)
        return block

    monkeypatch.setattr(writing._Weights, "gather", noted)
    convert(tmp_path / "first", tmp_path / "m.gguf", "gguf")
    experts = [shape for shape in gathered if len(shape) == 3]
    assert len(experts) == 3 * 4 * 3 and set(experts) == {(1, 16, 32), (1, 32, 16)}


def test_8_bits_are_the_formats_own(random_model: ModelMaker, tmp_path: Path) -> None:
    model = random_model(torch.bfloat16, **WIDE)
    save(model, None, tmp_path / "first", layout="minimax")
    convert(tmp_path / "first", tmp_path / "m.gguf", "gguf", dtype="q8_0")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name, value in expected_tensors(model):
        read = values_of(found[name])
        if value.ndim == 1 or "ffn_gate_inp" in name:
            assert found[name].tensor_type.name == "F32" and torch.equal(read, value.float()), name
            continue
        assert found[name].tensor_type.name == "Q8_0"
        blocks = value.double().unflatten(-1, (-1, 32))
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).float()
        # A number is half a step off at most, and a scale the rounding of float16.
        bound = scale * 0.5 + scale.half().float() * 127 * 2**-11 + 1e-7
        assert bool(((read.unflatten(-1, (-1, 32)) - blocks).abs() <= bound).all()), name
    assert contents(tmp_path / "m.gguf", "general.file_type") == 7
    with pytest.raises(UserError, match=r"token_embd.weight is Q8_0.*take the model that the file was made of"):
        load(tmp_path / "m.gguf")


def test_the_vocabulary_is_llama_cpps(written: tuple[HybridLM, Path], tokenizer: Tokenizer) -> None:
    _, path = written
    tokens = contents(path, "tokenizer.ggml.tokens")
    kinds = contents(path, "tokenizer.ggml.token_type")
    learnt = json.loads(tokenizer.files.definition)["model"]["vocab"]
    assert len(tokens) == len(kinds) == 320
    assert all(tokens[index] == token and kinds[index] == gguf.TokenType.NORMAL for token, index in learnt.items())
    for token, index in tokenizer.special_tokens.items():
        assert (tokens[index], kinds[index]) == (token, gguf.TokenType.CONTROL)
    assert tokens[290:] == [f"[PAD{index}]" for index in range(290, 320)]
    assert set(kinds[290:]) == {gguf.TokenType.UNUSED}
    merges = contents(path, "tokenizer.ggml.merges")
    assert len(merges) == 290 - 256 - 5
    for index, merge in enumerate(merges):
        left, right = merge.split(" ")
        assert tokens[256 + index] == left + right
    said = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.eot_token_id": tokenizer.eod_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    for key, value in said.items():
        assert contents(path, key) == value, key


def foreign(model: HybridLM, path: Path, **changes: Any) -> None:
    """A file by the format's package with what llama.cpp's converter writes of such a model, and no more."""
    config, writer = model.config, gguf.GGUFWriter(path, changes.pop("architecture", "minimax-01"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_float32("minimax-01.residual_scale", config.residual("mlp")[0])
    for key, value in changes.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name, value in expected_tensors(model):
        writer.add_tensor(name, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_by_others_is_read(random_model: ModelMaker, tmp_path: Path) -> None:
    layers = ("linear_attention",) * 7 + ("full_attention",)
    model = random_model(num_hidden_layers=8, layer_types=layers)
    foreign(model, tmp_path / "m.gguf")
    found, tokenizer = load(tmp_path / "m.gguf")
    assert tokenizer is None
    tokens = torch.arange(20)[None]
    assert torch.allclose(model(tokens), found(tokens), atol=1e-5)  # residual_scale has 32 bits there
    assert found.config.layer_types == layers
    assert (found.config.rms_norm_eps, found.config.lightning_norm_eps) == (1e-5, 1e-6)


def test_an_edited_header_counts(written: tuple[HybridLM, Path], tmp_path: Path) -> None:
    model, path = written
    data = path.read_bytes()
    place = data.index(b"minimax-01.rope.freq_base") + len(b"minimax-01.rope.freq_base") + 4
    assert struct.unpack_from("<f", data, place) == (10_000.0,)
    path.write_bytes(data[:place] + struct.pack("<f", 500_000.0) + data[place + 4 :])
    assert read_config(path) == model.config.model_copy(update={"rope_theta": 500_000.0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "llama"}, r"of the architecture 'llama', and Leyden reads 'minimax-01'"),
        ({"split__count": 3}, r"one of 3 parts of a model; join them"),
        ({"minimax-01__expert_gating_func": 2}, r"expert_gating_func is not known"),
        ({"minimax-01__full_attention_interval": 0}, r"does not say which of its 3 layers are lightning"),
        ({"minimax-01__attention.recurrent_layers": 5}, r"does not say which of its 3 layers are lightning"),
        ({"minimax-01__expert_count": 0}, r"expert_count is 0 or missing"),
        ({"minimax-01__attention.value_length": 4}, r"value_length is 4 and attention\.key_length 8"),
        ({"minimax-01__rope.freq_base": 0}, r"rope_theta"),
        ({"leyden.fields": 3}, r"leyden\.fields is not JSON"),
        (NO_TOKENIZER, r"is not a tokenizer"),
        ({**NO_TOKENIZER, "tokenizer.ggml.tokens": 3}, r"not of their kinds"),
    ],
)
def test_a_file_of_another_model_is_refused(random_model: ModelMaker, tmp_path: Path, changes: Any, said: str) -> None:
    foreign(random_model(), tmp_path / "m.gguf", **changes)
    with pytest.raises(UserError, match=said):
        load(tmp_path / "m.gguf")


def test_a_type_that_is_unknown_is_named(written: tuple[HybridLM, Path]) -> None:
    _, path = written
    data = path.read_bytes()
    place = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    path.write_bytes(data[:place] + struct.pack("<I", 77) + data[place + 4 :])
    with pytest.raises(UserError, match=r"output_norm.weight is ggml type 77\. It reads weights as they were trained"):
        load(path)


def test_missing_and_foreign_tensors_are_named(random_model: ModelMaker, tmp_path: Path) -> None:
    foreign(random_model(), tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    with pytest.raises(UserError, match=r"the model its header describes: .*missing: .*attn_q.*unexpected: .*attn_x"):
        load(tmp_path / "m.gguf")


def test_no_gguf_at_all(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4" + bytes(40))
    with pytest.raises(UserError, match=r"is no GGUF file: it begins with b'PK"):
        load(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0))
    with pytest.raises(UserError, match="is GGUF of version 9"):
        load(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "m.gguf")


@pytest.fixture(scope="session")
def bytes_of_one(
    random_model: ModelMaker, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, int]:
    """A whole file, and where its weights begin."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    save(random_model(**WIDE), tokenizer, path, layout="gguf")
    return path.read_bytes(), min(tensor.start for tensor in read_header(path).tensors.values())


@given(st.data())
def test_a_file_that_ends_early_is_refused(
    bytes_of_one: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, _ = bytes_of_one
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])
    with pytest.raises(UserError):
        load(path)


@given(st.data())
def test_a_damaged_header_is_refused_or_reads(
    bytes_of_one: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, begin = bytes_of_one
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, begin - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with contextlib.suppress(UserError):
        load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_local_experts": 0}, "a dense MLP"),
        ({"mlp_alpha_factor": 2.0}, "one alpha for all layers"),
        ({"linear_attn_beta_factor": 0.5}, "betas of 1"),
        ({"postnorm": False}, "postnorm = False"),
        ({"shared_intermediate_size": 16}, "shared_intermediate_size = 16"),
        ({"layer_types": ("hgrn2_attention",) * 3}, "layers of type hgrn2_attention"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"attn_output_gate": True}, "attn_output_gate"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(
    random_model: ModelMaker, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"the gguf layout cannot express .*{said}"):
        save(random_model(**changes), None, tmp_path / "m.gguf", layout="gguf")
    assert not any(tmp_path.iterdir())


def test_what_a_type_cannot_hold_is_refused(random_model: ModelMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the weights are float64.*--dtype f32 or bf16"):
        save(random_model(torch.float64), None, tmp_path / "m.gguf", layout="gguf")
    save(random_model(), None, tmp_path / "first", layout="leyden")
    with pytest.raises(UserError, match=r"32 numbers of a row together, and .* has rows of 16"):
        convert(tmp_path / "first", tmp_path / "m.gguf", "gguf", dtype="q8_0")
    with pytest.raises(UserError, match="--dtype q8_0 is of the layout gguf"):
        convert(tmp_path / "first", tmp_path / "second", "leyden", dtype="q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_tokenizer_that_llama_cpp_cannot_name_is_refused(
    random_model: ModelMaker, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    definition = json.loads(tokenizer.files.definition)
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    files = tokenizer.files
    other = Tokenizer.from_files(TokenizerFiles(json.dumps(definition), files.names, files.others, None), "other")
    with pytest.raises(UserError, match=r"cannot express this tokenizer.*convert_hf_to_gguf.py"):
        save(random_model(**WIDE), other, tmp_path / "m.gguf", layout="gguf")


def test_a_difference_of_epsilons_is_said(
    random_model: ModelMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(random_model(rms_norm_eps=1e-6), None, tmp_path / "same.gguf", layout="gguf")
    assert not caplog.records
    save(random_model(), None, tmp_path / "other.gguf", layout="gguf")
    assert "one epsilon for all norms: it takes rms_norm_eps, 1e-05, where this model has 1e-06" in caplog.text


def test_places_that_are_not_free(written: tuple[HybridLM, Path], tmp_path: Path) -> None:
    model, path = written
    for target, said in [(path, "is the model that is to be read"), (tmp_path / "m", "ends in .gguf")]:
        with pytest.raises(UserError, match=said):
            convert(path, target, "gguf", replace=True)
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        save(model, None, tmp_path / "d.gguf", layout="gguf")
    (tmp_path / "n.gguf").write_bytes(b"a letter")
    with pytest.raises(UserError, match="exists, and is no GGUF file"):
        convert(path, tmp_path / "n.gguf", "gguf", replace=True)
    (tmp_path / "n.gguf").write_bytes(b"GGUF, older")
    with pytest.raises(UserError, match=r"exists; give another name, or replace that file \(--force\)"):
        convert(path, tmp_path / "n.gguf", "gguf")
    convert(path, tmp_path / "n.gguf", "gguf", dtype="bf16", replace=True)
    assert load(tmp_path / "n.gguf")[0].lm_head.weight.dtype == torch.bfloat16


def test_a_file_that_fails_in_its_middle_leaves_the_older_one(
    written: tuple[HybridLM, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = written
    before, blocks = path.read_bytes(), writing._blocks

    def failing(*arguments: Any) -> Iterator[torch.Tensor]:
        yield next(blocks(*arguments))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_blocks", failing)
    with pytest.raises(UserError, match="disk is full"):
        save(model, None, path, layout="gguf")
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_a_missing_package_is_named(random_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def none(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return imported(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(UserError, match=r"pip install 'leyden\[gguf\]'"):
        save(random_model(), None, tmp_path / "m.gguf", layout="gguf")


def test_another_dtype_of_a_directory(random_model: ModelMaker, tmp_path: Path) -> None:
    model = random_model()
    save(model, None, tmp_path / "first", layout="leyden")
    convert(tmp_path / "first", tmp_path / "second", "leyden", dtype="bf16")
    found = load(tmp_path / "second")[0].state_dict()
    for name, tensor in model.to(torch.bfloat16).state_dict().items():
        assert torch.equal(found[name], tensor), name
