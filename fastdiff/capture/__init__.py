"""One evaluation of a network as operations: recorded, split by what depends on x, fused."""
