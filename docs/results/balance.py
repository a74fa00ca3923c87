"""How even experts' loads are, and what it costs: biases that move against the load beside a loss on the router.

One recipe (balance.toml), a few ways of balancing, the same tokens. See balance.md beside this file.

    python docs/results/balance.py --seeds 0,1,2
    python docs/results/balance.py --draw
"""

from pathlib import Path

from arms import WINDOW_STEPS, interval, main, of_variant, read
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "balance.json"
BIAS = "stage.pretrain.expert_bias_rate="
VARIANTS = {
    "nothing": [],
    "auxiliary loss 0.01": ["model.router_aux_loss_coef=0.01"],
    "bias 0.001": [f"{BIAS}0.001"],
    "bias 0.01": [f"{BIAS}0.01"],
    "softmax, auxiliary loss 0.01": ["model.router='softmax_topk'", "model.router_aux_loss_coef=0.01"],
}
"""What is compared, by settings of the recipe; the last is the router of MiniMax-01."""
BESIDE = "auxiliary loss 0.01"
LATE = slice(100 // WINDOW_STEPS, None)
"""Load and drops are told of the steps behind the first hundred."""


def draw() -> None:
    """Print a table, a row a variant, and draw load, drops and loss over the steps."""
    done = read(RESULTS)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    print("| variant | violation of the load | dropped | held-out loss | beside the auxiliary loss |")
    print("|---|---|---|---|---|")
    base = of_variant(done, BESIDE, "held_out_loss")[:, -1]
    for name in VARIANTS:
        texts = []
        for key, form in (("max_violation", "{:.2f} ± {:.2f}"), ("dropped", "{:.2%} ± {:.2%}")):
            texts.append(form.format(*interval(of_variant(done, name, key)[:, LATE].mean(1))))
        last = of_variant(done, name, "held_out_loss")[:, -1]
        texts.append("{:.3f} ± {:.3f}".format(*interval(last)))
        texts.append("" if name == BESIDE else "{:+.3f} ± {:.3f}".format(*interval(last - base)))
        print(f"| {name} | " + " | ".join(texts) + " |")
        for axis, key in zip(axes, ("max_violation", "dropped", "loss"), strict=True):
            curve = of_variant(done, name, key).mean(0)
            axis.plot([WINDOW_STEPS * (at + 0.5) for at in range(len(curve))], curve, label=name, linewidth=1.2)
    for axis, title in zip(axes, ("violation of the load", "share dropped", "training loss"), strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(bottom=0)
    axes[2].legend(fontsize=7)
    figure.savefig(HERE / "balance.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(__file__), "Ways of balancing experts, side by side", VARIANTS, draw)
