"""Drawing with a trained model: requests, the engine, its backends, the models that there are, upscaling.

No torch at import: ``fewstep.engine.backends.torch`` imports it when it is asked for.
"""
