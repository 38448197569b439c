"""Version folders: writing, naming, loading, and their contents."""
