"""Tools for those who change AvatarForge: private servers of the real kind."""
