"""Who is near whom among many images: neighbour lists, sparse rows, and their algebra."""
