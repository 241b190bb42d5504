"""Model + batches + objective -> better model."""
