"""Training: a `TrainSpec` and encoded data in, checkpoints out. Nothing here knows of sampling or scoring."""
