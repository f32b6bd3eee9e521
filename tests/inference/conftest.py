"""Provides a model for tests that do not care which."""

from __future__ import annotations

import pytest
from small_models import random_model, small_config

from minimind.model.transformer import Transformer


@pytest.fixture
def model() -> Transformer:
    return random_model(small_config()).eval()
