"""Load a checkpoint's processor, and process images with it."""
