"""What vLLM's worker process learns from us; named to the engine as `worker_extension_cls`."""

from __future__ import annotations

from torch import nn


class WorkerExtension:
    """Mixed into vLLM's worker, and called there by name."""

    def repack_head(self) -> None:
        """Call it after `reload_weights`. On CPUs vLLM keeps the output head packed for its
        products. A head that shares the embedding's weights is not in the files, so that a reload
        changes its weights and leaves the packed copy as it was, without an error.
        """
        model: nn.Module = self.get_model()  # type: ignore[attr-defined]  # the worker's own
        head = getattr(model, "lm_head", None)
        if head is not None and hasattr(head, "quant_method"):
            head.quant_method.process_weights_after_loading(head)
