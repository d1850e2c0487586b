"""`python -m avatarforge` is the `avatarforge` command."""

from avatarforge.cli import app

if __name__ == "__main__":
    app()
