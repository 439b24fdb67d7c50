"""From an index of images to batches of crops."""
