"""What a data source names: a list of samples with what is said of them. Torch-free, so that `graft plan` and bad-input checks
use it.

One module a scheme (`folder`, `csv`, `digits`), found by name; each has `listing(rest: str) -> Listing` for the text after
the colon of `scheme:rest`.
"""

from trainer.config.sources.listing import Item, Listing
from trainer.config.sources.matching import open_source
from trainer.config.sources.splits import Splits, open_splits

__all__ = ["Item", "Listing", "Splits", "open_source", "open_splits"]
