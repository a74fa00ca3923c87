"""The other side of ``leyden bench align``: TRL's trainers on transformers' MiniMax, as their users run them."""

import contextlib
import io
import itertools
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
import transformers
import trl  # pyright: ignore[reportMissingImports]
from transformers import AutoTokenizer, MiniMaxForCausalLM, TrainerCallback

from leyden.bench.align.plan import AlignPlan, Turn, Work, read_rows, reward
from leyden.bench.cpu.theirs import Baseline
from leyden.bench.memory import peak_bytes
from leyden.bench.work import DTYPES


class _Clock(TrainerCallback):
    """Notes when training begins and when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


class _Counted:
    """Mixed into a trainer: how many tokens of answers, or pairs, each step learns from."""

    in_pairs = False

    def __init__(self, *given: Any, **settings: Any) -> None:
        self.learned: list[int] = []
        super().__init__(*given, **settings)

    def training_step(self, model: Any, inputs: Any, *given: Any, **settings: Any) -> torch.Tensor:
        self.learned.append(len(inputs["input_ids"]) // 2 if self.in_pairs else int((inputs["labels"] != -100).sum()))
        return cast(Any, super()).training_step(model, inputs, *given, **settings)


class _Sft(_Counted, trl.SFTTrainer):
    """Fine-tuning."""


class _Dpo(_Counted, trl.DPOTrainer):
    """Preferences; a batch has the chosen answers and behind them the rejected ones."""

    in_pairs = True


class _Grpo(trl.GRPOTrainer):
    """Reinforcement learning; notes what was drawn of each round, and how long that took."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        self.drawn: list[tuple[int, float]] = []
        super().__init__(*given, **settings)

    def _generate_single_turn(self, *given: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        completions, logprobs = super()._generate_single_turn(*given, **settings)
        self.drawn.append((sum(map(len, completions)), time.perf_counter() - started))
        return completions, logprobs


class AlignTheirs(Baseline):
    """A stored model, trained by TRL.

    A variant names the precision, ``autocast`` (float32 weights), ``bfloat16`` or ``float32``, and the implementation
    of the experts.

    Args:
        directory: a checkpoint that ``from_pretrained`` opens, with its tokenizer.
        data: the folder with a file of rows for each work.
        plan: how much of it.
    """

    def __init__(self, directory: str, data: str, plan: AlignPlan) -> None:
        super().__init__(directory)
        datasets.disable_progress_bars()
        warnings.simplefilter("ignore", FutureWarning)  # of the name of a setting
        for name in ("trl", "transformers", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._data, self._plan = Path(data), plan

    def versions(self) -> dict[str, str]:
        """Of the libraries."""
        return {"transformers": transformers.__version__, "trl": trl.__version__}

    def variants(self, work: Work) -> list[str]:
        """What to choose the fastest from; experts one by one (``eager``) generate slowly, and are not tried there."""
        experts = ("grouped_mm",) if work == "grpo" else ("grouped_mm", "eager")
        precisions = ("float32",) if self._plan.dtype == "float32" else ("autocast", "bfloat16")
        return [" ".join(pair) for pair in itertools.product(precisions, experts)]

    def seconds(self, work: Work, variant: str, steps: int) -> float:
        """Of a step."""
        return self.turn(work, variant, steps).seconds

    def turn(self, work: Work, variant: str, steps: int) -> Turn:
        """One step that does not count, and ``steps`` that do."""
        precision, experts = variant.split()
        dtype = torch.float32 if precision == "autocast" else DTYPES[precision]
        model = MiniMaxForCausalLM.from_pretrained(self._directory, dtype=dtype, experts_implementation=experts)
        tokenizer = AutoTokenizer.from_pretrained(self._directory)
        clock = _Clock()
        with tempfile.TemporaryDirectory() as parent, contextlib.redirect_stdout(io.StringIO()):
            common = {**self._common(work, steps), "output_dir": parent, "bf16": precision == "autocast"}
            trainer = self._trainer(work, common, model, tokenizer)
            trainer.add_callback(clock)
            result = trainer.train()
        seconds = float(np.diff(clock.times).mean())
        drawn = getattr(trainer, "drawn", [])[1:]
        learned = getattr(trainer, "learned", [])[1:]
        rollout = sum(n for n, _ in drawn) / sum(s for _, s in drawn) if drawn else 0.0
        learned = learned or [self._plan.rows[work] * self._plan.group] * steps
        return Turn(seconds, sum(learned) / (seconds * steps), rollout, result.training_loss, peak_bytes())

    def _common(self, work: Work, steps: int) -> dict[str, Any]:
        plan = self._plan
        return {
            "max_steps": steps + 1,
            "per_device_train_batch_size": plan.rows[work] * (plan.group if work == "grpo" else 1),
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "gradient_checkpointing": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "shuffle_dataset": False,
        }

    def _trainer(self, work: Work, common: dict[str, Any], model: Any, tokenizer: Any) -> Any:
        rows, plan = read_rows(self._data / f"{work}.jsonl"), self._plan
        asked = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        answers = [
            ask | {key: [{"role": "assistant", "content": row[key]}] for key in row if key != "prompt"}
            for ask, row in zip(asked, rows, strict=True)
        ]
        data = datasets.Dataset.from_list(answers)
        given: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer}
        if work == "sft":
            common.pop("shuffle_dataset")
            return _Sft(model, trl.SFTConfig(max_length=None, completion_only_loss=True, **common), **given)
        if work == "dpo":
            common.pop("shuffle_dataset")
            return _Dpo(model, args=trl.DPOConfig(max_length=None, precompute_ref_log_probs=True, **common), **given)
        settings = trl.GRPOConfig(
            num_generations=plan.group,
            max_completion_length=plan.new_tokens,
            loss_type="grpo",
            beta=0.04,
            temperature=1.0,
            **common,
        )
        return _Grpo(model, reward_funcs=_rewards, args=settings, **given)


def _rewards(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """As TRL asks for them: of each completion, a list with one message."""
    return [reward(messages[0]["content"]) for messages in completions]
