"""Training: the same model as the engine runs, over ops with gradients. Needs the extra ``train``."""
