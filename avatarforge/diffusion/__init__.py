"""Makes avatars: the catalogue of models, the engine, and the worker that serves them.

Nothing here imports torch, diffusers or OpenCV until a model is loaded or a photo is cut.
"""
