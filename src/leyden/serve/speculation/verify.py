"""Verification: a guess is right if the sequence's own sampler draws it."""

from collections.abc import Sequence

import torch

from leyden.core.transfers import pick
from leyden.serve.sampling import Draw, Sampler, draw


def verify(samplers: Sequence[Sampler], guesses: Sequence[Sequence[int]], logits: torch.Tensor) -> list[list[Draw]]:
    """Draw each sequence's next tokens, up to the first that was not guessed or that ends the text.

    Args:
        samplers: of S sequences; each moves on by the tokens it draws.
        guesses: of each sequence, what it has read behind its last token; possibly nothing.
        logits: [R, V] float32: of each sequence in turn, behind its last token and behind each of its guesses.

    Returns:
        Of each sequence at least one draw. All but the last are right guesses; of a sequence that goes on, as many
        guesses as it has draws, less one, stay read.
    """
    draws: list[list[Draw]] = [[] for _ in samplers]
    first, num_rows = [], 0
    for guess in guesses:
        first.append(num_rows)
        num_rows += 1 + len(guess)
    going = list(range(len(samplers)))
    position = 0
    while going:
        rows = [first[index] + position for index in going]
        drawn = draw([samplers[index] for index in going], pick(logits, rows))
        for index, one in zip(going, drawn, strict=True):
            draws[index].append(one)
        going = [
            index
            for index, one in zip(going, drawn, strict=True)
            if position < len(guesses[index])
            and one.token == guesses[index][position]
            and not samplers[index].ends(one.token)
        ]
        position += 1
    return draws
