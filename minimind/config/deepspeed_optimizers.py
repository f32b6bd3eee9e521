"""Lists the optimizers that a DeepSpeed JSON may name, and their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Mapping
from types import ModuleType
from typing import Any

import torch

from minimind.config.recipe import Recipe, spell_option
from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError

ADAM_PARAMS = frozenset(
    {
        "adam_w_mode",
        "amsgrad",
        "betas",
        "bias_correction",
        "capturable",
        "differentiable",
        "eps",
        "foreach",
        "fp32_optimizer_states",
        "fused",
        "lr",
        "maximize",
        "set_grad_none",
        "torch_adam",
        "weight_decay",
    }
)
"""The parameters of PyTorch's AdamW and of DeepSpeed's own."""
DEEPSPEED_OPTIMIZERS: dict[str, frozenset[str] | None] = {
    "adagrad": None,
    "adam": ADAM_PARAMS,
    "adamw": ADAM_PARAMS,
    "lamb": frozenset(
        {
            "amsgrad",
            "betas",
            "bias_correction",
            "eps",
            "eps_inside_sqrt",
            "lr",
            "max_coeff",
            "max_grad_norm",
            "min_coeff",
            "weight_decay",
        }
    ),
    "lion": frozenset({"betas", "fp32_optimizer_states", "lr", "set_grad_none", "weight_decay"}),
    "muadam": None,
    "muadamw": None,
    # This project's own: engine/muon.py says why.
    "muon": frozenset({"betas", "eps", "lr", "momentum", "weight_decay"}),
    "musgd": None,
}
"""The parameters of each optimizer, by its lower-case name. None: the optimizer takes the
parameters of PyTorch's optimizer of that name, or they are unknown."""
_NOT_TORCHS = frozenset({"bias_correction", "fp32_optimizer_states", "set_grad_none"})
"""Parameters of DeepSpeed's own Adam that PyTorch's does not have."""
OPTIMIZER_PARAMS = {
    "learning_rate": "lr",
    "betas": "betas",
    "adam_eps": "eps",
    "weight_decay": "weight_decay",
}
"""Recipe options that an optimizer may take, with its names for them."""


def is_muon(name: str) -> bool:
    return name.lower() == "muon"


def check_optimizer(section: dict[str, Any], origin: str) -> None:
    """Raises ConfigError for an unknown optimizer type and for a parameter that the type does not
    take. An "auto" for such a parameter is dropped later."""
    name, params = section["type"], section.get("params", {})
    if name == "auto":
        return
    if name.lower() not in DEEPSPEED_OPTIMIZERS and name not in _torch_optimizers():
        others = (n for n in _torch_optimizers() if n.lower() not in DEEPSPEED_OPTIMIZERS)
        known = [*DEEPSPEED_OPTIMIZERS, *others]
        raise ConfigError(
            f"{origin}: optimizer.type is {name!r}{did_you_mean(name, known)}; it must be one of "
            f"DeepSpeed's ({', '.join(sorted(DEEPSPEED_OPTIMIZERS))}) or of torch.optim"
        )
    taken = taken_params(name)
    given = [key for key, value in params.items() if value != "auto"]
    if taken is not None and (unknown := sorted(set(given) - taken)):
        raise ConfigError(
            f"{origin}: optimizer.params knows no key {unknown[0]!r}"
            f"{did_you_mean(unknown[0], taken)}: {name} takes {', '.join(sorted(taken))}"
        )


def optimizer_type(ds: Mapping[str, Any], recipe: Recipe, given: Container[str]) -> str:
    """Gives the optimizer of a JSON. "auto" stands for the recipe's optimizer; where the states are
    offloaded it stands for AdamW, unless the command line (`given`) names another. Raises
    ConfigError for a recipe's optimizer that does not exist."""
    section = ds.get("optimizer") or {"type": "auto"}
    if section["type"] != "auto":
        return section["type"]
    if "optimizer" not in given and offloads_optimizer(ds):
        return "AdamW"
    origin = spell_option("optimizer", recipe.optimizer)
    check_optimizer({**section, "type": recipe.optimizer}, origin)
    return recipe.optimizer


def offloads_optimizer(ds: Mapping[str, Any]) -> bool:
    """Tells whether a JSON keeps the optimizer's states off the device."""
    section = (ds.get("zero_optimization") or {}).get("offload_optimizer") or {}
    return section.get("device", "none") not in ("none", "auto")


def choose_torch_adam(section: dict[str, Any]) -> None:
    """Sets to "auto" the keys that select PyTorch's fused Adam, where the JSON does not decide:
    DeepSpeed's own takes a minute to compile, and on a GPU needs a CUDA toolkit."""
    params = section["params"]
    is_adam = section["type"].lower() in ("adam", "adamw")
    if not is_adam or "torch_adam" in params or _NOT_TORCHS & params.keys():
        return
    params["torch_adam"] = "auto"
    if not params.get("foreach") and not params.get("differentiable"):
        params.setdefault("fused", "auto")


def fill_optimizer(section: dict[str, Any], recipe: Recipe, given: Iterable[str]) -> None:
    """Sets to "auto" the parameters that the recipe gives the optimizer, and drops an "auto" that
    its type does not take. Only Adam gets the recipe's betas and epsilon, unless the JSON asks for
    them. Raises ConfigError for a command-line option (`given`) that the type does not take."""
    name, params = section["type"], section["params"]
    taken, is_adam = taken_params(name), name.lower() in ("adam", "adamw", "muon")
    for option, key in OPTIMIZER_PARAMS.items():
        if option in given and taken is not None and key not in taken:
            raise ConfigError(
                f"{spell_option(option, getattr(recipe, option))}: the optimizer {name} has no "
                f"{key}; leave it out (it takes {', '.join(sorted(taken))})"
            )
        is_own = key in ("betas", "eps") and not is_adam and option not in given
        if is_own and params.get(key) == "auto":
            del params[key]
        wanted = is_adam or option in given or key == "lr"
        if wanted and params.get(key) is None:
            params[key] = "auto"
    for key in [key for key, value in params.items() if value == "auto"]:
        kept = taken is None or key in taken
        # The recipe's values for these are meant for Adam.
        if not kept or (key in ("torch_adam", "fused") and not is_adam):
            del params[key]


def taken_params(name: str) -> frozenset[str] | None:
    """Gives the parameters that an optimizer takes; None where they are unknown."""
    if taken := DEEPSPEED_OPTIMIZERS.get(name.lower()):
        return taken
    kinds = {kind.lower(): kind for kind in _torch_optimizers()}
    kind = kinds.get(name.lower()) if name.lower() in DEEPSPEED_OPTIMIZERS else name
    if kind is None:
        return None
    parameters = inspect.signature(getattr(torch.optim, kind).__init__).parameters
    return frozenset(parameters) - {"self", "params", "kwargs"}


def _torch_optimizers() -> dict[str, type]:
    return subclasses_in(torch.optim, torch.optim.Optimizer)


def subclasses_in(module: ModuleType, base: type) -> dict[str, type]:
    """Gives the classes of a module that are derived from `base`, by their names there."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }
