"""Tensor parallelism: what tp ranks compute together is what one process computes, gradients included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import Row, assert_close, assert_gradients, part_of_model, random_row, small_model, summed_gradients
from torch import nn

from leyden.model import HybridLM
from leyden.ops import IGNORE_INDEX, gated_rms_norm, linear_cross_entropy, linear_token_nll
from leyden.parallel import Mesh, Plan, tensor, vocabulary
from leyden.parallel.objective import sums_of_features
from leyden.parallel.tensor import install_tensor
from leyden.train.objective import Pretrain

_EXPERTS = {"shared_intermediate_size": 8}
_DENSE = {"num_local_experts": 0, "postnorm": False, "tie_word_embeddings": True}


def _compare(plan: Plan, changes: dict[str, Any], rows: list[list[int]]) -> None:
    for seed, lengths in enumerate(rows):
        _compare_row(mesh_of(plan), small_model(seed=seed, **changes), random_row(lengths, seed=seed))


def _compare_row(mesh: Mesh, whole: HybridLM, row: Row) -> None:
    """A training micro-batch on these ranks and in one process."""
    model, parts = part_of_model(whole, mesh)
    install_tensor(model, mesh)
    hidden, sums = _run(model, row)
    expected_hidden, expected = _run(whole, row)
    own = model.ranks.own(torch.arange(row.tokens.shape[1])[None])[0]
    assert_close(hidden, expected_hidden[:, own], "hidden states of own tokens")
    shares = torch.stack([sums.loss.detach(), sums.metrics["loss"], sums.weight.double()])
    torch.distributed.all_reduce(shares, group=mesh.groups["stage"])
    total = torch.stack([expected.loss.detach(), expected.metrics["loss"], expected.weight.double()])
    assert_close(shares, total, "the sums of the shares of loss, nll and labels")
    assert_gradients(summed_gradients(model, mesh), parts, whole)


def _run(model: HybridLM, row: Row) -> tuple[torch.Tensor, Any]:
    features = model.features(row.tokens, cu_seqlens=row.cu_seqlens)
    sums = sums_of_features(Pretrain(), model, features, row)
    sums.loss.backward()
    return features.hidden.detach(), sums


@pytest.mark.parametrize("changes", [_EXPERTS, _DENSE], ids=["experts", "dense, tied, pre-norm"])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_micro_batch_is_that_of_one_process(
    ranks: Callable[..., list[Any]], tp: int, changes: dict[str, Any]
) -> None:
    ranks(tp, _compare, Plan(tp=tp), changes, [[5, 1, 30, 8, 16], [4], [1] * 8, [2, 33, 1]])


def _cross_entropy(cases: list[tuple[int, int, int, int, float]]) -> None:
    """The divided loss and its gradients, case by case (words, width, tokens a rank, chunk elements, z-loss)."""
    mesh = mesh_of(Plan(tp=2))
    group, rank = mesh.groups["tp"], mesh.at["tp"]
    assert group is not None
    for number, (words, width, own, elements, z_loss) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        hidden, weight = (
            torch.randn(size, width, dtype=torch.float64, generator=generator) for size in (2 * own, words)
        )
        hidden[0] *= 400  # logits whose exponentials overflow
        labels = torch.randint(words, (2 * own,), generator=generator)
        labels[torch.rand(2 * own, generator=generator) < 0.3] = IGNORE_INDEX
        hidden.requires_grad_(), weight.requires_grad_()
        loss, nll = linear_cross_entropy(hidden, weight, labels, z_loss, backend="reference")
        (3 * loss).backward()
        first, mine = words * rank // 2, slice(rank * own, (rank + 1) * own)
        part = weight.detach()[first : words * (rank + 1) // 2].clone().requires_grad_()
        tokens = hidden.detach()[mine].clone().requires_grad_()
        head = vocabulary.VocabularyProjection(part, first, words, group)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabulary, "_chunk_elements", lambda _, elements=elements: elements)
            share, share_nll = head.cross_entropy(tokens, labels, z_loss)
            with torch.no_grad():
                quiet = head.cross_entropy(tokens, labels, z_loss)
        assert torch.equal(quiet[0], share) and torch.equal(quiet[1], share_nll) and not share_nll.requires_grad
        (3 * share).backward()
        alone = linear_cross_entropy(hidden[mine], weight, labels[mine], z_loss, backend="reference")
        what = f"case {number}: "
        assert_close(share, alone[0], what + "this rank's share of the loss")
        assert_close(share_nll, alone[1], what + "this rank's share of the nll")
        torch.distributed.all_reduce(total := torch.stack([share.detach(), share_nll]), group=group)
        assert_close(total, torch.stack([loss.detach(), nll]), what + "the sum of the shares")
        assert tokens.grad is not None and part.grad is not None and hidden.grad is not None and weight.grad is not None
        assert_close(tokens.grad, hidden.grad[mine], what + "the gradient of own tokens")
        assert_close(part.grad, weight.grad[first : first + len(part)], what + "the gradient of own words")


def _token_nll(cases: list[tuple[int, int, int, int]]) -> None:
    """Losses of single tokens and their gradients under random upstream gradients, case by case (as above)."""
    mesh = mesh_of(Plan(tp=2))
    group, rank = mesh.groups["tp"], mesh.at["tp"]
    assert group is not None
    for number, (words, width, own, elements) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        sizes = ((2 * own, width), (words, width), (2, 2 * own))
        hidden, weight, upstream = (torch.randn(size, dtype=torch.float64, generator=generator) for size in sizes)
        hidden[0] *= 400  # logits whose exponentials overflow
        labels = torch.randint(words, (2 * own,), generator=generator)
        labels[torch.rand(2 * own, generator=generator) < 0.3] = IGNORE_INDEX
        hidden.requires_grad_(), weight.requires_grad_()
        softcap = 4.0 if number % 2 else None
        expected = torch.stack(linear_token_nll(hidden, weight, labels, backend="reference", softcap=softcap))
        given = {"weights": upstream[0], "softcap": softcap}
        weighted, _ = linear_cross_entropy(hidden, weight, labels, 0.02, "reference", **given)
        (expected * upstream).sum().add(weighted).backward()
        first, mine = words * rank // 2, slice(rank * own, (rank + 1) * own)
        part = weight.detach()[first : words * (rank + 1) // 2].clone().requires_grad_()
        tokens = hidden.detach()[mine].clone().requires_grad_()
        head = vocabulary.VocabularyProjection(part, first, words, group, softcap)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabulary, "_chunk_elements", lambda _, elements=elements: elements)
            found = torch.stack(head.token_nll(tokens, labels))
            share, _ = head.cross_entropy(tokens, labels, 0.02, upstream[0, mine])
            (found * upstream[:, mine]).sum().add(share).backward()
        what = f"case {number}: "
        assert_close(found, expected[:, mine], what + "nll and log_z of own tokens")
        assert tokens.grad is not None and part.grad is not None and hidden.grad is not None and weight.grad is not None
        assert_close(tokens.grad, hidden.grad[mine], what + "the gradient of own tokens")
        assert_close(part.grad, weight.grad[first : first + len(part)], what + "the gradient of own words")


def test_divided_token_nll(ranks: Callable[..., list[Any]]) -> None:
    ranks(2, _token_nll, [(101, 7, 12, 1 << 20), (101, 7, 12, 7 * 50), (2, 3, 1, 1), (3, 1, 5, 2)])


def test_divided_cross_entropy(ranks: Callable[..., list[Any]]) -> None:
    cases = [
        (101, 7, 12, 1 << 20, 0.01),  # unequal words, one chunk
        (101, 7, 12, 7 * 50, 0.01),  # several chunks, which unequal words must not make unequal
        (2, 3, 1, 1, 0.0),  # one word and one token a rank, a chunk each
        (3, 1, 5, 2, 0.5),
    ]
    ranks(2, _cross_entropy, cases)


def _rounding(_: None) -> dict[str, float]:
    """Errors of the gated norm and of the loss in bfloat16, divided and alone, from float64."""
    mesh = mesh_of(Plan(tp=2))
    group, rank = mesh.groups["tp"], mesh.at["tp"]
    assert group is not None
    generator = torch.Generator().manual_seed(0)
    x, gate, up = torch.randn(3, 1, 64, 96, generator=generator).bfloat16().requires_grad_().unbind(0)
    weight = (1 + 0.3 * torch.randn(96, generator=generator)).requires_grad_()
    hidden, words = torch.randn(64, 32, generator=generator), torch.randn(101, 32, generator=generator)
    labels = torch.randint(101, (64,), generator=generator)
    own = slice(48 * rank, 48 * (rank + 1))

    def norm(dtype: torch.dtype, divided: bool) -> list[torch.Tensor]:
        given = [t.detach().to(dtype).requires_grad_() for t in (x, gate)]
        scale = weight.detach().to(torch.promote_types(dtype, torch.float32))
        if divided:
            part = nn.Parameter(scale[own])
            y = tensor.HeadsNorm(part, 1e-6, group).gated(*(t[..., own] for t in given))
            y.backward(up[..., own].detach())
            return [y.detach(), *(t.grad[..., own] for t in given if t.grad is not None), part.grad]  # type: ignore[list-item]
        scale.requires_grad_()
        y = gated_rms_norm(given[0], given[1], scale, 1e-6, backend="torch")
        y.backward(up.detach().to(dtype))
        found = [y.detach(), *(t.grad for t in given if t.grad is not None), scale.grad]
        return [t[..., own] for t in found if t is not None]

    def loss(dtype: torch.dtype, divided: bool) -> list[torch.Tensor]:
        h, w = (t.to(torch.bfloat16).to(dtype).requires_grad_() for t in (hidden, words))
        mine, first, last = slice(32 * rank, 32 * (rank + 1)), 101 * rank // 2, 101 * (rank + 1) // 2
        if divided:
            head = vocabulary.VocabularyProjection(w[first:last], first, 101, group)
            head.cross_entropy(h[mine], labels, 0.01)[0].backward()
        else:
            linear_cross_entropy(h, w, labels, 0.01, backend="torch")[0].backward()
        assert h.grad is not None and w.grad is not None
        return [h.grad[mine], w.grad[first:last]]

    found = {}
    for name, run in (("norm", norm), ("loss", loss)):
        exact, divided, alone = run(torch.float64, False), run(torch.bfloat16, True), run(torch.bfloat16, False)
        for index, (e, d, a) in enumerate(zip(exact, divided, alone, strict=True)):
            assert d.dtype == a.dtype
            found[f"{name} {index}"] = ((d - e).norm() / (a - e).norm()).item()
    return found


def test_bfloat16_rounds_as_one_process_does(ranks: Callable[..., list[Any]]) -> None:
    for found in ranks(2, _rounding, None):
        assert max(found.values()) < 2, found


def _attached(_: None) -> dict[str, Any]:
    mesh, alone = mesh_of(Plan(tp=2)), mesh_of(Plan(dp_shard=2))
    whole = small_model()
    model, _ = part_of_model(whole, mesh)
    install_tensor(model, mesh)
    tied, _ = part_of_model(small_model(tie_word_embeddings=True), mesh)
    install_tensor(tied, mesh)
    untouched, _ = part_of_model(whole, alone)
    install_tensor(untouched, alone)
    with pytest.raises(RuntimeError, match="tp=1"):
        model(torch.zeros(1, 4, dtype=torch.int64))
    return {
        "names": list(model.state_dict()) == list(whole.state_dict()),
        "untouched": [type(m) for m in untouched.modules()] == [type(m) for m in whole.modules()],
        "tied": tied.lm_head.weight is tied.embed_tokens.weight,
    }


def test_names_and_ties_stay_and_logits_are_refused(ranks: Callable[..., list[Any]]) -> None:
    for found in ranks(2, _attached, None):
        assert found == {"names": True, "untouched": True, "tied": True}
