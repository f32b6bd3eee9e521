"""Groups the trained parameters by learning rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from minimind.config.deepspeed_optimizers import is_muon
from minimind.config.recipe import Recipe
from minimind.errors import ConfigError


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def trained_matrices(module: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """Finds the trained weights that are matrices between hidden states, not tables of tokens or of
    experts. Gives the number of rows of each matrix that is fused in the weight, from its module's
    `matrices`."""
    rows = {
        f"{place}.{name}": sizes
        for place, inside in module.named_modules()
        for name, sizes in getattr(inside, "matrices", {}).items()
    }
    return {p: rows[name] for name, p in trained_parameters(module) if name in rows}


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups the trained parameters by their factors on learning rate and weight decay, and for
    Muon by whether they are matrices (`is_matrix`). Raises ConfigError for a pattern that matches
    no name, and where every learning rate would be 0."""
    matrices = trained_matrices(module) if is_muon(recipe.optimizer) else None
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    unmatched = set(recipe.rate_factors) | set(recipe.weight_decay_factors)
    for name, parameter in trained_parameters(module):
        factors = []
        for table in (recipe.rate_factors, recipe.weight_decay_factors):
            patterns = [p for p in table if re.search(p, name)]
            unmatched -= set(patterns)
            factors.append(table[patterns[-1]] if patterns else 1.0)
        rate, decay = factors
        options = {"lr_factor": rate, "weight_decay": recipe.weight_decay * decay}
        is_matrix = matrices is not None and parameter in matrices
        if matrices is not None:
            options["is_matrix"] = is_matrix
        group = groups.setdefault((rate, decay, is_matrix), {"params": [], **options})
        group["params"].append(parameter)
    if unmatched:
        names = [name for name, _ in trained_parameters(module)]
        first = [name for name in names if not re.search(r"layers\.[1-9]", name)]
        raise ConfigError(
            f"no trained weight's name matches {', '.join(sorted(unmatched))}; names: "
            f"{', '.join(first)}, and so on"
        )
    if not any(rate for rate, *_ in groups):
        raise ConfigError(
            f"lr_factors {recipe.lr_factors} leaves every trained weight a learning rate of 0: "
            "nothing would be learned; give one of them a factor above 0"
        )
    return list(groups.values())
