"""From a trained model to one of few bits: rounding to nearest, GPTQ with prefix awareness, smoothing,
rotation."""
