"""The flags that trainers share."""
