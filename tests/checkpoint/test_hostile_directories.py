"""Models and checkpoints from strangers: whatever is in the directory, one sentence, at once and in bounded memory."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leyden.checkpoint import load, model_directory, read_config, save
from leyden.checkpoint.coordinator import ALONE
from leyden.checkpoint.piece_index import INDEX_FILE, SavedTensor, StoredPiece, read_index
from leyden.checkpoint.pieces import TensorPiece, load_pieces, save_pieces
from leyden.core.errors import UserError
from leyden.model import HybridLM

LAYOUTS = ["leyden", "transformers", "minimax"]

ModelMaker = Callable[..., HybridLM]


@pytest.fixture
def saved(random_model: ModelMaker, tmp_path: Path) -> Path:
    save(random_model(), None, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 4000, "layer_types": None, "attn_type_list": [0] * 4000, "num_local_experts": 60_000},
        {"num_local_experts": 10**8},
        {"num_attention_heads": 10**9},
        {"vocab_size": 10**30},
        {"hidden_size": 10**18, "intermediate_size": 10**18},
        {"head_dim": 2**62, "rotary_dim": 2},
        {"max_position_embeddings": 10**400},
    ],
)
def test_a_small_configuration_of_a_huge_model_is_refused_at_once(
    random_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, changes: dict
) -> None:
    save(random_model(), None, tmp_path / "m", layout=layout)
    file = tmp_path / "m" / "config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {key: value for key, value in changes.items() if key in known}))

    def names_are_made(*_: object) -> None:
        raise AssertionError("a name was made for each tensor")

    monkeypatch.setattr(model_directory, "bindings_of", names_are_made)
    with pytest.raises(UserError):
        load(tmp_path / "m")
    if "num_local_experts" not in changes:
        with pytest.raises(UserError):
            read_config(tmp_path / "m")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "number"])
def test_what_is_no_ordinary_file_is_refused(saved: Path, name: str, kind: str) -> None:
    place = saved / name
    if name.endswith(".index.json"):
        (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        place.write_text('{"vocab_size": 1' + "0" * 5000 + "}")
    with pytest.raises(UserError):
        load(saved)


@pytest.mark.parametrize("name", ["..", "", ".", "/etc/passwd", "a/../b", "model\0.safetensors"])
def test_an_index_names_files_alone(saved: Path, name: str) -> None:
    (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": name}}))
    with pytest.raises(UserError, match="no file of its directory"):
        load(saved)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A checkpoint's tensors: a matrix and a scalar, in one file."""
    (tmp_path / "pieces").mkdir()
    save_pieces(tmp_path / "pieces", {"m": _matrix(), "s": TensorPiece.whole(torch.tensor(3.0))}, ALONE)
    return tmp_path / "pieces"


def _matrix() -> TensorPiece:
    return TensorPiece.whole(torch.arange(12.0).view(3, 4))


def _filled(directory: Path) -> torch.Tensor:
    piece = TensorPiece.whole(torch.zeros(3, 4))
    load_pieces(directory, {"m": piece})
    return piece.tensor


def test_pieces_are_read_back(pieces: Path) -> None:
    assert torch.equal(_filled(pieces), _matrix().tensor)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "load"}, "dtype 'load' is none"),
        ({"dtype": "float64"}, "and not float64"),
        ({"shape": [3, 5]}, "do not cover it"),
        ({"shape": [-3, 4]}, "greater than or equal to 0"),
        ({"shape": [2**70, 4]}, "INDEX"),
        ({"pieces": []}, "do not cover it"),
        ({"pieces": [("../pieces/rank_00000.safetensors", [0, 0], [3, 4])]}, "no file of the checkpoint"),
        ({"pieces": [("/etc/passwd", [0, 0], [3, 4])]}, "no file of the checkpoint"),
        ({"pieces": [("", [0, 0], [3, 4])]}, "no file of the checkpoint"),
        ({"pieces": [("pipe", [0, 0], [3, 4])]}, "not there: pipe"),
        ({"pieces": [("rank_00001.safetensors", [0, 0], [3, 4])]}, "not there: rank_00001"),
        ({"pieces": [("rank_00000.safetensors", [0], [12])]}, "another number of dims"),
        ({"pieces": [("rank_00000.safetensors", [1, 0], [3, 4])]}, "do not cover it"),
        ({"pieces": [("rank_00000.safetensors", [0, 0], [3, 2])] * 2}, "do not cover it"),
        ({"pieces": [("rank_00000.safetensors", [0, 0], [0, 4])] * 20_000}, "do not cover it"),
        (
            {"pieces": [("rank_00000.safetensors", [0, 0], [1, 4]), ("rank_00000.safetensors", [1, 0], [2, 4])]},
            "damaged",
        ),
    ],
)
def test_an_index_of_pieces_is_not_believed(pieces: Path, changes: dict, words: str) -> None:
    os.mkfifo(pieces / "pipe")
    index = json.loads((pieces / INDEX_FILE).read_text())
    for key, value in changes.items():
        keys = ("file", "start", "sizes")
        index["m"][key] = [dict(zip(keys, v, strict=True)) for v in value] if key == "pieces" else value
    (pieces / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=words.replace("INDEX", INDEX_FILE)):
        _filled(pieces)


@pytest.mark.parametrize("text", ["[", "[]", "{}x", '{"m": 1}', "\xff", "1" * 5000])
def test_an_index_of_pieces_that_is_none(pieces: Path, text: str) -> None:
    (pieces / INDEX_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=INDEX_FILE):
        read_index(pieces)


def test_a_file_of_pieces_that_is_another(pieces: Path) -> None:
    file = pieces / "rank_00000.safetensors"
    held = load_file(file)
    for tensors in ({"m": held["m"][:2].clone()}, {"m": held["m"].half()}, {"other": held["m"]}):
        save_file(tensors, file)
        with pytest.raises(UserError, match="is damaged"):
            _filled(pieces)
    file.write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="is damaged"):
        _filled(pieces)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_pieces_cover_a_tensor_exactly_where_each_element_lies_in_one(shape: list[int], random) -> None:
    """Cut a tensor at random, then move, drop or double a piece, and count elements one by one."""
    boxes = [[(0, size) for size in shape]]
    for _ in range(random.randint(0, 4)):
        box = boxes.pop(random.randrange(len(boxes)))
        dim = random.randrange(len(shape))
        first, last = box[dim]
        at = random.randint(first, last)
        boxes += [[*box[:dim], span, *box[dim + 1 :]] for span in ((first, at), (at, last))]
    change = random.choice(["none", "drop", "double", "move"])
    chosen = random.randrange(len(boxes))
    if change == "drop":
        boxes.pop(chosen)
    elif change == "double":
        boxes.append(boxes[chosen])
    elif change == "move":
        dim = random.randrange(len(shape))
        step = random.choice([1, 2])
        boxes[chosen] = [(f + step, e + step) if d == dim else (f, e) for d, (f, e) in enumerate(boxes[chosen])]
    counts = torch.zeros([2 * size + 3 for size in shape], dtype=torch.int)
    for box in boxes:
        counts[tuple(slice(first, last) for first, last in box)] += 1
    inside = counts[tuple(slice(0, size) for size in shape)]
    expected = bool((inside == 1).all()) and int(counts.sum()) == inside.numel()
    pieces = [StoredPiece(file="f", start=[f for f, _ in box], sizes=[e - f for f, e in box]) for box in boxes]
    stored = SavedTensor(dtype="float32", shape=shape, pieces=pieces)
    assert (stored.problem() is None) == expected
