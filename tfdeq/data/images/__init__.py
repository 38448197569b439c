"""Pictures with classes: original files, TFDS, or a folder of one's own."""

from tfdeq.data.images.augmentation import Augmentation
from tfdeq.data.images.image_data import ImageData
from tfdeq.data.images.registry import DATASETS, load

__all__ = ["DATASETS", "Augmentation", "ImageData", "load"]
