"""Cross-entropy in Triton: one program a row of logits, which leaves the gradient in their place."""

import triton
import triton.language as tl


@triton.jit
def losses(
    logits, labels, dnll, dlog_z, nll, z, z_loss, vocab, row_stride,
    BLOCK: tl.constexpr, DIFFERENTIATE: tl.constexpr, HAS_DNLL: tl.constexpr, HAS_DLOG_Z: tl.constexpr,
):  # fmt: skip
    """The loss and logsumexp of each row, zero without a label; then the logits' gradient in the place of the logits.

    logits: [rows, vocab], rows ``row_stride`` apart; labels: [rows], a negative one carries no loss, and one outside
    the vocabulary makes the loss NaN; nll, z: [rows] float32. The gradient is that of the sum over rows of
    ``dnll (nll + z_loss z^2) + dlog_z z``, with dnll, dlog_z [rows] float32, which are ones and zeros if absent.
    """
    row = tl.program_id(0).to(tl.int64)
    word = tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    logits += row * row_stride
    if label < 0:
        tl.store(nll + row, 0.0)
        tl.store(z + row, 0.0)
        if DIFFERENTIATE:
            for start in range(0, vocab, BLOCK):
                tl.store(logits + start + word, tl.zeros([BLOCK], logits.dtype.element_ty), mask=start + word < vocab)
        return
    at_label = tl.load(logits + label, mask=label < vocab, other=float("nan")).to(tl.float32)
    top, total = -float("inf"), 0.0
    for start in range(0, vocab, BLOCK):
        x = tl.load(logits + start + word, mask=start + word < vocab, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), axis=0)
        top = higher
    # From the distance to the largest logit: the label's probability may underflow.
    tl.store(nll + row, top - at_label + tl.log(total))
    tl.store(z + row, top + tl.log(total))
    if DIFFERENTIATE:
        # d nll / d logits = p - onehot;  d z / d logits = p;  d z^2 / d logits = 2 z p
        of_label = tl.load(dnll + row) if HAS_DNLL else 1.0
        scale = of_label * (1 + 2 * z_loss * (top + tl.log(total)))
        if HAS_DLOG_Z:
            scale += tl.load(dlog_z + row)
        scale = scale / total
        last = tl.cdiv(vocab, BLOCK) - 1
        for block in range(last + 1):  # what was read last is still in the cache, and comes first
            start = (last - block) * BLOCK
            inside = start + word < vocab
            x = tl.load(logits + start + word, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - top) * scale - of_label * (start + word == label).to(tl.float32)
            tl.store(logits + start + word, gradient.to(logits.dtype.element_ty), mask=inside)
