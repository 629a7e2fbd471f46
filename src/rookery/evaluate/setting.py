"""What scores depend on besides texts: named in results, and what keeps apart what a cache remembers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rookery.evaluate.first_token import FirstToken
from rookery.generate import LanguageModel
from rookery.generate.native_backend import NativeBackend

__all__ = ["model_setting"]


def model_setting(model: LanguageModel, first_token: FirstToken) -> dict[str, Any]:
    """The weights, their number type, what runs them, the tokenizer, and the first token."""
    backend = model.backend
    # The engine may have another type for each matrix; their size tells the mixtures apart.
    numbers = (
        f"matrices of {backend.model.matrix_bytes} bytes"
        if isinstance(backend, NativeBackend)
        else str(getattr(backend, "dtype", "")).removeprefix("torch.")
    )
    return {
        "model": model.fingerprint,
        "sizes": model.config.to_dict(),
        "backend": type(backend).__name__,
        "numbers": numbers,
        "tokenizer": repr(model.tokenizer),
        "tokenizer_hash": _hash(None if model.tokenizer is None else model.tokenizer.to_spec()),
        "first_token": {"id": first_token.id, "name": first_token.name},
    }


def _hash(spec: Any) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
