"""What those who change AvatarForge run beside it: private servers of the real kind."""
