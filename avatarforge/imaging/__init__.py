"""Images without a model: decoding, JPEG, cropping to the face, provenance."""
