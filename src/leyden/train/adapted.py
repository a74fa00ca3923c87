"""The state of a run that trains adapters alone: the base in the dtype of computation, or in 8 bits, and frozen."""

import torch

from leyden import parallel
from leyden.checkpoint.pieces import TensorPiece
from leyden.core.device import default_device
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.lora import INT8_ON_RANKS, LoraConfig, add_lora, fill_initial, is_in_8_bits, quantize_base
from leyden.model.quantized import scale_of
from leyden.parallel import Part, RankGroup, Weights
from leyden.parallel.attachment import fill_buffers
from leyden.parallel.recompute import install_recompute
from leyden.train.optimizer import AdamWConfig, MasterAdamW
from leyden.train.state import TrainState


def adapted_state(
    config: ModelConfig,
    lora: LoraConfig,
    dtype: torch.dtype,
    optimizer: AdamWConfig,
    *,
    seed: int,
    row_tokens: int,
    rank_group: RankGroup,
    how: parallel.ParallelConfig,
    async_checkpoint: bool,
) -> TrainState:
    """A model whose base is still to be read (:meth:`TrainState.begin_from`), with its initial adapters.

    Of the base no second copy exists, in no other dtype either. Arguments as of :func:`leyden.train.run.build_state`.

    Raises:
        UserError: a setting that adapters are not trained with.
    """
    if how.compile:
        raise UserError(
            "parallel.compile = true compiles a model whose weights are trained; leave it out of a run with train.lora."
        )
    if optimizer.muon is not None:
        raise UserError(
            "train.optimizer.muon moves the matrices of a model's layers, and a run with train.lora trains adapters "
            "beside them, which AdamW moves; leave one of the two tables out."
        )
    host, mesh = torch.device("cpu") if how.offload_optimizer else None, rank_group.mesh
    with torch.device("meta"):
        model = add_lora(HybridLM(config).to(dtype), lora)
    if mesh is not None:
        if lora.int8:
            raise UserError(INT8_ON_RANKS)
        attached = parallel.attach(model, mesh, dtype, seed=seed, row_tokens=row_tokens)
        made = MasterAdamW(attached.weights, optimizer, host)
        return TrainState(
            attached.model, made, rank_group, async_checkpoint=async_checkpoint, frozen=attached.frozen, lora=lora
        )
    if lora.int8:
        quantize_base(model)
    model.to_empty(device=default_device())
    fill_buffers(model, config)
    fill_initial(model, seed)
    install_recompute(model, how.activation_checkpointing)
    frozen = {
        name: parallel.Weight(p, Part.whole(tuple(p.shape)))
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    for weight in frozen.values():  # until the model that is adapted is read
        weight.local.fill_(float(weight.local.ndim == 1))
    made = MasterAdamW(Weights.alone(model), optimizer, host)
    return TrainState(
        model,
        made,
        rank_group,
        async_checkpoint=async_checkpoint,
        frozen=Weights(frozen),
        in_8_bits=pieces_in_8_bits(model),
        lora=lora,
    )


def pieces_in_8_bits(model: HybridLM) -> dict[str, TensorPiece]:
    """The integers and scales of a model on one process, by name; empty where it is in floats."""
    if not is_in_8_bits(model):
        return {}
    buffers = dict(model.named_buffers())
    names = [name for name, buffer in buffers.items() if buffer.dtype == torch.int8]
    for name in names:  # until the model that is adapted is read
        buffers[name].zero_()
        buffers[scale_of(name)].zero_()
    both = [one for name in names for one in (name, scale_of(name))]
    return {name: TensorPiece(buffers[name], Part.whole(tuple(buffers[name].shape))) for name in both}
