"""Jobs, their moves and all that belongs to them. Plain Python: no I/O, no await, no imports of ours."""
