"""AvatarForge: a self-hosted service that turns photos into AI-made profile pictures."""

__version__ = "0.1.0"
