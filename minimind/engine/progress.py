"""Shows a run's progress on the console: a bar on a terminal, lines at intervals elsewhere."""

from __future__ import annotations

import logging
import math
import sys

import tqdm

from minimind.types import StepStats

logger = logging.getLogger(__name__)


class Progress:
    """Shows loss, learning rate, tokens/s, MFU where the device's peak is known, memory and time
    left. Only rank 0 shows anything."""

    def __init__(
        self,
        *,
        is_main: bool,
        first_step: int,
        total_steps: int,
        log_every: int,
        flops_per_token: int = 0,
        peak_flops: float | None = None,
    ) -> None:
        """`peak_flops` is the peak of all ranks together, in FLOP/s."""
        self._is_main = is_main
        self._log_every = log_every
        self._total_steps = total_steps
        self._first_step = first_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not (is_main and terminal),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._seconds_per_step = 0.0

    def update(self, stats: StepStats, seconds: float) -> None:
        if not self._is_main:
            return
        # The first step compiles and warms up: its time says nothing about the remaining ones.
        warms_up = stats.step == self._first_step + 1
        weight = 0.1 if stats.step > self._first_step + 2 else 1.0
        self._seconds_per_step += weight * (seconds - self._seconds_per_step)
        shown = {
            "loss": "none" if math.isnan(stats.loss) else f"{stats.loss:.4f}",
            "lr": f"{stats.learning_rate:.2e}",
            **({} if warms_up else {"tok/s": f"{stats.tokens_per_s:,.0f}"}),
            **{n: f"{value:.4g}" for n, value in stats.metrics.items() if not math.isnan(value)},
            # On a CPU the peak is known from the second step on.
            **({"mem": f"{stats.peak_bytes / 2**30:.2f} GiB"} if stats.peak_bytes else {}),
        }
        if self._peak_flops and not warms_up:
            used = stats.tokens_per_s * self._flops_per_token / self._peak_flops
            shown["mfu"] = f"{used:.1%}"
        self._bar.update(1)
        self._bar.set_postfix(shown, refresh=False)
        ends = (self._first_step + 1, self._total_steps)
        is_due = stats.step in ends or stats.step % self._log_every == 0
        if self._bar.disable and is_due:
            if not warms_up:
                left = (self._total_steps - stats.step) * self._seconds_per_step
                shown["left"] = tqdm.tqdm.format_interval(left)
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d/%d  %s", stats.step, self._total_steps, text)

    def say(self, text: str, *values: object) -> None:
        """Writes a separate line, above the bar."""
        if self._is_main:
            logger.info(text, *values)

    def close(self) -> None:
        self._bar.close()
