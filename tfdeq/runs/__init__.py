"""What a run leaves in its folder for those who export, serve and compare it."""
