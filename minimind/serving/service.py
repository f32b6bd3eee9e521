"""Holds the models of a server, from loading to the last answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minimind.data.tokenizer import Tokenizer
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.load import Placement, chat_notice, load_adapters, load_checkpoint
from minimind.serving.api_errors import ApiError
from minimind.serving.engine_thread import EngineThread
from minimind.serving.response_schemas import Status
from minimind.serving.served_model import ServedModel
from minimind.serving.settings import ServerSettings

logger = logging.getLogger("minimind")

GRAMMAR_LIMIT_S = 3.0
"""The seconds in which a client's schema or grammar must compile; most take a millisecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Names a model folder, and how to run the model."""

    folder: Path
    placement: Placement
    max_batch: int
    max_tokens: int | None
    """The tokens that the whole cache holds; None gives each of `max_batch` sequences a whole
    context."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Adapter folders by name; clients see the model with each adapter as a further model."""


class Service:
    """Owns the models. It is used from one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.models: dict[str, ServedModel] = {}
        self.is_loading = True
        self._is_stopping = False

    @property
    def status(self) -> Status:
        if self._is_stopping:
            return "stopping"
        if self.is_loading:
            return "loading"
        failed = any(model.thread.has_failed for model in self.models.values())
        return "failed" if failed else "ok"

    async def load(self, sources: dict[str, ModelSource]) -> None:
        """Loads the models. Raises a MiniMindError where one cannot be used."""
        for name, source in sources.items():
            engine, tokenizer = await asyncio.to_thread(_load_engine, source)
            if notice := chat_notice(source.folder):
                logger.warning("%s: %s", name, notice)
            self.add(name, engine, tokenizer, tuple(source.adapters), notice)
        self.is_loading = False

    def add(
        self,
        name: str,
        engine: BatchEngine,
        tokenizer: Tokenizer,
        adapters: Sequence[str] = (),
        notice: str | None = None,
    ) -> None:
        """Adds a model under its name, and one more under the name of each of the engine's
        `adapters`. `notice` is about the model without an adapter."""
        thread = EngineThread(engine, engine.stats.free_slots + self.settings.max_waiting)
        for served, adapter in ((name, None), *((adapter, adapter) for adapter in adapters)):
            self.models[served] = ServedModel(
                name=served,
                tokenizer=tokenizer,
                thread=thread,
                max_new_tokens=self.settings.max_new_tokens,
                adapter=adapter,
                parses_special=self.settings.parse_special,
                notice=notice if adapter is None else None,
            )

    def find(self, name: str | None) -> ServedModel:
        """Finds a model by name. Without a name it gives the only model that has no adapter. Raises
        ApiError."""
        if name is None:
            wanted = [model for model in self.models.values() if model.adapter is None]
            if len(wanted) == 1:
                return wanted[0]
            names = ", ".join(self.models)
            raise ApiError(400, f"model is missing; the models are {names}", param="model")
        model = self.models.get(name)
        if model is None:
            raise ApiError(
                404,
                f"there is no model {name!r}; the models are {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return model

    def stop(self) -> None:
        """Refuses new calls. Answers that have not ended after `shutdown_s` end with an error."""
        self._is_stopping = True
        asyncio.get_running_loop().call_later(self.settings.shutdown_s, self._cut_off)

    def _cut_off(self) -> None:
        for model in self.models.values():
            model.thread.fail_all(ApiError(503, "the server is stopping", code="stopping"))

    async def close(self) -> None:
        for model in self.models.values():
            await model.thread.close()


def _load_engine(source: ModelSource) -> tuple[BatchEngine, Tokenizer]:
    model, tokenizer = load_checkpoint(source.folder, source.placement)
    adapters = load_adapters(model, tokenizer, source.folder, source.adapters)
    engine = BatchEngine(
        model,
        tokenizer,
        max_batch=source.max_batch,
        max_tokens=source.max_tokens,
        adapters=adapters,
        grammar_limit_s=GRAMMAR_LIMIT_S,
    )
    return engine, tokenizer
