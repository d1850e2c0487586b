"""The service's face to its clients: REST, uploads, live updates."""
