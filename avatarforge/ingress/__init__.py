"""What clients talk to: REST, uploads, live updates."""
