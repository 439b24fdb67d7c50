"""How each layout of files on disk becomes rows of an index."""
