"""Other servers of the same models: one small file each, and what it takes to install, start and end them."""
