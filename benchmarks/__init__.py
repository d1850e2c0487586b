"""What is fast in AvatarForge, measured beside what a user would pick instead. See README.md."""
