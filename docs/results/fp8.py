"""What products of 8-bit floats cost in loss, beside bfloat16 and float32: one recipe (fp8.toml), equal steps.

python docs/results/fp8.py --seeds 0,1,2
python docs/results/fp8.py --draw
"""

from pathlib import Path

import numpy as np
from arms import WINDOW_STEPS, interval, main, of_variant, read
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "fp8.json"
VARIANTS = {"bfloat16": [], "8-bit products": ["train.fp8='blocks'"], "float32": ["train.dtype='float32'"]}
"""What is compared, by settings of the recipe."""
BESIDE = "bfloat16"
LAST = slice(-60 // WINDOW_STEPS, None)
"""The training loss is told of the last sixty steps."""


def draw() -> None:
    """Print a table, a row a variant, and draw the loss and its difference from bfloat16's over the steps."""
    done = read(RESULTS)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    print("| products | held-out loss | beside bfloat16 | training loss | beside bfloat16 |")
    print("|---|---|---|---|---|")
    for name in VARIANTS:
        texts = []
        for key, part in (("held_out_loss", slice(-1, None)), ("loss", LAST)):
            found = of_variant(done, name, key)[:, part].mean(1)
            base = of_variant(done, BESIDE, key)[:, part].mean(1)
            texts.append("{:.3f} ± {:.3f}".format(*interval(found)))
            texts.append("" if name == BESIDE else "{:+.3f} ± {:.3f}".format(*interval(found - base)))
        print(f"| {name} | " + " | ".join(texts) + " |")
        curves, base = of_variant(done, name, "loss"), of_variant(done, BESIDE, "loss")
        steps = WINDOW_STEPS * (np.arange(curves.shape[1]) + 0.5)
        left.plot(steps, curves.mean(0), label=name, linewidth=1.2)
        if name != BESIDE:
            right.plot(steps, (curves - base).mean(0), label=name, linewidth=1.2)
    right.axhline(0, color="black", linewidth=0.6)
    for axis, title in ((left, "training loss"), (right, "training loss beside bfloat16")):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.legend(fontsize=7)
    figure.savefig(HERE / "fp8.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(__file__), "8-bit products beside bfloat16 at equal steps", VARIANTS, draw)
