"""Guest memory: images, page hashes, dirty bitmaps and the trackers that fill them."""
