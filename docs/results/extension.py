"""The data of extension.toml: text in which numbers are planted, in rows of up to 1K, 4K, 16K and 64K tokens.

Each row ends with the question for every number that stands in it, and the answers alone are learned. The sentences are
those of ``leyden eval --task niah`` (MiniMax-01, arXiv 2501.08313, section 4.3); names and numbers are drawn. The
tokenizer is trained on the text and on such numbers, so that it has a token for every three digits.

    python docs/results/extension.py --dir runs/extension-data
"""

import argparse
import math
from itertools import islice
from pathlib import Path

import numpy as np

from leyden.core.log import progress
from leyden.data import read_documents, standard_library_sources
from leyden.tokenizer import Tokenizer

STAGES = {
    "n1k": (20, 900, 1_600_000),
    "n4k": (256, 3_900, 600_000),
    "n16k": (1_024, 16_000, 600_000),
    "n64k": (4_096, 65_000, 800_000),
}
"""Of each group of token files: the fewest and most tokens of a row's text, and how many tokens there are in all."""
COUNTS = (1, 1, 2, 4)
"""Numbers in a row; drawn."""
VOCAB_SIZE = 4096
_LETTERS = list("abcdefghijklmnoprstuvz")
_FACT = "The special magic {} number is:"


def make_tokenizer(texts: list[str], generator: np.random.Generator) -> Tokenizer:
    """Trained on the text, and on as many numbers as it takes to have all of three digits."""
    numbers = "\n".join(f"{_FACT.format('')} {generator.integers(10**6, 10**7)}." for _ in range(8000))
    return Tokenizer.train([*texts, numbers], vocab_size=VOCAB_SIZE, allow_smaller=True)


def needle_row(
    tokenizer: Tokenizer, text: np.ndarray, size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [T] of a row whose text has ``size`` tokens, and which of them are learned [T]."""
    count = int(generator.choice(COUNTS))
    names = ["".join(generator.choice(_LETTERS, 6)).capitalize() for _ in range(count)]
    numbers = [int(generator.integers(10**6, 10**7)) for _ in range(count)]
    start, places = int(generator.integers(len(text) - size)), np.sort(generator.integers(0, size, count))
    row, done = [tokenizer.bos_id], 0
    for name, number, place in zip(names, numbers, places.tolist(), strict=True):
        row += text[start + done : start + place].tolist()
        row += tokenizer.encode(f"\n{_FACT.format(name)} {number}.\n")
        done = place
    row += text[start + done : start + size].tolist()
    learned = [False] * len(row)
    for asked in generator.permutation(count).tolist():
        question = f"\n\nWhat is the special magic {names[asked]} number? {_FACT.format(names[asked])}"
        before, whole = tokenizer.encode(question), tokenizer.encode(f"{question} {numbers[asked]}.")
        row += whole
        learned += [False] * len(before) + [True] * (len(whole) - len(before))
    return np.array([*row, tokenizer.eod_id]), np.array([*learned, False])


def write_rows(path: Path, tokenizer: Tokenizer, text: np.ndarray, name: str, generator: np.random.Generator) -> None:
    """A token file in datatrove's format, its index last; lengths are as often short as long (log-uniform)."""
    shortest, longest, total = STAGES[name]
    rows, learned, read = [], [], 0
    with progress(name, total, "tokens") as bar:
        while read < total:
            size = round(math.exp(generator.uniform(math.log(shortest), math.log(longest))))
            tokens, marks = needle_row(tokenizer, text, size, generator)
            rows.append(tokens)
            learned.append(marks)
            read += len(tokens)
            bar.advance(len(tokens))
    np.concatenate(rows).astype("<u2").tofile(path)
    np.concatenate(learned).astype("?").tofile(path.with_name(f"{path.name}.loss"))
    np.cumsum([len(row) for row in rows]).astype("<u8").tofile(path.with_name(f"{path.name}.index"))


def main() -> None:
    """Write the tokenizer and the four groups."""
    parser = argparse.ArgumentParser(description="The data of extension.toml; see extension.md beside this file.")
    parser.add_argument("--dir", type=Path, default=Path("runs/extension-data"), help="where it is written")
    folder = parser.parse_args().dir
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    texts = [one.text for one in islice(read_documents(standard_library_sources(), []), 0, 400, 4)]
    tokenizer = make_tokenizer(texts, generator)
    tokenizer.save(folder / "tokenizer")
    text = np.concatenate([np.array(tokenizer.encode(one)) for one in texts])
    for name in STAGES:
        write_rows(folder / f"{name}.ds", tokenizer, text, name, generator)


if __name__ == "__main__":
    main()
