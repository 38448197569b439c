"""Certificates: how far an input may move before the answer can change."""

from tfdeq.certificates.certified_radius import certified_radius

__all__ = ["certified_radius"]
