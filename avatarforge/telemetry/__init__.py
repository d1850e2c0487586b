"""What AvatarForge tells about itself while it runs."""
