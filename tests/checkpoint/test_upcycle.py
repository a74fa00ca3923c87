"""Models with experts made of feed-forwards compute what those computed; what would not is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.checkpoint.tensor_files import TensorFiles
from leyden.checkpoint.upcycle import UPCYCLE_FILE, Upcycling, upcycle, upcycled_config
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.tokenizer import Tokenizer

ModelMaker = Callable[..., HybridLM]
Cli = Callable[..., Any]
WIDTH = {"intermediate_size": 24}
DENSE = {**WIDTH, "num_local_experts": 0}
MIXED = {**WIDTH, "mlp_types": ("dense", "experts", "experts"), "num_local_experts": 4}
SIGMOID = {**WIDTH, "router": "sigmoid_groups", "routed_scaling_factor": 2.5, "num_local_experts": 4}


def upcycled(model: HybridLM, how: Upcycling, directory: Path, **options: Any) -> HybridLM:
    """In float64, through files."""
    leyden.save(model, None, directory / "before")
    upcycle(directory / "before", directory / "after", how, **options)
    return leyden.load(directory / "after", dtype=torch.float64)[0]


def logits(model: HybridLM) -> torch.Tensor:
    tokens = torch.arange(1, 48).view(1, 47) % model.config.vocab_size
    with torch.no_grad():
        return model(tokens)


@pytest.mark.parametrize(
    ("changes", "how", "top_k"),
    [
        (DENSE, Upcycling(5), 2),
        (DENSE, Upcycling(5, top_k=1), 1),
        (DENSE, Upcycling(6, parts=3), 6),
        (DENSE, Upcycling(12, top_k=6, parts=3), 6),
        (DENSE, Upcycling(16, top_k=4, parts=4), 4),
        ({**DENSE, "dense_intermediate_size": 12}, Upcycling(4, parts=2, top_k=2), 2),
        (WIDTH, Upcycling(12, parts=3), 6),
        (WIDTH, Upcycling(8), 4),
        ({**WIDTH, "shared_intermediate_size": 8}, Upcycling(16, parts=2), 8),
        (MIXED, Upcycling(8, parts=2), 4),
        (SIGMOID, Upcycling(16, parts=4), 8),
    ],
)
def test_the_result_is_that_of_the_model(
    random_model: ModelMaker, tmp_path: Path, changes: dict[str, Any], how: Upcycling, top_k: int
) -> None:
    before = random_model(torch.float64, **changes)
    after = upcycled(before, how, tmp_path)
    assert after.config.num_local_experts == how.experts
    assert after.config.num_experts_per_tok == top_k
    assert "experts" in after.config.mlp_kinds()
    expected = logits(before)
    assert torch.allclose(logits(after), expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_a_power_of_two_changes_no_bit(random_model: ModelMaker, tmp_path: Path) -> None:
    before = random_model(**DENSE)
    after = upcycled(before, Upcycling(8, parts=4), tmp_path)
    mlp = before.layers[1].mlp
    experts = after.layers[1].mlp.experts
    for expert in range(8):
        hidden = slice(expert % 4 * 6, expert % 4 * 6 + 6)
        halves = (mlp.gate_proj.weight[hidden], mlp.up_proj.weight[hidden])
        assert torch.equal(experts.gate_up_proj[expert].float(), torch.cat(halves))
        assert torch.equal(experts.down_proj[expert].float(), mlp.down_proj.weight[:, hidden] * 4)
    rows = after.layers[1].mlp.gate.weight.view(2, 4, -1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert not torch.equal(rows[0], rows[1])


def test_a_token_gets_all_parts_of_what_it_chose(random_model: ModelMaker, tmp_path: Path) -> None:
    after = upcycled(random_model(torch.float64, **DENSE), Upcycling(12, top_k=6, parts=3), tmp_path)
    routing = after.layers[0].mlp.gate(torch.randn(50, after.config.hidden_size, dtype=torch.float64))
    groups = (routing.experts.sort(-1).values // 3).view(50, 2, 3)
    assert torch.equal(groups, groups[..., :1].expand_as(groups))
    assert len(set(groups.flatten().tolist())) == 4


def test_multi_token_modules_come_along(random_model: ModelMaker, tmp_path: Path) -> None:
    before = random_model(torch.float64, **DENSE, num_nextn_predict_layers=1)
    after = upcycled(before, Upcycling(4), tmp_path, layout="leyden")
    names = [name for name, _ in after.named_parameters() if name.startswith("mtp.") and ".experts." in name]
    assert len(names) == 2
    assert torch.equal(
        after.get_parameter(names[1])[3],
        before.get_parameter(names[1].replace("experts.down_proj", "down_proj.weight")),
    )


@pytest.mark.parametrize("layout", ["leyden", "transformers", "minimax"])
def test_noise_is_of_the_size_asked_for_in_all_layouts(random_model: ModelMaker, tmp_path: Path, layout: str) -> None:
    before = random_model(**DENSE)
    after = upcycled(before, Upcycling(8, noise=0.1, seed=7), tmp_path, layout=layout)
    experts = after.layers[0].mlp.experts.down_proj.float()
    plain = before.layers[0].mlp.down_proj.weight.detach()
    added = (experts.detach() - plain) / plain.square().mean().sqrt()
    assert float(added.std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(added[0], added[1])
    # Neither the layout nor how files cut a weight changes what is drawn.
    upcycle(tmp_path / "before", tmp_path / "again", Upcycling(8, noise=0.1, seed=7), layout="leyden", file_bytes=9000)
    for (name, one), other in zip(
        after.named_parameters(), leyden.load(tmp_path / "again")[0].parameters(), strict=True
    ):
        assert torch.equal(one.float(), other), name


def test_16_bits_are_rounded_once_and_said(random_model: ModelMaker, tmp_path: Path, leyden_cli: Cli) -> None:
    tokenizer = Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)
    before = random_model(torch.bfloat16, vocab_size=300, **DENSE)
    leyden.save(before, tokenizer, tmp_path / "before")
    outcome = leyden_cli("upcycle", tmp_path / "before", tmp_path / "after", "--experts", "6", "--parts", "3")
    assert outcome.code == 0, outcome.err
    assert "with 6 experts a layer is in" in outcome.out
    after, other = leyden.load(tmp_path / "after")
    assert other is not None and other.fingerprint == tokenizer.fingerprint
    down = after.layers[0].mlp.experts.down_proj
    assert down.dtype == torch.bfloat16
    wanted = before.layers[0].mlp.down_proj.weight[:, 8:16].double() * 3
    assert torch.equal(down[4], wanted.bfloat16())
    noted = json.loads((tmp_path / "after" / UPCYCLE_FILE).read_text())
    assert {key: noted[key] for key in ("experts", "top_k", "parts", "noise", "seed")} == {
        "experts": 6,
        "top_k": 6,
        "parts": 3,
        "noise": 0.0,
        "seed": 0,
    }
    assert Path(noted["directory"]) == tmp_path / "before" and len(noted["fingerprint"]) == 64


def test_copies_that_learn_the_same_are_told(random_model: ModelMaker, tmp_path: Path, leyden_cli: Cli) -> None:
    leyden.save(random_model(**WIDTH), None, tmp_path / "before")
    for noise, told in (("0", True), ("0.01", False)):
        outcome = leyden_cli("upcycle", tmp_path / "before", tmp_path / f"n{noise}", "--experts", "8", "--noise", noise)
        assert outcome.code == 0, outcome.err
        assert ("the 2 copies of each expert get the same tokens" in " ".join(outcome.err.split())) == told


@pytest.mark.parametrize(
    ("changes", "how", "said"),
    [
        (DENSE, Upcycling(4, parts=5), "--parts 5 does not divide the hidden width of 24"),
        (DENSE, Upcycling(7, parts=2), "must be a multiple of 2, and more than there are, as in 2; given 7"),
        (DENSE, Upcycling(4, top_k=5), "must be a multiple of 1 up to 4"),
        (DENSE, Upcycling(8, top_k=3, parts=2), "a token gets all 2 parts of a feed-forward"),
        (DENSE, Upcycling(4, noise=-0.1), "--noise is a share of 0 or more"),
        (DENSE, Upcycling(4, noise=float("nan")), "--noise is a share of 0 or more"),
        (WIDTH, Upcycling(4), "the model has 4 experts.* multiple of 4, and more than there are, as in 8; given 4"),
        (WIDTH, Upcycling(6), "must be a multiple of 4"),
        (WIDTH, Upcycling(8, top_k=2), "with all their parts and copies alone: 4 of 8"),
        ({**SIGMOID, "norm_topk_prob": False}, Upcycling(8), "would choose and weigh otherwise"),
        ({**SIGMOID, "n_group": 2, "topk_group": 1}, Upcycling(8), "limits a token to some groups"),
    ],
)
def test_what_does_not_fit_is_refused(
    random_model: ModelMaker, tmp_path: Path, changes: dict[str, Any], how: Upcycling, said: str
) -> None:
    leyden.save(random_model(**changes), None, tmp_path / "before")
    with pytest.raises(UserError, match=said):
        upcycle(tmp_path / "before", tmp_path / "after", how)
    assert not (tmp_path / "after").exists()
    with pytest.raises(UserError, match="is a model that is to be read itself"):
        upcycle(tmp_path / "before", tmp_path / "before", Upcycling(8), replace_old=True)


def test_one_expert_is_read_at_a_time(
    random_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leyden.save(random_model(**WIDTH), None, tmp_path / "before")
    read, whole = [], TensorFiles.read

    def note(files: TensorFiles, name: str, first: int, last: int) -> torch.Tensor:
        found = whole(files, name, first, last)
        read.append((name, found.numel()))
        return found

    monkeypatch.setattr(TensorFiles, "read", note)
    monkeypatch.delattr(TensorFiles, "__getitem__")
    upcycle(tmp_path / "before", tmp_path / "after", Upcycling(8, parts=2), layout="leyden")
    experts = [numel for name, numel in read if name.endswith("gate_up_proj")]
    assert set(experts) == {2 * 24 * 32}


def test_the_shape_keeps_everything_else() -> None:
    before = ModelConfig.parse({**DENSE, "rope_theta": 5e5, "qk_norm": ["full_attention"]}, "test")
    after, how = upcycled_config(before, Upcycling(8))
    changed = {key for key, value in after.model_dump().items() if value != before.model_dump()[key]}
    assert changed == {"num_local_experts"} and how.top_k == after.num_experts_per_tok == 2
