"""The engines: requests, batches, samplers and the denoising itself."""
