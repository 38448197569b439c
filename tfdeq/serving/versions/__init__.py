"""Version folders: writing, naming, loading, and what lies in them."""
