"""Names the shipped DeepSpeed JSONs, and the machine and sizes for which tests resolve one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minimind.config.deepspeed_json import SHIPPED, Hardware
from minimind.config.recipe import Recipe
from minimind.config.sizes import Sizes

NAMES = sorted(path.name for path in SHIPPED.glob("*.json"))
CPU = Hardware("cpu", 1, "bf16")
SIZES = Sizes(256, 16, 8)
Resolve = Callable[..., tuple[dict[str, Any], Recipe]]
