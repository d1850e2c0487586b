"""A job's life: admission, submission, commands, deadlines and commits."""
