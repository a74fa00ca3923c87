"""``leyden bench cpu``: training, prefill, decoding and memory beside transformers on two CPU threads."""
