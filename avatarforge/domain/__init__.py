"""What a job is and how it may move. Plain Python: no I/O, no await, no imports of ours."""
