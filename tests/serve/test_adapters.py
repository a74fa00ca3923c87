"""Several adapters on one model in one batch: each completion is that of its merged model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leyden.checkpoint import convert, load, save
from leyden.checkpoint.adapter import write_adapter
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError
from leyden.model import HybridLM, quantize
from leyden.model.lora import LoraConfig, adapter_parameters, add_lora
from leyden.serve import Engine, Sampling
from leyden.serve.adapters import add_adapters, named_adapters
from leyden.serve.request import adapter_of, salted

ModelMaker = Callable[..., HybridLM]
GREEDY = Sampling(max_tokens=24, temperature=0.0, logprobs=0)
SETTINGS = {"max_sequences": 8, "kv_gigabytes": 0.01, "cache_gigabytes": 0.01, "swap_gigabytes": 0.0}
TARGETS = {"attention": ("attention",), "everything": ("attention", "experts"), "experts": ("experts",)}


@pytest.fixture(scope="module")
def places(random_model: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, three adapters of it, and the model merged with each."""
    folder = tmp_path_factory.mktemp("adapters")
    save(random_model(), None, folder / "base", layout="leyden")
    start = StartingModel.find(str(folder / "base"))
    for seed, (name, targets) in enumerate(TARGETS.items()):
        model = add_lora(random_model(), LoraConfig(rank=2 + seed, alpha=4.0, targets=targets))
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter_parameters(model).values():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        how = {"rank": 2 + seed, "alpha": 4.0, "base": str(folder / "base"), "fingerprint": start.fingerprint}
        write_adapter(adapter_parameters(model), model.config, folder / name, **how)
        convert(folder / "base", folder / f"merged {name}", "leyden", lora=folder / name)
    return folder


def served(places: Path, **settings: object) -> Engine:
    model, _ = load(places / "base")
    add_adapters(model, None, places / "base", {name: places / name for name in TARGETS})
    return Engine(model, None, **SETTINGS, **settings)


def prompts() -> list[list[int]]:
    """Some share their beginning, over a page and more."""
    generator = torch.Generator().manual_seed(7)
    shared = torch.randint(101, (600,), generator=generator).tolist()
    return [*(shared[:length] for length in (5, 300, 600)), torch.randint(101, (40,), generator=generator).tolist()]


@pytest.mark.parametrize("speculation", ["none", "prompt"])
def test_a_batch_of_all_is_that_of_the_merged_models(places: Path, speculation: str) -> None:
    names = ["", *TARGETS]
    asked = [(name, prompt) for prompt in prompts() for name in names]
    with served(places, speculation=speculation) as engine:
        for _ in range(2):  # the second time the cache has the prompts
            found = engine.generate([prompt for _, prompt in asked], GREEDY, adapter=[name for name, _ in asked])
            made = dict(zip([(name, tuple(prompt)) for name, prompt in asked], found, strict=True))
    for name in names:
        model, _ = load(places / (f"merged {name}" if name else "base"))
        with Engine(model, None, **SETTINGS, decoder="torch") as alone:
            for prompt, wanted in zip(prompts(), alone.generate(prompts(), GREEDY), strict=True):
                own = made[name, tuple(prompt)]
                assert own.tokens == wanted.tokens, (name, len(prompt))
                given, right = ([one.logprob for one in each.logprobs] for each in (own, wanted))
                assert given == pytest.approx(right, abs=1e-3)


def test_what_was_read_with_one_adapter_serves_no_other(places: Path) -> None:
    prompt = prompts()[2]
    with served(places) as engine:
        used = []
        for name in ("", "attention", "", "attention", "experts"):
            before = engine.statistics.cache_used_tokens
            engine.generate([prompt], GREEDY, adapter=name)
            used.append(engine.statistics.cache_used_tokens > before)
    assert used == [False, False, True, True, False]


def test_the_rows_of_the_model_itself_have_its_bits(places: Path) -> None:
    """Whatever adapters are computed beside them."""
    with served(places) as engine:
        (alone,) = engine.generate([prompts()[3]], GREEDY)
        beside, *_ = engine.generate([prompts()[3], *prompts()[:3]], GREEDY, adapter=["", *TARGETS])
    assert [one.logprob for one in alone.logprobs] == [one.logprob for one in beside.logprobs]


def test_on_a_model_in_8_bits(places: Path) -> None:
    model, _ = load(places / "base")
    add_adapters(quantize(model), None, places / "base", {"everything": places / "everything"})
    with Engine(model, None, **SETTINGS) as engine:
        plain, adapted = engine.generate([prompts()[3]] * 2, GREEDY, adapter=["", "everything"])
    assert plain.tokens != adapted.tokens


def test_salts_say_the_adapter_and_clients_cannot() -> None:
    assert salted("", "owner/mine") == "owner/mine" and adapter_of("owner/mine") == ""
    assert adapter_of(salted("one", "owner/mine")) == "one"
    forged = "one\0owner/"
    assert adapter_of(salted("", forged)) == "" and salted("", forged) != salted("one", "owner/")


def test_what_cannot_be_is_refused(places: Path, random_model: ModelMaker, tmp_path: Path) -> None:
    with served(places) as engine, pytest.raises(UserError, match=r"no adapter 'atention'.*did you mean 'attention'"):
        engine.generate([[1]], GREEDY, adapter="atention")
    model, _ = load(places / "base")
    with Engine(model, None, **SETTINGS) as engine, pytest.raises(UserError, match="it has none"):
        engine.generate([[1]], GREEDY, adapter="attention")
    for option, words in (
        ("attention", "NAME=DIR"),
        ("base=x", "something else"),
        (f"a={places / 'base'}", "no adapter"),
    ):
        with pytest.raises(UserError, match=words):
            named_adapters([option], ["base"])
    save(random_model(seed=1), None, tmp_path / "other", layout="leyden")
    model, _ = load(tmp_path / "other")
    with pytest.raises(UserError, match="has others"):
        add_adapters(model, None, tmp_path / "other", {"attention": places / "attention"})
    merged, _ = load(places / "attention")
    with pytest.raises(UserError, match="an adapter itself"):
        add_adapters(merged, None, places / "attention", {"experts": places / "experts"})
