"""The harness's requests, which both sides of ``leyden bench eval`` answer."""

from collections.abc import Sequence

from lm_eval.api.instance import Instance

from leyden.bench.evaluate.plan import Pair


def likelihoods(pairs: Sequence[Pair]) -> list[Instance]:
    """The harness's requests for the likelihood of each continuation."""
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def generations(prompts: Sequence[str], max_tokens: int) -> list[Instance]:
    """The harness's requests for a greedy continuation of each prompt, of ``max_tokens`` tokens at most."""
    how = {"until": ["\n\n"], "max_gen_toks": max_tokens, "do_sample": False}
    return [Instance("generate_until", {}, (prompt, how), index) for index, prompt in enumerate(prompts)]
