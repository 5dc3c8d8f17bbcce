"""Finding records by example: exact nearest neighbours of vectors, in bounded memory."""
