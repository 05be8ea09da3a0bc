"""Data: sources of images, checks and conversion, the order of training, augmentation and loading."""
