"""An upload, from its bytes to an accepted job."""
