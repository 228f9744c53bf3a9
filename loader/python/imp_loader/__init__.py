"""Batches from IMP's shards, as NumPy arrays over the memory that the loader filled.

    from imp_loader import Loader

    with Loader.from_run_file("ops/configs/demo.toml") as loader:
        for batch in loader:              # forever, in order of steps
            batch.task, batch.pixels      # uint8 [n, frames, height, width, 3], or None
            state = loader.state_dict()   # Loader.from_run_file(..., state=state) goes on with the next step

No array is copied on its way here, nor by `numpy.from_dlpack` or `torch.from_numpy`. For torch see `imp_loader.torch`.
"""

from imp_loader._native import Batch, Loader, LoaderError, __version__

__all__ = ["Batch", "Loader", "LoaderError", "__version__"]
