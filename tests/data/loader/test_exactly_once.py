"""Killed and resumed at other numbers of ranks and workers: the same batches, every document as often as planned."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import Document, PackedBatches, TokenShards, write_shards
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixtureSchedule
from leyden.data.loader.prefetch import Prefetched

SEQ_LEN, SEQUENCES, STEPS = 32, 12, 60
TOTAL_TOKENS = SEQ_LEN * SEQUENCES * STEPS
MIXTURE = {
    "point": [{"weights": {"a": 4, "b": 1}}, {"share": 0.6, "weights": {"a": 1, "b": 3}}],
    "late": [{"source": "a", "share": 0.3, "last": 0.2}],
}


LIFE = st.tuples(st.integers(0, 25), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 3))
"""Steps, ranks, workers."""


def _mixture():
    return MixtureSchedule.parse(MIXTURE, "test").timed(TOTAL_TOKENS)


def _batches(kind, sources, plans=None):
    common = {"seq_len": SEQ_LEN, "batch_tokens": SEQ_LEN * SEQUENCES, "seed": 2, "plans": plans}
    if kind == "mixed":
        return MixedBatches(sources, _mixture(), **common)
    return PackedBatches(sources["a"], packing=kind, **common)


@pytest.fixture(scope="module")
def sources(numbered):
    generator = np.random.default_rng(3)
    return {
        "a": numbered(generator.integers(1, 90, 120).tolist(), first=1, files=3),
        "b": numbered(generator.integers(1, 50, 60).tolist(), first=100_001),
    }


def _joined(shares):
    return torch.cat([share.tokens for share in shares], 1), torch.cat([share.labels for share in shares], 1)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["concatenate", "best_fit", "mixed"]),
    st.lists(LIFE, min_size=1, max_size=6),
)
def test_kills_and_other_ranks_change_nothing(sources, kind, lives):
    """Each life goes some steps at its number of ranks and workers, saves, goes some steps more in vain, and dies."""
    whole = _batches(kind, sources)
    state, reached = whole.state_dict(), 0
    for steps, ranks, workers in lives:
        loaders = [
            Prefetched(_batches(kind, sources), rank=rank, ranks=ranks, ahead=rank, workers=workers)
            for rank in range(ranks)
        ]
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
        for number in range(reached, reached + steps):
            tokens, labels = _joined([next(loader) for loader in loaders])
            expected = whole.batch(number)
            assert torch.equal(tokens, expected.tokens) and torch.equal(labels, expected.labels)
        (state,) = {json.dumps(loader.state_dict()): loader.state_dict() for loader in loaders}.values()
        for loader in loaders:
            next(loader)  # what is made after the checkpoint is lost
            loader.close()
        reached += steps
        assert state["batch"] == reached


def _write_text_shards(directory):
    """Two sources in files, and the tokenizer's one token a byte."""
    from leyden.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["a b c d e f g h"], vocab_size=261)
    generator = random.Random(0)
    for name, count in (("a", 150), ("b", 40)):
        documents = [
            Document(f"{name}{n}", f"{name}{n} " + "x" * generator.randrange(1, 80), name) for n in range(count)
        ]
        write_shards(documents, tokenizer, directory / name, shard_tokens=2_000)


_RANK = """
import json, os, sys, time
from pathlib import Path
from leyden.data import TokenShards
from leyden.data.loader.mixture_schedule import MixtureSchedule
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.prefetch import Prefetched

directory, rank, ranks, workers, settings = Path(sys.argv[1]), *map(int, sys.argv[2:5]), json.loads(sys.argv[5])
sources = {name: TokenShards.open(directory / name) for name in "ab"}
mixture = MixtureSchedule.parse(settings.pop("mixture"), "test").timed(settings.pop("total_tokens"))
batches = MixedBatches(sources, mixture, plans=directory / "plans", **settings)
checkpoint = directory / "checkpoint.json"
if checkpoint.exists():
    batches.load_state_dict(json.loads(checkpoint.read_text()))
with Prefetched(batches, rank=rank, ranks=ranks, workers=workers) as loader:
    while True:
        number = loader.state_dict()["batch"]
        batch = next(loader)
        part = directory / f"{number}-{rank}-{ranks}.part"
        part.write_text(json.dumps([batch.tokens[0].tolist(), batch.labels[0].tolist()]))
        os.replace(part, part.with_suffix(".json"))
        while not all((directory / f"{number}-{other}-{ranks}.json").exists() for other in range(ranks)):
            time.sleep(0.001)  # a step ends when all ranks are done with it
        if rank == 0:
            new = checkpoint.with_suffix(".part")
            new.write_text(json.dumps(loader.state_dict()))
            os.replace(new, checkpoint)
        while json.loads(checkpoint.read_text())["batch"] <= number if checkpoint.exists() else True:
            time.sleep(0.001)
"""


@pytest.mark.slow
def test_processes_killed_at_random_moments(tmp_path):
    """Ranks as processes, all killed by SIGKILL at random moments, begun again at another number of ranks: the steps
    that the checkpoints count make up the batches of a run that was never stopped, and every document is used as often
    as the plan said."""
    _write_text_shards(tmp_path)
    common = {"seq_len": SEQ_LEN, "batch_tokens": SEQ_LEN * SEQUENCES, "seed": 2}
    settings = json.dumps({**common, "mixture": MIXTURE, "total_tokens": TOTAL_TOKENS})
    checkpoint = tmp_path / "checkpoint.json"
    generator = random.Random(1)
    taken = {}
    lives, done = 0, 0
    while done < STEPS:
        ranks = (1, 2, 4, 3)[lives % 4]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _RANK, str(tmp_path), str(rank), str(ranks), str(1 + lives % 3), settings],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(ranks)
        ]
        goal, deadline = done + generator.randrange(5, 20), time.monotonic() + 120
        while _reached(checkpoint) < goal and time.monotonic() < deadline:
            time.sleep(generator.random() / 50)
            assert all(process.poll() is None for process in processes)
        for process in generator.sample(processes, ranks):
            process.send_signal(signal.SIGKILL)
            process.wait()
        for number in range(done, _reached(checkpoint)):
            parts = [json.loads((tmp_path / f"{number}-{rank}-{ranks}.json").read_text()) for rank in range(ranks)]
            taken[number] = tuple(list(itertools.chain.from_iterable(part[n] for part in parts)) for n in (0, 1))
        done, lives = _reached(checkpoint), lives + 1
        for path in tmp_path.glob("*-*-*.*"):
            path.unlink()
    assert lives >= 4
    sources = {name: TokenShards.open(tmp_path / name) for name in "ab"}
    batches = MixedBatches(sources, _mixture(), **common)
    for number in range(done):
        batch = batches.batch(number)
        assert taken[number] == (batch.tokens[0].tolist(), batch.labels[0].tolist())
    _check_uses(sources, batches, taken, done)


def _reached(checkpoint: Path) -> int:
    return json.loads(checkpoint.read_text())["batch"] if checkpoint.exists() else 0


def _check_uses(sources, batches, taken, steps):
    """Look up every segment that was taken in its document, count, and compare with the plan."""
    documents = {
        (name, shards.id(n)): shards.document(n).tolist()
        for name, shards in sources.items()
        for n in range(shards.num_documents)
    }
    seen = dict.fromkeys(documents, 0)
    for number in range(steps):
        bounds = batches.batch(number).cu_seqlens.tolist()
        tokens = [
            taken[number][0][a:b] for a, b in itertools.pairwise(bounds) if taken[number][1][a:b] != [-100] * (b - a)
        ]
        traced = [s for s in batches.trace(number) if s.length > 1 or s.offset + 1 < len(documents[s.source, s.id])]
        for segment, found in zip(traced, tokens, strict=True):
            text = documents[segment.source, segment.id]
            assert found == text[segment.offset : segment.offset + segment.length]
        for segment in batches.trace(number):
            seen[segment.source, segment.id] += segment.length
    for row in batches.plan(steps):
        shards = sources[row.source]
        used = [seen[row.source, shards.id(n)] for n in range(shards.num_documents)]
        assert sum(used) == row.tokens
        for tokens, length in zip(used, shards.lengths.tolist(), strict=True):
            assert int(row.epochs) * length <= tokens <= (int(row.epochs) + 1) * length


def test_prefetching_raises_where_it_is_used(sources):
    with Prefetched(_batches("best_fit", sources), rank=0, ranks=99) as loader:
        for _ in range(2):
            with pytest.raises(UserError, match="rank 0 of 99"):
                next(loader)
        assert loader.state_dict()["batch"] == 0
