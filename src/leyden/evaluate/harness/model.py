"""Leyden's models as models of lm-evaluation-harness."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from leyden.core.device import find_device
from leyden.core.log import progress
from leyden.evaluate.harness.requests import ChatContext, Requests, request_id, response_of
from leyden.evaluate.opening import open_model
from leyden.evaluate.sources import Source
from leyden.evaluate.task import Answer, Question, Row, Subject

_AT_ONCE = 1024
"""Requests that a source is asked together."""


class _RequestLM(TemplateLM):
    """What the harness has to know of a model, and its three kinds of requests as one.

    Args:
        subject: what is known of the model.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject

    def _answer(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        """The responses to requests of one kind."""
        raise NotImplementedError

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self._subject.tokenizer.eod_id

    @property
    def prefix_token_id(self) -> int:
        """The token that begins one."""
        return self._subject.tokenizer.bos_id

    @property
    def max_length(self) -> int | None:
        """The model's positions."""
        return self._subject.positions

    @property
    def tokenizer_name(self) -> str:
        """Tells this tokenizer and its template from others."""
        return self._subject.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, after the one that begins a document unless ``add_special_tokens`` is False."""
        return self._subject.tokenizer.encode(string, bos=add_special_tokens is not False)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template."""
        return self._subject.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns themselves, which are put through the template when the model is asked."""
        return ChatContext(json.dumps([{key: turn[key] for key in ("role", "content")} for turn in chat_history]))

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See the harness."""
        return self._answer("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """See the harness."""
        return self._answer("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """See the harness."""
        return self._answer("generate_until", requests)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("requests are answered by _answer")


class LeydenLM(_RequestLM):
    """A model in this process, or an endpoint, as the harness asks it.

    ``lm_eval.simple_evaluate(LeydenLM(*open_model(...)), tasks=[...])``, or by name
    ``simple_evaluate("leyden", model_args={"pretrained": "runs/mine/final"}, ...)``.

    Args:
        source: answers.
        subject: what is known of the model.
    """

    def __init__(self, source: Source, subject: Subject) -> None:
        super().__init__(subject)
        self._source, self._requests = source, Requests(subject)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
        """Open ``pretrained`` (a directory in any layout, a run, a checkpoint, or a hub id) on ``device``."""
        device = (additional_config or {}).get("device") or arg_dict.get("device")
        return cls(*open_model(str(arg_dict["pretrained"]), find_device(device), ()))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """As :meth:`create_from_arg_obj`, of ``pretrained=DIR``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def _answer(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        questions = [
            (index, part, asked.question)
            for index, request in enumerate(requests)
            for part, asked in enumerate(self._requests.questions(kind, request.args))
        ]
        rows: list[dict[int, Row]] = [{} for _ in requests]
        with progress(kind, len(questions), "questions") as bar:
            for start in range(0, len(questions), _AT_ONCE):
                some = questions[start : start + _AT_ONCE]
                for place, answer in self._source.answers([question for _, _, question in some]):
                    index, part, question = some[place]
                    rows[index][part] = answer_row(question, answer)
                    bar.advance(1)
        return [response_of(kind, [own[part] for part in sorted(own)]) for own in rows]


register_model("leyden")(LeydenLM)  # not as a decorator, which hides the class from type checkers


class KeptLM(_RequestLM):
    """Answers with what was kept of requests, so that the harness makes its figures of them.

    Args:
        rows: by the ids of :func:`leyden.evaluate.harness.requests.request_id`, of each request in order.
        subject: the model that they are of.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], subject: Subject) -> None:
        super().__init__(subject)
        self._rows = rows

    def _answer(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        return [response_of(kind, self._rows[request_id(kind, request.args)]) for request in requests]


def answer_row(question: Question, answer: Answer) -> Row:
    """What a row keeps of an answer: its log-probability (``score``) and whether it is greedy, or its text."""
    if question.max_tokens:
        return {"score": 0.0, "answer": answer.text}
    assert answer.nats is not None and answer.greedy is not None, "the question asks for both"
    return {"score": -math.fsum(answer.nats), "greedy": bool(answer.greedy.all())}
