"""lm-evaluation-harness: Leyden's models as its models, its tasks as Leyden's, and the task files that are shipped."""

import json
import math
import threading
import time

import numpy as np
import pytest
import torch
from subjects import Oracle, make_subject

import leyden
from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.opening import open_endpoint
from leyden.evaluate.rows import read_rows
from leyden.evaluate.sources import EndpointSettings, EngineSource
from leyden.model import HybridLM, preset
from leyden.tokenizer import Tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'leyden[lm-eval]'")

WORDS = "The jar keeps the lightning in a tower by the sea and nobody knows how long it will stay there. Ask twice.\n"
ARC = [
    {
        "question": f"What keeps the lightning, number {n}?",
        "choices": {"text": texts, "label": list("ABCD")},
        "answerKey": key,
    }
    for n, (texts, key) in enumerate(
        [(["the jar", "the sea", "a tower", "nobody"], "A"), (["sea", "the sea and a tower", "it", "in"], "B")] * 3
    )
]


@pytest.fixture(scope="module")
def model():
    tokenizer = Tokenizer.train([WORDS * 5], vocab_size=290)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {"head_dim": 16, "rotary_dim": 16, "intermediate_size": 16, "max_position_embeddings": 512}
    layers = ("linear_attention", "full_attention")
    model = HybridLM(preset("tiny", vocab_size=tokenizer.vocab_size, layer_types=layers, **shape, **sizes), seed=2)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model.eval(), tokenizer


@pytest.fixture
def subject(model, tmp_path):
    return make_subject(tmp_path, 512, tokenizer=model[1])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(source, subject, task, file=None, out=None, **options):
    (line,) = evaluate(source, subject, [f"lm-eval:{task}"], Options(file=file, **options), out)
    return line


FORMS = {
    "arc_easy": [
        ARC[0],
        {
            "question": {"stem": "Why?", "choices": [{"text": "so", "label": "1"}, {"text": "it", "label": "2"}]},
            "answerKey": "2",
        },
        {"query": "Question: Who knows?", "choices": ["nobody", "the sea"], "gold": 0},
    ],
    "arc_challenge": [ARC[1], {"query": "Question: Who?", "choices": ["it", "the sea"], "gold": 1}],
    "piqa": [
        {"goal": "Keep it", "sol1": "in a jar", "sol2": "by the sea", "label": 0},
        {"query": "Question: Keep it\n", "choices": ["in", "by"], "gold": 1},
    ],
    "boolq": [
        {"passage": "The jar keeps it.", "question": "is it kept", "answer": True},
        {"query": "Passage: A tower.\nQuestion: is it long?\n", "choices": ["no", "yes"], "gold": 0},
    ],
    "winogrande": [
        {
            "sentence": "The jar stays by the sea as _ is long.",
            "option1": "the jar",
            "option2": "the sea",
            "answer": "1",
        },
        {"context_options": ["Ask the jar as it", "Ask the sea as it"], "continuation": "knows.", "gold": 1},
    ],
    "lambada": [{"text": "The jar keeps the lightning"}, {"context": "Nobody knows how", "continuation": "long"}],
    "mmlu": [
        {"question": "How long?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "towers"},
        {"question": "How?", "choices": ["a", "b", "c", "d"], "answer": "A", "subject": "the_sea"},
    ],
    "gsm8k": [{"question": "How many jars are 2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}],
    "math": [{"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "level": "Level 1", "type": "Algebra"}],
    "humaneval": [
        {
            "task_id": "HumanEval/0",
            "prompt": "from math import floor\n\ndef lower(x):\n    'The whole number below.'\n",
            "canonical_solution": "    return floor(x)\n",
            "test": "def check(candidate):\n    assert candidate(1.5) == 1\n",
            "entry_point": "lower",
        }
    ],
    "ifeval": [
        {"key": 7, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "key": 8,
            "prompt": "Say.",
            "instruction_id_list": ["keywords:existence"],
            "kwargs": [{"keywords": ["jar"], "x": None}],
        },
    ],
}


@pytest.mark.parametrize("task", FORMS)
def test_the_task_files_read_every_form_of_their_rows(task, model, tmp_path):
    subject = make_subject(tmp_path, 4096, tokenizer=model[1])
    line = run(
        Oracle(lambda question: "jar #### 5 \\boxed{2}"), subject, task, write(tmp_path / "rows.jsonl", FORMS[task])
    )
    assert line["n"] == len(FORMS[task])
    assert 0 <= line["value"] <= 1 and line["metric"].endswith(",none")
    if task == "humaneval":
        assert line["value"] == 0
        right = Oracle(lambda question: "    return floor(x)\n\nprint(lower(2)")
        assert run(right, subject, task, tmp_path / "rows.jsonl")["value"] == 1
    if task in ("gsm8k", "math", "ifeval"):
        assert line["value"] == 1
    if task == "mmlu":
        assert [(cell["subject"], cell["n"]) for cell in line["cells"]] == [("the_sea", 1), ("towers", 1)]


def choice_logprobs(model, tokenizer, question, choices):
    """By a forward pass of each answer alone."""
    found = []
    for choice in choices:
        context = tokenizer.encode(f"Question: {question}\nAnswer:")
        tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(f"Question: {question}\nAnswer: {choice}")]])
        with torch.inference_mode():
            logprobs = model(tokens)[0].double().log_softmax(-1)
        picked = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        found.append(picked[len(context) :].sum().item())
    return found


def test_likelihoods_are_those_of_the_model_s_logits(model, subject, tmp_path):
    source = EngineSource(*model)
    line = run(source, subject, "arc_easy", write(tmp_path / "arc.jsonl", ARC), tmp_path / "out")
    right = right_norm = 0
    for row in ARC:
        texts = row["choices"]["text"]
        logprobs = choice_logprobs(*model, row["question"], texts)
        right += int(np.argmax(logprobs)) == "ABCD".index(row["answerKey"])
        lengths = [len(text) for text in texts]
        right_norm += int(np.argmax(np.array(logprobs) / lengths)) == "ABCD".index(row["answerKey"])
    assert line["value"] == pytest.approx(right / 6, abs=1e-6)
    assert line["metrics"] == pytest.approx({"acc,none": right / 6, "acc_norm,none": right_norm / 6}, abs=1e-6)
    assert line["reading"]["factor"] > 2  # four answers a question
    documents = [json.loads(text) for text in (tmp_path / "out" / "lm-eval-arc_easy.documents.jsonl").open()]
    for row, document in zip(ARC, documents, strict=True):
        told = [logprob for logprob, _ in document["answer"]]
        assert told == pytest.approx(choice_logprobs(*model, row["question"], row["choices"]["text"]), abs=1e-4)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "lm-eval:arc_easy" in page


def test_a_killed_evaluation_goes_on_where_it_was(subject, tmp_path):
    class Stops(Oracle):
        def answers(self, questions):
            for number, answer in enumerate(super().answers(questions)):
                if number == 7:
                    raise KeyboardInterrupt
                yield answer

    file = write(tmp_path / "arc.jsonl", ARC)
    with pytest.raises(KeyboardInterrupt):
        run(Stops(), subject, "arc_easy", file, tmp_path / "out")
    assert len(read_rows(tmp_path / "out" / "lm-eval-arc_easy.jsonl")) == 7
    source = Oracle()
    whole = run(source, subject, "arc_easy", file, tmp_path / "out")
    assert len(source.asked) == 24 - 7
    assert whole["value"] == run(Oracle(), subject, "arc_easy", file)["value"]
    again = Oracle()
    assert run(again, subject, "arc_easy", file, tmp_path / "out", limit=2)["n"] == 2
    assert not again.asked


@pytest.fixture
def served(model):
    """The model behind Leyden's own server, on loopback."""
    from leyden.serve.http import ServedModel, Server, ServerSettings, Service, create_app, listen, url
    from leyden.serve.loop import EngineLoop

    held, tokenizer = model
    names = ServedModel(("jar",), tokenizer, 512, held.config.vocab_size, "jar", created=1)
    loop = EngineLoop(leyden.Engine(held, tokenizer))
    service = Service(loop, names, ServerSettings.parse({"port": 0, "drain_seconds": 0.2}, "test"))
    bound = listen(service.settings)
    server = Server(create_app(service), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    loop.start()
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"{url(bound)}/v1"
    server.should_exit = True
    thread.join(20)


def test_in_process_is_over_http(model, subject, served, tmp_path):
    model[1].save(tmp_path / "tokenizer")
    (tmp_path / "include").mkdir()
    write(tmp_path / "texts.jsonl", [{"text": WORDS * 2}, {"text": "Ask the sea."}])
    (tmp_path / "include" / "rolling.yaml").write_text(ROLLING.format(file=tmp_path / "texts.jsonl"))
    files = {
        "arc_easy": write(tmp_path / "arc.jsonl", ARC),
        "gsm8k": write(tmp_path / "gsm8k.jsonl", FORMS["gsm8k"]),
        "rolling": None,
    }
    with open_endpoint(EndpointSettings(served), str(tmp_path / "tokenizer"), ()) as (source, there):
        for task, file in files.items():
            options = {"include_path": (tmp_path / "include",)}
            here = run(EngineSource(*model), subject, task, file, tmp_path / "here", **options)
            other = run(source, there, task, file, tmp_path / "there", **options)
            assert other["value"] == pytest.approx(here["value"], rel=1e-3)
            rows = [read_rows(tmp_path / out / f"lm-eval-{task}.jsonl") for out in ("here", "there")]
            first, second = ({row["id"]: row for row in own} for own in rows)
            assert first.keys() == second.keys()
            for id, row in first.items():
                assert second[id]["score"] == pytest.approx(row["score"], abs=1e-3)
                assert second[id].get("answer") == row.get("answer")
                assert second[id].get("greedy") == row.get("greedy")


ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""


def test_rolling_likelihoods_foretell_every_token_once(model, tmp_path):
    held, tokenizer = model
    subject = make_subject(tmp_path, 512, tokenizer=tokenizer)
    text = WORDS * 30
    write(tmp_path / "texts.jsonl", [{"text": text}])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "rolling.yaml").write_text(ROLLING.format(file=tmp_path / "texts.jsonl"))
    line = run(
        EngineSource(held, tokenizer), subject, "rolling", None, tmp_path / "out", include_path=(tmp_path / "tasks",)
    )
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert len(ids) > 1100  # several windows
    nats = 0.0
    for end in [*range(512, len(ids), 512), len(ids) - 1]:
        start = max(0, end - 512)
        tokens = torch.tensor([ids[start : end + 1]])
        with torch.inference_mode():
            logprobs = held(tokens[:, :-1])[0].double().log_softmax(-1)
        fresh = (end - 1) % 512 + 1 if end != len(ids) - 1 else (len(ids) - 2) % 512 + 1
        nats -= logprobs.gather(1, tokens[0, 1:, None])[-fresh:].sum().item()
    assert line["value"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_the_harness_s_own_entry_gives_the_same(model, subject, tmp_path):
    from lm_eval.tasks import TaskManager

    from leyden.evaluate.harness.model import LeydenLM
    from leyden.evaluate.harness.task import OWN_TASKS

    file = write(tmp_path / "arc.jsonl", ARC)
    line = run(EngineSource(*model), subject, "arc_easy", file, shots=2)
    manager = TaskManager(include_path=str(OWN_TASKS), include_defaults=False, metadata={"file": str(file)})
    asked = LeydenLM(EngineSource(*model), subject)
    results = lm_eval.simple_evaluate(asked, tasks=["arc_easy"], num_fewshot=2, task_manager=manager, bootstrap_iters=0)
    found = results["results"]["arc_easy"]
    assert line["metrics"] == pytest.approx({key: found[key] for key in ("acc,none", "acc_norm,none")})
    leyden.save(*model, tmp_path / "model")
    opened = LeydenLM.create_from_arg_string(f"pretrained={tmp_path / 'model'}", {"device": "cpu"})
    assert opened.max_length == 512
    assert opened.tok_encode("jar") == [model[1].bos_id, *model[1].encode("jar")]


def test_examples_are_of_the_rows_for_training(subject, tmp_path):
    write(tmp_path / "arc_train.jsonl", [{"query": "Question: Trained?", "choices": ["yes", "no"], "gold": 0}] * 4)
    source = Oracle()
    run(source, subject, "arc_easy", write(tmp_path / "arc_test.jsonl", ARC), shots=2)
    prompts = {subject.tokenizer.decode(question.prompt[1:]) for question in source.asked}
    assert all(prompt.count("Question: Trained?\nAnswer: yes\n\n") == 2 for prompt in prompts)
    rows = [{**FORMS["mmlu"][n % 2], "question": f"Number {n}?"} for n in range(6)]
    source = Oracle()
    run(source, subject, "mmlu", write(tmp_path / "mmlu.jsonl", rows), shots=2)
    for question in source.asked:
        prompt = subject.tokenizer.decode(question.prompt[1:])
        numbers = [int(text.split("?")[0]) for text in prompt.split("Number ")[1:]]
        assert len(set(numbers)) == 3 and len({number % 2 for number in numbers}) == 1  # of one subject
    with pytest.raises(UserError, match="3 examples of the subject 'towers' were asked for, and there are 2"):
        run(Oracle(), subject, "mmlu", tmp_path / "mmlu.jsonl", shots=3)


def test_what_is_too_long_loses_its_beginning_and_that_is_said(model, tmp_path):
    subject = make_subject(tmp_path, 40, tokenizer=model[1])
    rows = [{"query": f"Question: {WORDS * 2}?", "choices": ["nobody", "the sea"], "gold": 0}, FORMS["arc_easy"][2]]
    source = Oracle()
    line = run(source, subject, "arc_easy", write(tmp_path / "arc.jsonl", rows), tmp_path / "out")
    assert line["cut_requests"] == 2
    assert max(len(question.prompt) for question in source.asked) == 41
    cut = [row["cut_tokens"] for row in read_rows(tmp_path / "out" / "lm-eval-arc_easy.jsonl") if "cut_tokens" in row]
    assert len(cut) == 2 and min(cut) > 20


def test_a_chat_is_put_through_the_template(model, tmp_path):
    from dataclasses import replace

    subject = make_subject(tmp_path, 512, tokenizer=model[1])
    file = write(tmp_path / "gsm8k.jsonl", FORMS["gsm8k"])
    with pytest.raises(UserError, match="has no chat template"):
        run(Oracle(), subject, "gsm8k", file, chat=True)
    source = Oracle(lambda question: "#### 5")
    line = run(source, replace(subject, chats=True), "gsm8k", file, chat=True)
    assert line["value"] == 1 and line["settings"]["chat"]
    (question,) = source.asked
    assert question.is_chat and question.prompt[-1]["role"] == "user" and "2 and 3" in question.prompt[-1]["content"]
    assert question.stop == ("\nQuestion:", "\n\nQuestion:") and question.max_tokens == 320


SAMPLED = """
task: drawn
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "x"
generation_kwargs: {{until: ["."], do_sample: true, temperature: 0.7}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def test_what_cannot_be_measured_is_refused(subject, tmp_path):
    source = Oracle()
    rows = tmp_path / "rows.jsonl"
    for task, content, says in (
        ("arc_easy", '{"question": "x"}\n', "row 1: it is no row of arc_easy, for want of the field 'choices'"),
        ("arc_easy", json.dumps(ARC[0]) + "\nnonsense\n", "row 2: it is no JSON"),
        ("arc_easy", "[]", "has no rows of arc_easy"),
        ("arc_easy", '{"query": "x", "choices": ["a"], "gold": 1}', "its right choice is number 1, and it has 1"),
        ("winogrande", '{"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}', "has no blank"),
        ("gsm8k", '{"question": "x", "answer": "5"}', "does not end with"),
        ("humaneval", "{}", "row 1: it is no row of humaneval, for want of the field 'task_id'"),
    ):
        rows.write_text(content)
        with pytest.raises(UserError, match=says):
            run(source, subject, task, rows, tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        run(source, subject, "piqa", tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="there is no such folder"):
        run(source, subject, "piqa", include_path=(tmp_path / "none",))
    write(tmp_path / "texts.jsonl", [{"text": "x"}])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "drawn.yaml").write_text(SAMPLED.format(file=tmp_path / "texts.jsonl"))
    with pytest.raises(UserError, match=r"answers that are drawn .temperature 0.7."):
        run(source, subject, "drawn", include_path=(tmp_path / "tasks",))
    unsafe = (
        SAMPLED.replace("task: drawn", "task: unsafe").format(file=tmp_path / "texts.jsonl") + "unsafe_code: true\n"
    )
    (tmp_path / "tasks" / "unsafe.yaml").write_text(unsafe)
    with pytest.raises(UserError, match="runs such code in its sandbox alone"):
        run(source, subject, "unsafe", include_path=(tmp_path / "tasks",))
    assert not source.asked
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_the_user_is_told_what_to_install(subject, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'leyden\[lm-eval\]'"):
        run(Oracle(), subject, "arc_easy")


@pytest.mark.slow
def test_a_task_that_there_is_not(subject):
    with pytest.raises(UserError, match=r"knows no task 'arc_eazy'.*did you mean 'arc_easy'"):
        run(Oracle(), subject, "arc_eazy")


@pytest.mark.slow
def test_likelihoods_are_those_of_the_harness_s_own_backend(model, subject, tmp_path):
    """transformers' MiniMax with the same weights, through lm-eval's ``hf`` model."""
    pytest.importorskip("transformers")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from leyden.evaluate.harness.model import LeydenLM

    leyden.save(*model, tmp_path / "model", layout="transformers")
    theirs = HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=4, add_bos_token=True)
    ours = LeydenLM(EngineSource(*model), subject)
    pairs = [("The jar", " keeps the lightning"), ("Ask the", " sea"), (WORDS, "Ask"), ("", "The jar")]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    for (theirs_logprob, their_greedy), (logprob, greedy) in zip(
        theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests), strict=True
    ):
        assert logprob == pytest.approx(theirs_logprob, abs=1e-3)
        assert greedy == their_greedy
