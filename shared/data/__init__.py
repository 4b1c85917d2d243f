"""A task's data as people have them: which files, how they are read, what in them counts, and what is wrong with them."""
