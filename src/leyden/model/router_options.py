"""Options of the routers, and which shapes they fit."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leyden.model.config import ModelConfig

_OF_GROUPS = (
    "n_group",
    "topk_group",
    "group_score",
    "norm_topk_prob",
    "routed_scaling_factor",
    "router_group_loss_coef",
)
"""Fields that the router ``"sigmoid_groups"`` alone has."""


def router_problems(config: "ModelConfig") -> list[str]:
    """What does not fit together in the choice of experts, each in a clause of its own."""
    experts, groups, chosen = config.num_local_experts, config.n_group, config.topk_group
    if config.router != "sigmoid_groups":
        fields = type(config).model_fields
        set_ = {name: getattr(config, name) for name in _OF_GROUPS}
        others = [f"{name} is {value}" for name, value in set_.items() if value != fields[name].default]
        said = f'{", ".join(others)}, and router is "{config.router}"; leave it out, or set router = "sigmoid_groups"'
        return [said] if others else []
    if not experts:
        return ['router is "sigmoid_groups", and num_local_experts is 0; leave it out, or say how many there are']
    if experts % groups or chosen > groups:
        return [
            f"n_group ({groups}) must divide num_local_experts ({experts}), and topk_group ({chosen}) must not "
            "exceed n_group"
        ]
    if config.router_group_loss_coef and groups == 1:
        return [
            f"router_group_loss_coef is {config.router_group_loss_coef:g}, and n_group is 1, whose load is even; "
            "leave it out, or say into how many groups (devices) the experts are cut"
        ]
    allowed = experts // groups * chosen
    if allowed < config.num_experts_per_tok <= experts:
        return [
            f"num_experts_per_tok ({config.num_experts_per_tok}) must not exceed the {allowed} experts of the "
            f"{chosen} groups that a token may use (topk_group)"
        ]
    return []
