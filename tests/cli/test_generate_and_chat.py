"""The verbs that talk: what they print, and what ends them."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import leyden
from leyden.checkpoint.origin import never_conversed
from leyden.cli import chat as chat_module
from leyden.cli.chat import chat
from leyden.cli.generate import generate
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset
from leyden.serve import Chat, Engine, Sampling
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = Tokenizer.train(["The lightning struck the tower."] * 3, vocab_size=270)
    shape = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "rotary_dim": 8}
    layers = ("linear_attention", "full_attention")
    model = HybridLM(preset("tiny", **shape, intermediate_size=32, layer_types=layers))
    path: Path = tmp_path_factory.mktemp("verbs") / "model"
    leyden.save(model, tokenizer, path, layout="leyden")
    return str(path)


def loaded(directory: str) -> Engine:
    return Engine(*leyden.load(directory))


def test_generate_prints_the_text_and_its_speed(directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    generate(directory, "The", max_tokens=12, seed=3)
    printed = capsys.readouterr()
    assert printed.out == loaded(directory).generate(["The"], Sampling(max_tokens=12, seed=3))[0].text + "\n"
    assert "tokens read" in printed.err
    assert "tokens/s" in printed.err


def test_generate_reads_standard_input(
    directory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The tower\n"))
    generate(directory, max_tokens=5, temperature=0)
    expected = loaded(directory).generate(["The tower\n"], Sampling(max_tokens=5, temperature=0))[0]
    assert capsys.readouterr().out == expected.text + "\n"


def test_generate_refuses_before_it_loads() -> None:
    with pytest.raises(UserError, match="temperature"):
        generate("no/such/model", "x", temperature=-1)


def test_chat_over_a_pipe(directory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\nhi\nmore\n/help\n/bogus\n/system Be kind.\nhi\n/exit\nnever\n"))
    chat(directory, max_tokens=6, seed=1)
    sampling = Sampling(max_tokens=6, top_p=0.95, seed=1)
    first = Chat(loaded(directory), sampling=sampling)
    second = Chat(loaded(directory), system="Be kind.", sampling=sampling)
    answers = ["".join(c.send(text)) for c, text in ((first, "hi"), (first, "more"), (second, "hi"))]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{answers[0]}\n{answers[1]}\n/new ")
    assert "/bogus is not a command" in printed
    assert printed.endswith(f"{answers[2]}\n")


@pytest.mark.parametrize(
    ("recipe", "known"),
    [
        ('[data]\ntext = ["a"]\n[[stage]]\nobjective = "pretrain"\n', True),
        ('[data]\ntext = []\n[[stage]]\nobjective = "pretrain"\n[[stage]]\nobjective = "sft"\n', False),
        ('[data]\nbuild = "dialogues"\n[[stage]]\nobjective = "pretrain"\n', False),
        ('[model]\nfrom = "other"\n[data]\ntext = []\n[[stage]]\nobjective = "pretrain"\n', False),
        ("stage = 3\n[data]\ntext = []\n", False),
        ("[data", False),
        (None, False),
    ],
)
def test_whether_a_model_never_conversed_is_known_by_its_run(tmp_path: Path, recipe: str | None, known: bool) -> None:
    for model in (tmp_path / "final", tmp_path / "checkpoints" / "step_00000001"):
        model.mkdir(parents=True)
    if recipe is not None:
        (tmp_path / "recipe.toml").write_text(recipe)
    for model in (tmp_path, tmp_path / "final", tmp_path / "checkpoints" / "step_00000001"):
        assert never_conversed(model) == known
    assert not never_conversed("org/final")


def test_a_chat_says_once_that_a_model_never_conversed(
    directory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(directory, tmp_path / "final")
    (tmp_path / "recipe.toml").write_text('[data]\ntext = []\n[[stage]]\nobjective = "pretrain"\n')
    precious = tmp_path / "precious.txt"
    precious.write_text("years of work")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hi\nmore\n/save {precious}\n"))
    chat(str(tmp_path / "final"), max_tokens=6, seed=1)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert printed.count("never trained on conversations") == 1
    assert "no conversation of Leyden's" in printed
    assert precious.read_text() == "years of work"


def test_lines_typed_in_a_terminal() -> None:
    """A line, a paste of two lines, Ctrl-C, which drops the line begun, and Ctrl-D, which leaves."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("hello\r\x1b[200~two\nlines\x1b[201~\rdropped\x03last\r\x04")
        assert list(chat_module._terminal_lines()) == ["hello", "two\nlines", "last"]


def test_ctrl_c_stops_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def send(self, text: str) -> Iterator[str]:
            yield "so far"
            raise KeyboardInterrupt

    chat_module._answer(Interrupted(), "hi")  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().out == "so far [stopped]\n"


def test_a_conversation_too_long_is_said_and_not_the_end(directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = leyden.load(directory)
    short = HybridLM(model.config.model_copy(update={"max_position_embeddings": 40}))
    chat_module._answer(Chat(Engine(short, tokenizer)), "hi " * 40)
    assert "40 positions" in capsys.readouterr().err.replace("\n", " ")
